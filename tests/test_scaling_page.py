"""The page on several GPUs and jobs: its scripts are shell, and its names are those of the code."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nnunet_imbal.fingerprint import FILE_NAME

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```(?:bash|sh)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_shell(script):
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_batch_scripts_stop_at_the_first_error():
    batch = [script for script in SCRIPTS if "#SBATCH" in script]
    assert len(batch) == 2
    for script in batch:
        assert script.startswith("#!/bin/bash\n#SBATCH")
        assert "set -euo pipefail" in script


def test_files_have_these_names():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "trainers").glob("*.py"))
    assert f"`{FILE_NAME}`" in PAGE
    for folder in ("imbal_instances", "imbal_unlabelled"):
        assert f'"{folder}"' in code
        assert f"`{folder}/" in PAGE
    assert '"NNUNET_IMBAL_ALLOW_CONFIG_CHANGE"' in code
