"""The benchmark of where maps are made compares equal maps, and its page shows its numbers."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_imbal.labels import to_one_hot
from nnunet_imbal.losses import junction_mask, skeleton_recall_loss

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """The script as a module, imported as Python would start it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the script sets them; this puts them back
    yield importlib.import_module("truth_maps")
    for name in ("truth_maps", "_machine", "_vessel_classes"):
        sys.modules.pop(name, None)


def test_maps_are_what_the_losses_compute(script, label_maps):
    labels = label_maps(batch=2, count=20)
    maps = script.truth_maps(labels, classes=2)
    target = to_one_hot(labels, 3)[:, 1:]
    tubes = torch.cat([maps["tubes"] == 1, maps["tubes"] == 2], 1)
    probs = torch.rand(target.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(skeleton_recall_loss(probs, target, tubes=tubes), skeleton_recall_loss(probs, target))
    assert torch.equal(maps["junctions"], junction_mask(target))
    assert torch.equal(maps["radius"] > 0, labels > 0)


def test_both_places_hand_over_the_same(script, label_maps):
    labels = label_maps(batch=1)
    (patch,) = labels[0].byte().numpy()[None]
    with_maps, alone = (script.Patches(patch, 2, wanted, length=1)[0] for wanted in (True, False))
    assert alone.keys() == {"labels", "seconds"}
    for name, values in script.truth_maps(alone["labels"][None], 2).items():
        assert torch.equal(with_maps[name], values[0])


@pytest.mark.slow
def test_measures_and_writes(script, tmp_path):
    out = tmp_path / "maps.json"
    # In a process of its own: the workers it forks would wait for ever for threads that torch has started here.
    words = f"--patch 32 32 32 --classes 3 --rounds 2 --out {out}".split()
    subprocess.run([sys.executable, BENCHMARKS / "truth_maps.py", *words], check=True, timeout=600)
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert row["seconds"].keys() == set(script.PLACES)
    assert row["bytes"] == {"labels": 32**3, "tubes": 32**3, "radius": 4 * 32**3, "junctions": 32**3}


def test_the_page_shows_the_numbers_of_the_result(script):
    result = BENCHMARKS / "results" / "truth_maps.json"
    page = result.with_suffix(".md").read_text(encoding="utf-8")
    assert page == script.page(json.loads(result.read_text(encoding="utf-8")))
