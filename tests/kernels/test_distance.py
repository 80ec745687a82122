import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from numba_kernels import distance


def naive_distance(mask, spacing):
    """To the nearest voxel outside, by looking at all of them."""
    out = np.zeros(mask.shape)
    outside = np.argwhere(~mask)
    for voxel in np.argwhere(mask):
        squared = (((outside - voxel) * spacing) ** 2).sum(axis=1)
        out[tuple(voxel)] = np.sqrt(squared.min()) if len(outside) else np.inf
    return out


@given(st.lists(st.integers(0, 9), min_size=2, max_size=3), st.integers(0, 2**32), st.data())
@settings(max_examples=80, deadline=None)
def test_equals_naive_twin(shape, seed, data):
    density = data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    spacing = data.draw(st.lists(st.floats(0.1, 5.0), min_size=len(shape), max_size=len(shape)))
    mask = np.random.default_rng(seed).random(shape) < density
    depth = distance(mask, spacing)
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, naive_distance(mask, spacing), rtol=1e-5)
    signed = distance(mask, spacing, signed=True)
    np.testing.assert_allclose(signed, naive_distance(mask, spacing) - naive_distance(~mask, spacing), rtol=1e-5)


@pytest.mark.parametrize("spacing", [None, (3.0, 0.8, 0.8), (0.7, 1.3, 2.9)])
def test_equals_scipy(spacing):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = ndimage.gaussian_filter(rng.standard_normal(rng.integers(2, 12, 3)), 2) > 0
        mask.flat[:2] = True, False
        expected = ndimage.distance_transform_edt(mask, sampling=spacing)
        np.testing.assert_allclose(distance(mask, spacing), expected, rtol=1e-6)
        outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
        np.testing.assert_allclose(distance(mask, spacing, signed=True), expected - outside, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (1, 1, 1), (1, 5, 4), (5, 1, 4), (5, 4, 1), (0, 3, 3)])
def test_empty_and_full(shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, np.int16)
    assert (distance(empty) == 0).all()
    assert (distance(empty, signed=True) == -np.inf).all()
    assert (distance(full) == np.inf).all()
    assert (distance(full, signed=True) == np.inf).all()


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.uint64, ">i2"])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "read-only"])
def test_dtype_and_memory_order_do_not_matter(dtype, layout):
    values = (np.random.default_rng(1).random((5, 6, 7)) < 0.7).astype(dtype)
    mask = values.copy()
    if layout == "F":
        mask = np.asfortranarray(mask)
    elif layout == "strided":
        mask = np.repeat(mask, 2, axis=0)[::2]
    elif layout == "read-only":
        mask.flags.writeable = False
    np.testing.assert_allclose(distance(mask), ndimage.distance_transform_edt(values != 0), rtol=1e-6)
    np.testing.assert_array_equal(mask, values)


def test_along_a_vessel_that_narrows():
    mask = np.zeros((5, 5, 10), bool)
    mask[1:4, 1:4, 1:5] = mask[2, 2, 5:9] = True
    np.testing.assert_allclose(distance(mask)[2, 2], [0, 1, 2, 2, 2**0.5, 1, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("mask", "spacing", "error", "words"),
    [
        (np.zeros((3, 3)), None, TypeError, "float64"),
        (np.zeros(3, int), None, ValueError, "2-D or 3-D"),
        (np.zeros((3, 3), int), (1.0, 0.0), ValueError, "2 positive numbers"),
    ],
)
def test_bad_input_is_refused(mask, spacing, error, words):
    with pytest.raises(error, match=words):
        distance(mask, spacing)
