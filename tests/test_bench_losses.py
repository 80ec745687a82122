"""The benchmarks of the losses: peers compute what they claim, data are as said, pages come from the numbers."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_imbal.losses import blob_ce_loss, blob_dice_loss, cc_dice_ce_loss
from nnunet_imbal.ops import component_labels

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Function name -> script as a module, imported as Python would start it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # the script sets it; this puts it back
    yield importlib.import_module
    for name in ("bench_losses", "lesion_gradients", "_machine"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_peers_compute_the_same_losses(load):
    script = load("bench_losses")
    labels = script.lesion_labels((24, 24, 24), 2, 5, batch=1)
    logits = torch.randn(1, 2, 24, 24, 24)
    target = labels == 1
    odds = logits[:, 1:] - logits[:, :1]
    errors = torch.nn.functional.binary_cross_entropy_with_logits(odds, target.float(), reduction="none")
    blob = blob_dice_loss(odds.sigmoid(), target, compat="released") + blob_ce_loss(errors, target, compat="released")
    assert script.blob_loop(logits, labels).item() == pytest.approx(blob.item(), rel=1e-5)
    cells = cc_dice_ce_loss(errors, target, smooth_nr=0, smooth_dr=0).item()
    assert script.cc_loop(logits, labels).item() == pytest.approx(cells, rel=1e-5)
    assert script.cc_scatter(logits, labels).item() == pytest.approx(cells, rel=1e-5)


@pytest.mark.slow
def test_lesions_are_as_many_as_said(load):
    labels = load("bench_losses").lesion_labels((48, 40, 56), 4, 30)
    for sample in labels:
        assert component_labels(sample[None] > 0).max() == 30
    assert labels.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "result"), [("bench_losses", "losses"), ("lesion_gradients", "lesion_gradients")])
def test_committed_pages_come_from_the_committed_numbers(load, script, result):
    path = BENCHMARKS / "results" / f"{result}.json"
    assert load(script).markdown(json.loads(path.read_text())) == path.with_suffix(".md").read_text()


def test_gradient_shares_of_a_small_and_a_large_lesion(load):
    script = load("lesion_gradients")
    mask = np.zeros((20, 24, 40), bool)
    mask[4:16, 6:18, 4:16], mask[8:10, 10:12, 30:32] = True, True
    logits, labels, _ = script.typical_prediction(mask)
    assert logits.sigmoid()[labels == 2].max() < 0.5 < logits.sigmoid()[labels == 1].max()
    small = {name: script.gradient_shares(logits, labels, name)[1] for name in script.LOSSES}
    assert small["Dice"] < 0.02
    assert small["cc_dice"] > 10 * small["Dice"]
