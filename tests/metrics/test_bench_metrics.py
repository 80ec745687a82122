"""The committed page of the benchmark belongs to its committed numbers."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_metrics")


def test_page_is_made_from_the_numbers(bench):
    result = json.loads((BENCHMARKS / "results" / "metrics.json").read_text(encoding="utf-8"))
    assert bench.page(result) == (BENCHMARKS / "results" / "metrics.md").read_text(encoding="utf-8")


def test_large_case_has_what_its_page_says(case_maker):
    case = case_maker.large_case((120, 120, 80), lesions=10)
    assert case.ref.shape == case.pred.shape == (120, 120, 80)
    assert 0 < case.ref.sum() < 10 * 3000
    assert np.array_equal(case.ref, case_maker.large_case((120, 120, 80), lesions=10).ref)
