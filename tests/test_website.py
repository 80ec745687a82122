"""The website can be made from the documents, and no link in it leads nowhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_website_is_made_without_a_warning(tmp_path):
    sphinx = [sys.executable, "-m", "sphinx", "-c", ROOT / "docs", "-d", tmp_path / "trees"]
    command = [*sphinx, "-W", "--keep-going", "-q"]
    done = subprocess.run([*command, ROOT, tmp_path / "site"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ten minutes" in (tmp_path / "site" / "docs" / "index.html").read_text(encoding="utf-8")


def test_example_of_a_new_loss_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "add_a_loss.md").read_text("utf-8"), re.M | re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == re.findall(r"^# (.*)", code, re.MULTILINE), done.stderr
