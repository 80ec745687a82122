"""The benchmark of SCDL and the label proportion starts, and its page comes from its numbers."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """The script as a module, imported as Python would start it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the script sets it; this puts it back
    yield importlib.import_module("semi_cost")
    for name in ("semi_cost", "iteration_time", "_machine"):
        sys.modules.pop(name, None)


def test_page_tells_what_was_missed(script):
    times = {script.STOCK: [100.0] * 3, "SCDL, balanced": [4.0] * 3, "SCDL, released": [6.0] * 3}
    row = {"labels": "lesions", "classes": 2, "patch": 8, "ms": {**times, "label proportion": [1.0] * 3}}
    page = script.markdown({"machine": script.describe_machine(), "rounds": 3, "rows": [row]})
    assert "| 2 x 8³ | 2 | SCDL, balanced | **4.00 %** | 5 % | 4 [4, 4] | 100 [100, 100] |" in page
    assert "| SCDL, released | **6.00 %** | 5 %, **missed** |" in page


def test_committed_page_comes_from_the_committed_numbers(script):
    result = json.loads(script.RESULT.read_text(encoding="utf-8"))
    assert script.RESULT.with_suffix(".md").read_text(encoding="utf-8") == script.markdown(result)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # nnU-Net's own
def test_terms_are_timed_in_turns(script, monkeypatch):
    for part in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{part}", "")  # the script points them at a folder that vanishes
    times = script.measure("lesions", 32, 1, 0)["ms"]
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys([script.STOCK, *script.TARGETS], 1)
