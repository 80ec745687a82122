"""Agreement with the reference implementations, which need not be installed."""

import math
import os

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from nnunet_imbal.metrics import (
    BRATS2023_RULES,
    cc_dice,
    lesionwise_brats2023,
    lesionwise_brats_mets2026,
    panoptic_quality,
)
from nnunet_imbal.metrics.cc_dice import dice_in_cells
from numba_kernels import connected_components, nearest_component

KINDS = [
    "random",
    pytest.param(
        "patient",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif("OPEN_MS_DATA" not in os.environ, reason="OPEN_MS_DATA: no folder of real masks given"),
        ],
    ),
]


def _check(ours, theirs):
    theirs = [math.nan if value is None else value for value in theirs]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_panoptica(golden, kind):
    for case, scores in golden("panoptica", kind):
        # in 2-D panoptica joins face neighbours only
        neighbours = 4 if case.pred.ndim == 2 else 26
        for words, theirs in scores.items():
            matcher, metric, threshold = words.split()
            ours = panoptic_quality(
                case.pred,
                case.ref,
                metric=metric,
                threshold=float(threshold),
                matcher=matcher,
                connectivity=neighbours,
            )
            counts = ours.true_positives, ours.false_positives, ours.false_negatives
            assert counts == (theirs["tp"], theirs["fp"], theirs["fn"])
            names = {"rq": "rq", "sq": "sq_iou", "pq": "pq", "sq_dsc": "sq_dsc", "pq_dsc": "pq_dsc"}
            _check([getattr(ours, name) for name in names.values()], [theirs[name] for name in names])


@pytest.mark.parametrize("kind", KINDS)
def test_brats_2023(golden, kind):
    for case, tasks in golden("brats2023", kind):
        for task, theirs in tasks.items():
            ours = lesionwise_brats2023(*case, BRATS2023_RULES[task])
            _check([getattr(ours, name) for name in theirs], theirs.values())


@pytest.mark.parametrize("kind", KINDS)
def test_brats_mets_2026(golden, kind):
    for case, theirs in golden("mets2026", kind):
        ours = lesionwise_brats_mets2026(*case)
        _check([getattr(ours, name) for name in theirs], theirs.values())


@pytest.mark.parametrize("kind", KINDS)
def test_cc_metrics(golden, kind):
    """CCMetrics leaves voxels between equally near lesions to scipy; everything else must agree."""
    for case, theirs in golden("ccmetrics", kind):
        ours = cc_dice(case.pred, case.ref)
        if not len(ours.components):
            _check([ours.mean(ignore_empty=False)], [theirs["mean"]])
            continue
        lesions, count = connected_components(case.ref)
        distances, nearest = distance_transform_edt(lesions == 0, return_indices=True)
        scipy_cells = lesions[tuple(nearest)]
        _check(dice_in_cells(case.pred, case.ref, scipy_cells, count), theirs["components"])
        disputed = case.pred & (nearest_component(lesions) != scipy_cells)
        if not disputed.any():
            _check([*ours.components, ours.mean()], [*theirs["components"], theirs["mean"]])
        for voxel in np.argwhere(disputed):
            number = nearest_component(lesions)[tuple(voxel)]
            away = np.sqrt(((np.argwhere(lesions == number) - voxel) ** 2).sum(axis=1)).min()
            assert away == distances[tuple(voxel)]


def test_golden_row(row):
    by_iou, by_dsc = panoptic_quality(*row), panoptic_quality(*row, metric="dsc")
    assert (by_iou.true_positives, by_iou.false_positives, by_iou.false_negatives) == (1, 2, 2)
    _check([by_iou.rq, by_iou.sq_iou, by_iou.pq, by_iou.pq_dsc], [1 / 3, 0.75, 0.25, 2 / 7])
    assert (by_dsc.true_positives, by_dsc.false_positives, by_dsc.false_negatives) == (2, 1, 1)
    _check([by_dsc.rq, by_dsc.sq_iou, by_dsc.pq], [2 / 3, 0.541667, 0.361111])
    _check([by_dsc.sq_dsc, by_dsc.pq_dsc], [0.678571, 0.452381])
    _check([*cc_dice(*row).components, cc_dice(*row).mean()], [0.75, 0, 0.5, 0.416667])


def test_golden_row_lesionwise(row):
    old = lesionwise_brats2023(*row, (1, 1, 1), BRATS2023_RULES["MET"])
    _check([lesion.dice for lesion in old.lesions], [6 / 7, 0.4])
    assert [lesion.hd95_mm for lesion in old.lesions] == [1, 4]
    _check([old.dice, old.hd95_mm], [0.419048, (1 + 4 + 374) / 3])
    new = lesionwise_brats_mets2026(*row, (1, 1, 1), volume_threshold=2)
    _check([new.dice, new.nsd, new.hd95_mm], [0.452381, 0.666667, 124.9])
    assert (new.large_f1, new.small_f1, new.false_positives) == (0.8, 0, 1)
