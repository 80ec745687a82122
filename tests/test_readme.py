"""What the documents tell a newcomer to type works as written."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nnunet_imbal.cli import app
from nnunet_imbal.config import ImbalConfig
from nnunet_imbal.registry import get_loss, list_losses

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = {"make", "export", "pip"}


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands():
    text = "\n".join(block for path in DOCUMENTS for block in blocks("bash", path.read_text(encoding="utf-8")))
    return sorted({line for line in text.splitlines() if line.strip()})


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line):
    words = shlex.split(line, comments=True)
    if words[:2] == ["nnunet-imbal", "run"]:
        words = words[2:]
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif words[0] == "nnunet-imbal":
        assert_is_known(words[1:])
    elif words[0] not in SHELL:
        assert shutil.which(words[0], path=Path(sys.executable).parent), words[0]
    for inner in re.findall(r"\$\(nnunet-imbal (.*?)\)", line):
        assert_is_known(inner.split())


def assert_is_known(words):
    shown = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert shown.exit_code == 0, f"nnunet-imbal {words[0]}"
    assert [word for word in words if word.startswith("--") and word not in shown.output] == []


@pytest.mark.parametrize(
    "code",
    [pytest.param(code, marks=[pytest.mark.slow] * ("monai" in code)) for code in blocks("python")],
    ids=lambda code: code.splitlines()[1],
)
def test_python_examples_run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"^# (.*)", code, re.MULTILINE)


@pytest.mark.parametrize("text", blocks("json"))
def test_plans_examples_are_valid(text):
    for configuration in json.loads(text).values():
        assert ImbalConfig.from_dict(configuration["imbal"]).terms


def test_table_of_methods_is_complete():
    rows = [f"| `{n}` | `{c.__name__}` | {c.summary} | {c.paper} |" for n in list_losses() for c in [get_loss(n)]]
    assert re.findall(r"^\| `.*", README, re.MULTILINE) == rows


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md"])
def test_start_up_line_is_disclosed_word_for_word(name):
    line = (ROOT / "startup" / "nnunet_imbal.pth").read_text(encoding="utf-8")
    assert line in blocks("text", (ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_ci_runs_what_the_readme_says():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
