"""The metrics give hand-computed scores and add up the way MONAI's own do."""

import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric

from monai_ext.metrics import (
    CCDiceMetric,
    LesionF1Metric,
    LesionPanopticQualityMetric,
    LesionwiseDiceMetric,
    LesionwiseHD95Metric,
)
from nnunet_imbal.errors import ConfigError, LabelError
from nnunet_imbal.labels import to_one_hot

NAN = float("nan")


def row(*voxels, length=16):
    out = torch.zeros(1, 1, 1, length)
    out[..., list(voxels)] = 1
    return out


TRUTH, FOUND, EMPTY = row(1, 2, 3, 4, 9, 12, 13), row(1, 2, 3, 6, 13, 14), row()


def same(got, expected):
    torch.testing.assert_close(got, torch.tensor(expected), equal_nan=True, rtol=0, atol=1e-6)


def test_golden_row():
    # Cells 0-6, 7-10 and 11-15; Dice 6/8, 0 and 2/4.
    same(CCDiceMetric()(FOUND, TRUTH), [[(0.75 + 0 + 0.5) / 3]])
    assert round(CCDiceMetric()(FOUND, TRUTH).item(), 6) == 0.416667
    for name in ("f1", "recall", "precision"):
        same(LesionF1Metric(metric_name=name)(FOUND, TRUTH), [[2 / 3]])


@pytest.mark.parametrize(
    ("found", "truth", "cc_dice", "cc_dice_scored", "f1", "recall", "precision"),
    [
        (EMPTY, EMPTY, NAN, 1.0, NAN, NAN, NAN),
        (FOUND, EMPTY, NAN, 0.0, 0.0, NAN, 0.0),
        (EMPTY, TRUTH, 0.0, 0.0, 0.0, 0.0, NAN),
        (TRUTH, TRUTH, 1.0, 1.0, 1.0, 1.0, 1.0),
    ],
    ids=["nothing", "false alarms", "missed", "exact"],
)
def test_edge_cases(found, truth, cc_dice, cc_dice_scored, f1, recall, precision):
    same(CCDiceMetric()(found, truth), [[cc_dice]])
    same(CCDiceMetric(ignore_empty=False)(found, truth), [[cc_dice_scored]])
    for name, value in {"f1": f1, "recall": recall, "precision": precision}.items():
        same(LesionF1Metric(metric_name=name)(found, truth), [[value]])


def test_golden_row_of_panoptic_quality():
    for name, value in {"rq": 1 / 3, "sq_iou": 0.75, "pq": 0.25, "sq_dsc": 6 / 7, "pq_dsc": 2 / 7}.items():
        same(LesionPanopticQualityMetric(metric_name=name)(FOUND, TRUTH), [[value]])
    by_dice = LesionPanopticQualityMetric(matching_metric="dsc", matcher="hungarian")
    same(by_dice(FOUND, TRUTH), [[13 / 36]])
    same(LesionPanopticQualityMetric()(EMPTY, EMPTY), [[NAN]])
    same(LesionPanopticQualityMetric()(FOUND, EMPTY), [[0.0]])


def test_golden_row_of_the_challenges():
    same(LesionwiseDiceMetric("brats2023-met")(FOUND, TRUTH), [[(6 / 7 + 0.4) / 3]])
    assert LesionwiseHD95Metric("brats2023-met")(FOUND, TRUTH).item() == pytest.approx(379 / 3)
    same(LesionwiseDiceMetric("brats-mets2026")(FOUND, TRUTH), [[NAN]])  # no lesion of 20 mm³
    tall = {"rule": "brats-mets2026", "spacing": (1, 20)}  # every voxel is large
    same(LesionwiseDiceMetric(**tall)(FOUND, TRUTH), [[(6 / 7 + 0 + 0.5 + 0) / 4]])
    same(LesionwiseDiceMetric("brats2023-gli")(EMPTY, EMPTY), [[1.0]])
    same(LesionwiseHD95Metric("brats2023-gli")(FOUND, EMPTY), [[374.0]])


@pytest.mark.parametrize(
    "metric",
    [CCDiceMetric, LesionF1Metric, LesionPanopticQualityMetric, LesionwiseDiceMetric, LesionwiseHD95Metric],
)
def test_encodings_agree(metric, label_maps):
    truth, found = label_maps(), label_maps().flip(2)
    expected = metric(num_classes=3)(found, truth)
    assert expected.shape == (2, 2)
    one_hot = to_one_hot(found, 3), to_one_hot(truth, 3)
    assert torch.equal(metric(include_background=False)(*one_hot), expected)
    assert torch.equal(metric(num_classes=3)(one_hot[0].float(), truth), expected)
    assert torch.equal(metric(include_background=True)(*one_hot)[:, 1:], expected)
    assert torch.equal(metric()(*one_hot)[:, 1:], expected)


@pytest.mark.parametrize("metric", [CCDiceMetric, LesionF1Metric])
def test_lists_of_meta_tensors_give_plain_scores(metric, label_maps):
    truth, found = label_maps(), label_maps().flip(2)
    listed = metric(num_classes=3)([MetaTensor(each) for each in found], [MetaTensor(each) for each in truth])
    assert type(listed) is torch.Tensor
    assert torch.equal(listed, metric(num_classes=3)(found, truth))


def test_one_component_is_monais_dice():
    truth, found = torch.zeros(2, 1, 1, 8, 8, 8)
    truth[..., 2:6, 2:6, 2:6], found[..., 3:7, 2:6, 2:5] = 1, 1
    torch.testing.assert_close(CCDiceMetric()(found, truth), DiceMetric()(found, truth))


@pytest.mark.filterwarnings("ignore:Voronoi computation is running on CPU:UserWarning")
def test_monais_own_per_component_dice(label_maps):
    truth, found = (label_maps() > 0).long(), (label_maps().roll(1, 2) > 0).long()
    pair = to_one_hot(found, 2).float(), to_one_hot(truth, 2).float()
    theirs = DiceMetric(include_background=False, per_component=True)(*pair)
    # Voxels as near to one lesion as to another may go to either.
    torch.testing.assert_close(CCDiceMetric(num_classes=2)(found, truth), theirs, rtol=0, atol=0.02)


def test_spacing_and_connectivity():
    truth, found = torch.zeros(2, 1, 1, 3, 4)
    truth[..., 0, 0] = truth[..., 2, 3] = found[..., 0, 0] = found[..., 2, 3] = found[..., 2, 0] = 1
    # The false alarm at (2, 0) harms the lesion at (0, 0), or the one at (2, 3) if it is nearer in mm.
    assert CCDiceMetric()(found, truth).item() == pytest.approx((2 / 3 + 1) / 2)
    found[..., 2, 1] = 1
    assert CCDiceMetric()(found, truth).item() == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert CCDiceMetric(spacing=(3, 1))(found, truth).item() == pytest.approx((1 + 2 / 4) / 2)
    truth = torch.eye(4)[None, None]
    assert LesionF1Metric("", "recall", connectivity=4)(row(0, length=4) * truth, truth).item() == 0.25
    assert LesionF1Metric("", "recall")(row(0, length=4) * truth, truth).item() == 1


@pytest.mark.parametrize("metric", [CCDiceMetric, LesionF1Metric])
def test_aggregate_reset_and_reductions(metric):
    scores = metric(num_classes=3, get_not_nans=True)
    scores(TRUTH, TRUTH)
    scores(torch.cat([EMPTY, EMPTY]), torch.cat([EMPTY, 2 * TRUTH]))
    same(scores.get_buffer(), [[1, NAN], [NAN, NAN], [NAN, 0.0]])
    value, count = scores.aggregate()
    assert (value.item(), count.item()) == (0.5, 2)
    same(scores.aggregate("mean_batch")[0], [1.0, 0.0])
    same(scores.aggregate("mean_batch")[1], [1.0, 1.0])
    same(scores.aggregate("none")[0], [[1, NAN], [NAN, NAN], [NAN, 0.0]])
    scores.reset()
    with pytest.raises(ValueError, match="nothing to aggregate"):
        scores.aggregate()


def test_not_nans_only_on_request():
    metric = CCDiceMetric(reduction="sum")
    metric(TRUTH, TRUTH)
    assert metric.aggregate().item() == 1


@pytest.mark.parametrize("metric", [CCDiceMetric(), LesionF1Metric()])
def test_bad_input_is_named(metric):
    with pytest.raises(LabelError, match=r"0\.3.*AsDiscrete"):
        metric(0.3 * FOUND, TRUTH)
    with pytest.raises(LabelError, match="one grid"):
        metric(FOUND, TRUTH[..., :8])
    with pytest.raises(LabelError, match="both"):
        metric(FOUND)
    with pytest.raises(ConfigError, match="num_classes"):
        type(metric)(num_classes=1)(FOUND, TRUTH)


def test_unknown_score_is_named():
    with pytest.raises(ConfigError, match="recall"):
        LesionF1Metric(metric_name="sensitivity")


@pytest.mark.parametrize(
    ("metric", "wrong"),
    [
        (LesionPanopticQualityMetric, {"metric_name": "iou"}),
        (LesionPanopticQualityMetric, {"matcher": "best"}),
        (LesionPanopticQualityMetric, {"threshold": -1}),
        (LesionwiseDiceMetric, {"rule": "brats2024-met"}),
    ],
)
def test_wrong_words_of_lesion_metrics(metric, wrong):
    with pytest.raises(ConfigError, match=r"must be one of|expected a score"):
        metric(**wrong)


def test_panoptic_quality_adds_up_over_batches():
    metric = LesionPanopticQualityMetric(get_not_nans=True)
    for found, truth in ((FOUND, TRUTH), (TRUTH, TRUTH), (EMPTY, EMPTY)):
        metric(found, truth)
    value, count = metric.aggregate()
    assert (value.item(), count.item()) == (0.625, 2)
