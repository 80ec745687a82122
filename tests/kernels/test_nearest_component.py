import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from numba_kernels import connected_components, nearest_component


@st.composite
def label_maps(draw):
    shape = draw(st.lists(st.integers(0, 9), min_size=2, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0]))
    return (rng.integers(1, 100, shape) * (rng.random(shape) < density)).astype(np.int16)


@given(label_maps(), st.data())
@settings(max_examples=150, deadline=None)
def test_equals_naive_twin_including_ties(naive, labels, data):
    """Whole multiples of one spacing: nothing is rounded, so the tie rule must hold to the letter."""
    spacing = data.draw(st.lists(st.sampled_from([0.5, 1.0, 1.5]), min_size=labels.ndim, max_size=labels.ndim))
    before = labels.copy()
    cells, distance = nearest_component(labels, spacing, return_distance=True)
    expected, expected_distance = naive.nearest_component(labels, np.asarray(spacing))
    assert cells.dtype == np.int32
    assert distance.dtype == np.float32
    np.testing.assert_array_equal(cells, expected)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-6)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.7, 1.3, 2.9), (5.0, 0.01, 1.0)])
def test_equals_scipy_off_ties(spacing):
    rng = np.random.default_rng(7)
    for _ in range(40):
        shape = rng.integers(2, 20, 3)
        labels, count = connected_components(rng.random(shape) < rng.choice([0.003, 0.03, 0.3]))
        cells, distance = nearest_component(labels, spacing, return_distance=True)
        if count == 0:
            assert np.isinf(distance).all()
            continue
        expected = ndimage.distance_transform_edt(labels == 0, sampling=spacing)
        np.testing.assert_allclose(distance, expected, rtol=1e-6)
        np.testing.assert_array_equal(cells[labels > 0], labels[labels > 0])
        assert_cells_are_nearest(labels, cells, expected, spacing)


def assert_cells_are_nearest(labels, cells, distance, spacing):
    """Wherever a voxel was given to component k, no other component is nearer than k."""
    for k in np.unique(cells):
        own = ndimage.distance_transform_edt(labels != k, sampling=spacing)
        np.testing.assert_allclose(own[cells == k], distance[cells == k], rtol=1e-9, atol=1e-9)


def test_rounded_ties_fall_the_same_way_every_time():
    """Spacings that are no multiples of each other: rounding may decide, chance may not."""
    labels = np.zeros((1, 9, 9), np.int32)
    labels[0, 0, 0], labels[0, 8, 8], labels[0, 0, 8], labels[0, 8, 0] = 1, 2, 3, 4
    spacing = (0.1, 0.3, 0.7)
    first = nearest_component(labels, spacing)
    for _ in range(3):
        np.testing.assert_array_equal(nearest_component(labels, spacing), first)


@pytest.mark.parametrize("shape", [(0, 4), (4, 5), (1, 1, 1), (1, 6, 5), (6, 1, 5), (6, 5, 1), (3, 0, 2), (3, 4, 4)])
def test_without_any_label_nothing_is_near(shape):
    cells, distance = nearest_component(np.zeros(shape, np.uint8), return_distance=True)
    assert cells.shape == distance.shape == shape
    assert not cells.any()
    assert np.isinf(distance).all()


@pytest.mark.parametrize("shape", [(4, 5), (1, 1, 1), (1, 6, 5), (6, 1, 5), (6, 5, 1), (3, 4, 4), (2, 3, 40)])
def test_single_voxel_owns_everything(shape):
    labels = np.zeros(shape, np.int32)
    labels[tuple(n - 1 for n in shape)] = 9
    cells, distance = nearest_component(labels, return_distance=True)
    assert (cells == 9).all()
    assert distance.flat[0] == pytest.approx(np.linalg.norm(np.array(shape) - 1))


def test_full_volume_keeps_its_labels():
    labels = np.arange(1, 61).reshape(3, 4, 5)
    cells, distance = nearest_component(labels, (2, 1, 1), return_distance=True)
    np.testing.assert_array_equal(cells, labels)
    assert not distance.any()


def test_negative_labels_are_labels():
    np.testing.assert_array_equal(nearest_component(np.array([[-3, 0, 0, 5]])), [[-3, -3, 5, 5]])


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.uint64, ">i4"]
)
@pytest.mark.parametrize("layout", ["C", "F", "strided", "read-only"])
def test_dtype_and_memory_order_do_not_matter(dtype, layout):
    values = (np.random.default_rng(1).random((5, 6, 7)) < 0.1).astype(dtype)
    labels = values.copy()
    if layout == "F":
        labels = np.asfortranarray(labels)
    elif layout == "strided":
        labels = np.repeat(labels, 2, axis=0)[::2]
    elif layout == "read-only":
        labels.flags.writeable = False
    cells, distance = nearest_component(labels, return_distance=True)
    assert (cells == 1).all()
    np.testing.assert_allclose(distance, ndimage.distance_transform_edt(values == 0), rtol=1e-6)
    np.testing.assert_array_equal(labels, values)


def test_result_is_the_callers_own():
    labels = np.array([[1, 0, 2]], np.int32)
    nearest_component(labels)[...] = 99
    np.testing.assert_array_equal(labels, [[1, 0, 2]])


@pytest.mark.parametrize(
    ("labels", "spacing", "error", "words"),
    [
        (np.zeros((3, 3)), None, TypeError, "float64"),
        (np.zeros(3, int), None, ValueError, "2-D or 3-D"),
        (np.full((3, 3), 2**31), None, ValueError, "2147483648"),
        (np.zeros((3, 3), int), (1.0,), ValueError, "2 positive numbers"),
        (np.zeros((3, 3), int), (1.0, 0.0), ValueError, r"\(1.0, 0.0\)"),
        (np.zeros((3, 3), int), (1.0, -1.0), ValueError, "positive"),
        (np.zeros((3, 3), int), (1.0, np.nan), ValueError, "positive"),
        (np.zeros((3, 3), int), (1.0, np.inf), ValueError, "positive"),
    ],
)
def test_bad_input_is_refused(labels, spacing, error, words):
    with pytest.raises(error, match=words):
        nearest_component(labels, spacing)
