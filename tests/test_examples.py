"""The example scripts run as they are, only shorter."""

import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # MONAI's own
@pytest.mark.parametrize("words", [[], ["--scdl"]])
def test_semi_supervised(words, capsys):
    script = runpy.run_path(str(EXAMPLES / "semi_supervised.py"))
    short = ["--steps", "2", "--annotated", "1", "--others", "1", "--tests", "1"]
    table = script["main"]([*short, *words])
    assert list(table) == ["annotated alone", "with the others"]
    for values in table.values():
        assert len(values) == len(script["ORGANS"])
        assert all(math.isfinite(value) and 0 <= value <= 1 for value in values)
    assert "gallbladder" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # MONAI's own
def test_plain_monai(capsys):
    script = runpy.run_path(str(EXAMPLES / "plain_monai.py"))
    scores = script["main"](["--steps", "2", "--cases", "2", "--patch", "16"])
    assert list(scores) == ["Dice", "CC-Dice", "lesions found", "findings that are lesions"]
    assert all(0 <= score <= 1 for score in scores.values())
    assert "lesions found" in capsys.readouterr().out


def fabric(folder, processes):
    """Weights after two steps, and what the script printed."""
    file = folder / f"{processes}.pt"
    words = ("--processes", processes, "--steps", 2, "--side", 16, "--scans", 2, "--save", file)
    command = [sys.executable, EXAMPLES / "fabric_ddp.py", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return torch.load(file, weights_only=True)["network"], done.stdout


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_learn_what_one_learns(tmp_path):
    (one, said_by_one), (two, said_by_two) = fabric(tmp_path, 1), fabric(tmp_path, 2)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    assert scores(said_by_one) == scores(said_by_two)


def scores(text):
    found = [line.split() for line in text.splitlines() if "CC-Dice" in line or "lesions found" in line]
    assert len(found) == 2  # the first process alone prints
    return found
