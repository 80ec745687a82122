"""The benchmark of iterations knows what ImbalTrainer chooses, and the pages tell whether the bar is met."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from nnunet_imbal.fingerprint import FILE_NAME, load_fingerprint
from nnunet_imbal.recipe import choose_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = ("iteration_time", "_machine", "_vessel_classes")


@pytest.fixture
def script(monkeypatch):
    """The script as a module, imported as Python would start it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("iteration_time")
    for name in NAMES:
        sys.modules.pop(name, None)


def chosen(script, labels, folder):
    script.save_fingerprint(labels, folder)
    return [term.loss for term in choose_recipe(load_fingerprint(folder / FILE_NAME)).config.terms]


def test_lesions_and_vessels_call_for_different_terms(script, tmp_path):
    assert chosen(script, script.lesion_labels(48, 2), tmp_path) == ["cc_dice"]
    assert chosen(script, script.vessel_labels(48, 2), tmp_path) == ["cldice"]


def test_the_middle_of_a_scan(script):
    scan = np.zeros((6, 8, 8), np.uint8)
    scan[2:4, 3:5, 3:5] = 1
    assert script._middle(scan, 2).all()
    with pytest.raises(ValueError, match=r"a patch of 7 voxels .* does not fit"):
        script._middle(scan, 7)


def test_page_names_what_was_chosen(script):
    process = {"components": [1], "chosen": ["cc_dice", "cldice"], "ms": {"nnUNetTrainer": [100.0]}}
    process["ms"]["ImbalTrainer"] = [109.0]
    row = {"patch": 48, "labels": "vessels", "classes": 3, "batch": 1, "processes": [process]}
    assert "| ImbalTrainer: cc_dice + cldice | **1.090** |" in script._lines(row)[1]
    process["chosen"] = []
    assert "| ImbalTrainer: no term | **1.090** |" in script._lines(row)[1]


def test_the_recipe_costs_at_most_fifteen_percent():
    result = json.loads((BENCHMARKS / "results" / "iteration_time_recipe.json").read_text(encoding="utf-8"))
    for row in result["rows"]:
        for process in row["processes"]:
            stock, ours = (np.median(process["ms"][name]) for name in ("nnUNetTrainer", "ImbalTrainer"))
            assert ours <= 1.15 * stock, row["labels"]
