"""The example scripts run as they are, only shorter."""

import math
import runpy
from pathlib import Path

import pytest

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
