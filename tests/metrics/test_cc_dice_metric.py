import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monai_ext.metrics import CCDiceMetric
from nnunet_imbal.metrics import cc_dice, dice
from numba_kernels import connected_components

pairs = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def _naive(pred, ref, spacing):
    """Each voxel goes to the lesion of the nearest true voxel, of equally near ones the first in scan order."""
    lesions, count = connected_components(ref)
    places = np.argwhere(ref)
    cells = np.zeros(ref.shape, int)
    for voxel in np.ndindex(ref.shape):
        away = (((places - voxel) * spacing) ** 2).sum(axis=1)
        cells[voxel] = lesions[tuple(places[np.argmin(away)])]
    return [dice(pred & (cells == number), ref & (cells == number)) for number in range(1, count + 1)]


@settings(max_examples=60, deadline=None)
@given(pairs, st.tuples(*[st.sampled_from((1.0, 2.0))] * 3))
def test_equals_naive(pair, spacing):
    pred, ref = pair
    if ref.any():
        np.testing.assert_allclose(cc_dice(pred, ref, spacing).components, _naive(pred, ref, np.array(spacing)))


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_equals_the_monai_metric(pair):
    pred, ref = (torch.from_numpy(mask)[None, None] for mask in pair)
    ours = cc_dice(*pair)
    np.testing.assert_allclose(ours.mean(), CCDiceMetric()(pred, ref).item(), atol=1e-6)
    np.testing.assert_allclose(
        ours.mean(ignore_empty=False), CCDiceMetric(ignore_empty=False)(pred, ref).item(), atol=1e-6
    )


def test_one_lesion_is_plain_dice():
    ref, pred = np.zeros((2, 6, 6), bool)
    ref[1:4, 1:4], pred[2:6, 2:6] = True, True
    assert cc_dice(pred, ref).mean() == dice(pred, ref)


def test_empty_cases():
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert math.isnan(cc_dice(empty, empty).mean())
    assert math.isnan(cc_dice(full, empty).mean())
    assert cc_dice(empty, empty).mean(ignore_empty=False) == 1
    assert cc_dice(full, empty).mean(ignore_empty=False) == 0
    assert cc_dice(empty, full).mean() == 0


def test_wrong_arguments():
    mask = np.ones((2, 2), bool)
    with pytest.raises(ValueError, match="expected bool masks"):
        cc_dice(mask.astype(float), mask)
    with pytest.raises(ValueError, match="spacing"):
        cc_dice(mask, mask, (1, 0))
