import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from nnunet_imbal.metrics import (
    dice,
    f1_score,
    hd95,
    match_lesions,
    recall_by_size,
    surface_dice,
    surface_distances,
)

masks = hnp.arrays(bool, st.tuples(*[st.integers(1, 5)] * 3))


def _pair(shape):
    return st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))


pairs = st.tuples(*[st.integers(1, 5)] * 3).flatmap(_pair)


def _row(*voxels):
    row = np.zeros((1, 1, 16), bool)
    row[..., list(voxels)] = True
    return row


def _blobs(rng, shape, count=5):
    mask = np.zeros(shape, bool)
    for _ in range(count):
        start = [rng.integers(0, n) for n in shape]
        mask[tuple(slice(a, a + rng.integers(1, 6)) for a in start)] = True
    return mask


# ------------------------------------------------------------------------------------------------------ naive twins


def _naive_border(mask):
    inside = {tuple(v) for v in np.argwhere(mask)}
    steps = [np.eye(mask.ndim, dtype=int)[i] * sign for i in range(mask.ndim) for sign in (1, -1)]
    return [v for v in sorted(inside) if any(tuple(np.add(v, s)) not in inside for s in steps)]


def _naive_distances(mask, other, spacing):
    away = [
        [math.dist(np.multiply(v, spacing), np.multiply(o, spacing)) for o in _naive_border(other)]
        for v in _naive_border(mask)
    ]
    return [min(row, default=math.inf) for row in away]


def _naive_components(mask, reach):
    left, components = {tuple(map(int, v)) for v in np.argwhere(mask)}, []
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, s)) <= reach]
    while left:
        todo, component = [left.pop()], set()
        while todo:
            voxel = todo.pop()
            component.add(voxel)
            near = {tuple(a + b for a, b in zip(voxel, s, strict=True)) for s in steps} & left
            left -= near
            todo += near
        components.append(component)
    return sorted(components, key=min)


# ------------------------------------------------------------------------------------------------------------ golden


def test_golden_row():
    ref, pred = _row(1, 2, 3, 4, 9, 12, 13), _row(1, 2, 3, 6, 13, 14)
    match = match_lesions(pred, ref)
    assert dice(pred, ref) == 8 / 13
    assert [(x.voxels, x.overlap_voxels, x.centroid) for x in match.reference] == [
        (4, 3, (0, 0, 2.5)),
        (1, 0, (0, 0, 9)),
        (2, 1, (0, 0, 12.5)),
    ]
    assert (match.recall, match.precision, match.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert [(x.id, x.voxels, x.centroid) for x in match.false_positives] == [(2, 1, (0, 0, 6))]


def test_golden_surface_of_shifted_boxes():
    ref, pred = np.zeros((2, 20, 20), bool)
    ref[5:10, 5:10], pred[5:10, 8:13] = True, True
    distances = surface_distances(pred, ref, (1.0, 0.5))
    assert len(distances.to_reference) == len(distances.to_prediction) == 16
    assert distances.hausdorff() == 1.5
    assert surface_dice(pred, ref, (1.0, 0.5), 1.5) == 1
    # the far column and two voxels at top and bottom lie 1.5 and 1.0 mm away, the rest at most 0.5 mm or on the border
    assert surface_dice(pred, ref, (1.0, 0.5), 0) == pytest.approx(np.mean(distances.to_reference == 0))


def test_exact_multiples_of_the_spacing_are_within_tolerance():
    ref, pred = _row(0), _row(3)
    assert surface_dice(pred, ref, (1, 1, 0.1), 0.3) == 1  # 3 * 0.1 > 0.3 in binary


# ---------------------------------------------------------------------------------------------------- against others


@settings(max_examples=60, deadline=None)
@given(pairs, st.tuples(*[st.sampled_from((0.5, 1.0, 3.0))] * 3))
def test_surface_distances_equal_naive(pair, spacing):
    pred, ref = pair
    distances = surface_distances(pred, ref, spacing)
    np.testing.assert_allclose(distances.to_reference, _naive_distances(pred, ref, spacing))
    np.testing.assert_allclose(distances.to_prediction, _naive_distances(ref, pred, spacing))


@settings(max_examples=60, deadline=None)
@given(pairs, st.sampled_from((6, 18, 26)))
def test_lesions_equal_naive(pair, connectivity):
    pred, ref = pair
    match = match_lesions(pred, ref, connectivity)
    for found, mask, other in ((match.reference, ref, pred), (match.prediction, pred, ref)):
        expected = _naive_components(mask, {6: 1, 18: 2, 26: 3}[connectivity])
        assert [lesion.id for lesion in found] == list(range(1, len(expected) + 1))
        assert [lesion.voxels for lesion in found] == [len(c) for c in expected]
        assert [lesion.overlap_voxels for lesion in found] == [sum(bool(other[v]) for v in c) for c in expected]
        np.testing.assert_allclose(
            np.reshape([lesion.centroid for lesion in found], (-1, 3)),
            np.reshape([np.mean(list(c), axis=0) for c in expected], (-1, 3)),
        )


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")  # MONAI 1.6 calls its own old option
@pytest.mark.parametrize("shape", [(12, 14, 16), (3, 20, 20), (24, 24)])
@pytest.mark.parametrize("seed", range(4))
def test_surface_metrics_equal_monai(shape, seed):
    rng = np.random.default_rng(seed)
    pred, ref = _blobs(rng, shape), _blobs(rng, shape)
    for spacing in (np.ones(len(shape)), rng.uniform(0.3, 5, len(shape))):
        one_hot = [torch.from_numpy(mask)[None, None] for mask in (pred, ref)]
        options = {"include_background": True, "spacing": spacing.tolist()}
        theirs = compute_hausdorff_distance(*one_hot, percentile=95, **options).item()
        assert hd95(pred, ref, spacing) == pytest.approx(theirs, rel=1e-6)
        for tolerance in (0.0, 1.0, 2.7):
            theirs = compute_surface_dice(*one_hot, class_thresholds=[tolerance], **options).item()
            assert surface_dice(pred, ref, spacing, tolerance) == pytest.approx(theirs, abs=1e-6)


# ---------------------------------------------------------------------------------------------------- laws, empty cases


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_symmetric_bounded_and_perfect_on_itself(pair):
    pred, ref = pair
    spacing = (2.0, 1.0, 0.5)
    for metric in (dice, lambda a, b: surface_dice(a, b, spacing, 1.0), lambda a, b: hd95(a, b, spacing)):
        np.testing.assert_equal(metric(pred, ref), metric(ref, pred))
    if ref.any():
        assert (dice(ref, ref), surface_dice(ref, ref, spacing, 0), hd95(ref, ref, spacing)) == (1, 1, 0)
        assert match_lesions(ref, ref).f1 == 1
        assert 0 <= dice(pred, ref) <= 1
        assert 0 <= surface_dice(pred, ref, spacing, 1.0) <= 1


def test_one_mask_empty():
    empty, full = _row(), _row(3, 4)
    for pred, ref in ((empty, full), (full, empty)):
        assert dice(pred, ref) == 0
        assert surface_dice(pred, ref, (1, 1, 1), 100) == 0
        assert hd95(pred, ref, (1, 1, 1)) == math.inf
        assert match_lesions(pred, ref).f1 == 0
    assert match_lesions(empty, full).recall == 0
    assert math.isnan(match_lesions(empty, full).precision)
    assert math.isnan(match_lesions(full, empty).recall)
    assert match_lesions(full, empty).precision == 0


@pytest.mark.parametrize("shape", [(1, 1, 16), (0, 3, 3), (4, 4)])
def test_both_masks_empty_is_not_defined(shape):
    empty = np.zeros(shape, bool)
    spacing = [1.0] * len(shape)
    match = match_lesions(empty, empty)
    values = [dice(empty, empty), surface_dice(empty, empty, spacing, 1), hd95(empty, empty, spacing)]
    assert all(map(math.isnan, [*values, match.recall, match.precision, match.f1]))
    assert match.reference == match.prediction == ()


def test_f1_of_undefined_parts():
    assert f1_score(math.nan, 0.0) == f1_score(0.0, math.nan) == f1_score(0.0, 0.0) == 0
    assert math.isnan(f1_score(math.nan, math.nan))


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"prediction \(1, 1, 16\) and reference \(1, 1, 15\) differ in shape"):
        dice(_row(1), _row(1)[..., 1:])
    with pytest.raises(ValueError, match="expected bool masks, got int64"):
        match_lesions(_row(1).astype(int), _row(1))
    for spacing in ((1, 1), (1, 1, 0), (1, 1, math.nan), (1, 1, -1)):
        with pytest.raises(ValueError, match="expected 3 positive numbers"):
            hd95(_row(1), _row(1), spacing)
    with pytest.raises(ValueError, match="one length"):
        recall_by_size([1, 2], [True])
    with pytest.raises(ValueError, match="finite"):
        recall_by_size([math.inf], [True])


# ---------------------------------------------------------------------------------------------------- recall by size


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from((1, 2, 3, 5, 8, 13, 21, 1e6)) | st.floats(0.1, 1e4), st.booleans())))
def test_each_lesion_lies_in_exactly_one_bin(lesions):
    volumes, detected = [v for v, _ in lesions], [d for _, d in lesions]
    bins = recall_by_size(volumes, detected)
    assert len(bins) <= 10
    assert sum(b.lesions for b in bins) == len(lesions)
    assert sum(b.detected for b in bins) == sum(detected)
    for i, b in enumerate(bins):
        last = i == len(bins) - 1
        inside = [d for v, d in lesions if b.low <= v and (v <= b.high if last else v < b.high)]
        assert (b.lesions, b.detected) == (len(inside), sum(inside))
        assert b.recall == b.detected / b.lesions


def test_deciles_of_a_hundred():
    bins = recall_by_size(np.arange(1, 101), np.arange(1, 101) > 50)
    assert [b.lesions for b in bins] == [10] * 10
    assert [b.recall for b in bins] == [0] * 5 + [1] * 5
    assert (bins[0].low, bins[-1].high) == (1, 100)


def test_few_or_equal_lesions_share_bins():
    assert recall_by_size([], []) == []
    assert len(recall_by_size([1, 2, 3], [True, False, True])) == 1
    assert len(recall_by_size(range(12), [True] * 12)) == 3
    (only,) = recall_by_size([7.0] * 50, [True] * 25 + [False] * 25)
    assert (only.low, only.high, only.lesions, only.recall) == (7, 7, 50, 0.5)
