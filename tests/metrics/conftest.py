"""The cases on which the reference implementations were run, see ``benchmarks/golden_metrics.py``."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).with_name("golden")
MAKER = Path(__file__).parents[2] / "benchmarks" / "_metric_cases.py"


@pytest.fixture(scope="session")
def case_maker():
    """The module that makes the cases."""
    spec = importlib.util.spec_from_file_location("metric_cases", MAKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def golden(case_maker):
    """Function (reference, "random" or "patient") -> iterator of (case, what the reference says about it)."""

    def iterate(reference, kind):
        for name, content in json.loads((GOLDEN / f"{reference}.json").read_text())["cases"].items():
            source, number = name.split()
            if source != kind:
                continue
            folder = os.environ.get("OPEN_MS_DATA")
            random = source == "random"
            case = case_maker.random_case(int(number)) if random else case_maker.real_case(folder, int(number))
            assert case_maker.checksum(case) == content["checksum"], f"{name}: other voxels than in the golden file"
            yield case, content["scores"]

    return iterate


@pytest.fixture
def row():
    """Truth and prediction of the worked example: one row of 16 voxels in 3-D, 1 mm."""
    truth, found = np.zeros((2, 1, 1, 16), bool)
    truth[..., [1, 2, 3, 4, 9, 12, 13]] = found[..., [1, 2, 3, 6, 13, 14]] = True
    return found, truth
