"""The topology metrics give the numbers of the functions behind them, class by class, and add up."""

import pytest
import torch

from monai_ext.metrics import BettiErrorMetric, ClDiceMetric
from nnunet_imbal.errors import ConfigError, LabelError
from nnunet_imbal.metrics import betti_errors, cldice

NAN = float("nan")


def same(got, expected):
    torch.testing.assert_close(got, torch.tensor(expected), equal_nan=True, rtol=0, atol=1e-6)


def bars():
    """A bar and one with a gap."""
    truth = torch.zeros(1, 1, 5, 9)
    truth[..., 1:4, 1:8] = 1
    found = truth.clone()
    found[..., 4] = 0
    return found, truth


def test_golden_bar():
    found, truth = bars()
    same(ClDiceMetric()(found, truth), [[10 / 11]])
    same(ClDiceMetric(metric_name="precision")(found, truth), [[1.0]])
    same(ClDiceMetric(metric_name="sensitivity")(found, truth), [[5 / 6]])
    assert [BettiErrorMetric(dimension=k)(found, truth).item() for k in (0, 1, 2)] == [1, 0, 0]


@pytest.mark.parametrize("shape", [(12, 14), (7, 8, 9)])
def test_equals_the_functions_behind(shape):
    generator = torch.Generator().manual_seed(0)
    found, truth = (torch.randint(0, 3, (2, 1, *shape), generator=generator) for _ in range(2))
    clear, errors = (
        ClDiceMetric(num_classes=3)(found, truth),
        BettiErrorMetric(num_classes=3, dimension=1)(found, truth),
    )
    assert clear.shape == errors.shape == (2, 2)
    for b, c in ((0, 0), (0, 1), (1, 0), (1, 1)):
        pair = [(labels[b, 0] == c + 1).numpy() for labels in (found, truth)]
        assert clear[b, c].item() == pytest.approx(cldice(*pair).score)
        assert errors[b, c].item() == betti_errors(*pair).b1


def test_empty_masks():
    found, truth = bars()
    empty = torch.zeros_like(truth)
    for name, both, no_truth, no_finding in (
        ("cldice", NAN, 0.0, 0.0),
        ("precision", NAN, 0.0, NAN),
        ("sensitivity", NAN, NAN, 0.0),
    ):
        metric = ClDiceMetric(metric_name=name)
        same(metric(empty, empty), [[both]])
        same(metric(found, empty), [[no_truth]])
        same(metric(empty, truth), [[no_finding]])
    same(BettiErrorMetric()(empty, empty), [[NAN]])
    same(BettiErrorMetric(ignore_empty=False)(empty, empty), [[0.0]])
    same(BettiErrorMetric()(found, empty), [[2.0]])
    same(BettiErrorMetric()(empty, truth), [[1.0]])


def test_neighbourhood_is_passed_on():
    diagonal, whole = torch.eye(3)[None, None], torch.ones(1, 1, 3, 3)
    same(BettiErrorMetric()(diagonal, whole), [[0.0]])
    same(BettiErrorMetric(connectivity=4)(diagonal, whole), [[2.0]])


def test_adds_up_over_batches():
    found, truth = bars()
    empty = torch.zeros_like(truth)
    clear, pieces = ClDiceMetric(get_not_nans=True), BettiErrorMetric(reduction="sum")
    for pred, ref in ((found, truth), (truth, truth), (empty, empty)):
        clear(y_pred=pred, y=ref)
        pieces(y_pred=pred, y=ref)
    mean, counted = clear.aggregate()
    assert mean.item() == pytest.approx((10 / 11 + 1) / 2)
    assert counted.item() == 2
    assert pieces.aggregate().item() == 1


def test_bad_input_is_refused():
    found, truth = bars()
    with pytest.raises(ConfigError, match="cldice, precision, sensitivity, got 'f1'"):
        ClDiceMetric(metric_name="f1")
    with pytest.raises(ConfigError, match=r"pieces.*got 3"):
        BettiErrorMetric(dimension=3)
    with pytest.raises(LabelError, match=r"0 and 1, got 0\.5"):
        ClDiceMetric()(found / 2, truth)
    with pytest.raises(LabelError, match="one grid"):
        BettiErrorMetric()(found[..., :-1], truth)
    with pytest.raises(ValueError, match="4 or 8, got 26"):
        BettiErrorMetric(connectivity=26)(found, truth)
