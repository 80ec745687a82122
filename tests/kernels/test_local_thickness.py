import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from numba_kernels import local_thickness


def naive_thickness(mask, spacing):
    """Largest of all balls that reach the voxel."""
    out = np.zeros(mask.shape)
    if mask.all() or not mask.any():
        return np.where(mask, np.inf, out)
    inside = np.argwhere(mask)
    radius = ndimage.distance_transform_edt(mask, sampling=spacing)[mask]
    for voxel in inside:
        squared = (((inside - voxel) * spacing) ** 2).sum(axis=1)
        out[tuple(voxel)] = radius[squared <= radius**2 * (1 + 1e-6)].max()
    return out


@given(st.lists(st.integers(0, 9), min_size=2, max_size=3), st.integers(0, 2**32), st.data())
@settings(max_examples=60, deadline=None)
def test_equals_naive_twin(shape, seed, data):
    density = data.draw(st.sampled_from([0.0, 0.5, 0.9, 0.98, 1.0]))
    steps = st.sampled_from([0.5, 0.7, 1.0, 3.0])
    spacing = data.draw(st.lists(steps, min_size=len(shape), max_size=len(shape)))
    mask = np.random.default_rng(seed).random(shape) < density
    before = mask.copy()
    thickness = local_thickness(mask, spacing)
    assert thickness.dtype == np.float32
    assert thickness.flags.c_contiguous
    np.testing.assert_allclose(thickness, naive_thickness(mask, spacing), rtol=1e-6)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.7, 1.3, 2.9)])
def test_equals_naive_twin_on_smooth_objects(spacing):
    rng = np.random.default_rng(0)
    for _ in range(15):
        mask = ndimage.gaussian_filter(rng.standard_normal(rng.integers(2, 13, 3)), 2) > -0.02
        np.testing.assert_allclose(local_thickness(mask, spacing), naive_thickness(mask, spacing), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (1, 1, 1), (1, 5, 4), (5, 1, 4), (5, 4, 1), (0, 3, 3)])
def test_empty_and_full(shape):
    assert (local_thickness(np.zeros(shape, bool)) == 0).all()
    assert (local_thickness(np.ones(shape, np.uint8)) == np.inf).all()


def test_checkerboard_and_single_voxel():
    board = np.indices((4, 5, 6)).sum(axis=0) % 2
    np.testing.assert_array_equal(local_thickness(board), board)
    single = np.zeros((5, 5), bool)
    single[2, 2] = True
    np.testing.assert_array_equal(local_thickness(single, (3.0, 2.0)), 2 * single)


def test_rod_of_known_radius():
    y, x = np.indices((31, 31)) - 15
    rod = np.broadcast_to(np.hypot(y, x) < 10, (5, 31, 31))
    thickness = local_thickness(rod)
    assert thickness[2, 15, 15] == 10
    assert thickness[rod].min() > 9


def test_vessel_that_narrows():
    mask = np.zeros((5, 5, 10), bool)
    mask[1:4, 1:4, 1:5] = mask[2, 2, 5:9] = True
    thickness = local_thickness(mask)
    assert (thickness[:, :, :5][mask[:, :, :5]] == 2).all()
    np.testing.assert_array_equal(thickness[2, 2, 5:], [2, 1, 1, 1, 0])


@pytest.mark.parametrize("layout", ["F", "strided", "read-only"])
def test_memory_order_does_not_matter(layout):
    values = (np.random.default_rng(1).random((5, 6, 7)) < 0.9).astype(np.int16)
    mask = values.copy()
    if layout == "F":
        mask = np.asfortranarray(mask)
    elif layout == "strided":
        mask = np.repeat(mask, 2, axis=1)[:, ::2]
    else:
        mask.flags.writeable = False
    np.testing.assert_array_equal(local_thickness(mask), local_thickness(values))


@pytest.mark.parametrize(
    ("mask", "spacing", "error", "words"),
    [
        (np.zeros((3, 3)), None, TypeError, "float64"),
        (np.zeros(3, int), None, ValueError, "2-D or 3-D"),
        (np.zeros((3, 3), int), (1.0,), ValueError, "2 positive numbers"),
    ],
)
def test_bad_input_is_refused(mask, spacing, error, words):
    with pytest.raises(error, match=words):
        local_thickness(mask, spacing)
