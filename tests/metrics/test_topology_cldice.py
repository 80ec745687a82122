import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.morphology import skeletonize

from nnunet_imbal.metrics import cldice

PAIRS = st.tuples(*[st.integers(1, 6)] * 3).flatmap(lambda shape: st.tuples(*[hnp.arrays(bool, shape)] * 2))


def bar():
    mask = np.zeros((5, 9), bool)
    mask[1:4, 1:8] = True
    return mask


def toy():
    """A thick vessel that goes on as a thin one; the prediction lacks a voxel of the thin one."""
    truth = np.zeros((5, 5, 10), bool)
    truth[1:4, 1:4, 1:5] = truth[2, 2, 5:9] = True
    found = truth.copy()
    found[2, 2, 6] = False
    return found, truth


def naive(pred, ref):
    """Voxel by voxel along the centre lines of scikit-image."""
    covered = []
    for vessel, other in ((pred, ref), (ref, pred)):
        line = [tuple(voxel) for voxel in np.argwhere(skeletonize(vessel, method="lee"))]
        covered.append(sum(bool(other[voxel]) for voxel in line) / len(line) if line else math.nan)
    return covered


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_equals_naive_twin(pair):
    result = cldice(*pair, compat="skimage-0.26")
    np.testing.assert_equal([result.precision, result.sensitivity], naive(*pair))


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_bounds_and_symmetry(pair):
    pred, ref = pair
    there, back = cldice(pred, ref), cldice(ref, pred)
    np.testing.assert_equal([there.precision, there.sensitivity], [back.sensitivity, back.precision])
    np.testing.assert_equal(there.score, back.score)
    if pred.any() and ref.any():
        assert 0 <= there.score <= 1
        assert cldice(ref, ref).score == 1
    else:
        np.testing.assert_equal(there.score, 0.0 if pred.any() or ref.any() else math.nan)


def test_steps_of_two_voxels_and_empty_rims_do_not_matter():
    rng = np.random.default_rng(0)
    for _ in range(20):
        pair = rng.random((2, 5, 6, 7)) < 0.6
        assert cldice(*(np.pad(mask, ((2, 0), (4, 1), (0, 3))) for mask in pair)) == cldice(*pair)


def test_one_slice_of_a_volume_is_no_picture():
    """Thinning treats a volume of one slice as 2-D, so a plate must not be cut out of its volume."""
    plate = np.zeros((3, 7, 9), bool)
    plate[1, 1:6, 1:8] = True
    other = np.roll(plate, 3, axis=2)
    result = cldice(plate, other, compat="skimage-0.26")
    np.testing.assert_equal([result.precision, result.sensitivity], naive(plate, other))
    flat = cldice(plate[1:2], other[1:2], compat="skimage-0.26")
    np.testing.assert_equal([flat.precision, flat.sensitivity], naive(plate[1:2], other[1:2]))


def test_gap_in_a_bar():
    broken = bar()
    broken[:, 4] = False
    result = cldice(broken, bar())
    assert (result.precision, result.sensitivity) == (1, pytest.approx(5 / 6))
    assert result.score == pytest.approx(10 / 11)


def test_toy_volume():
    found, truth = toy()
    assert cldice(found, truth).score == pytest.approx(12 / 13)
    found[0, 0, 9] = True  # a stray voxel is a piece of centre line
    assert cldice(found, truth).score == pytest.approx(0.827586, abs=1e-6)


def test_calibre_does_not_matter_but_gaps_do():
    """A wall off by a voxel is forgiven, a gap costs the same in thick and thin vessels."""
    volumes = []
    for radius in (0, 1, 3):
        truth = np.zeros((11, 11, 40), bool)
        truth[5 - radius : 6 + radius, 5 - radius : 6 + radius, 4:36] = True
        cut = truth.copy()
        cut[:, :, 20:24] = False
        volumes.append(cldice(cut, truth).sensitivity)
        assert cldice(np.roll(truth, 1, axis=1) | truth, truth).sensitivity == 1
    assert max(volumes) - min(volumes) < 0.05


def test_nothing_vanishes_unless_wished():
    """A 2 x 2 x 2 block has no centre line in scikit-image."""
    block = np.pad(np.ones((2, 2, 2), bool), 1)
    assert cldice(block, block).score == 1
    assert math.isnan(cldice(block, block, compat="skimage-0.26").score)


@pytest.mark.parametrize(
    ("pred", "ref", "words"),
    [
        (np.zeros((3, 3), bool), np.zeros((3, 4), bool), r"\(3, 3\) and reference \(3, 4\)"),
        (np.zeros((3, 3)), np.zeros((3, 3), bool), "float64"),
        (np.zeros(3, bool), np.zeros(3, bool), "2-D or 3-D"),
    ],
)
def test_bad_input_is_refused(pred, ref, words):
    with pytest.raises(ValueError, match=words):
        cldice(pred, ref)
