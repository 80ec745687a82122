import sys

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from numba_kernels import connected_components, nearest_component

module = sys.modules["numba_kernels.nearest_component"]
FEWER = 4 if numba.config.DISABLE_JIT else 1  # plain Python is slow
SPACINGS = [None, (1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.7, 1.3, 2.9), (5.0, 0.01, 1.0), (np.pi, 1.0, np.e)]


@st.composite
def label_maps(draw):
    shape = draw(st.lists(st.integers(0, 9), min_size=2, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0]))
    return (rng.integers(1, 100, shape) * (rng.random(shape) < density)).astype(np.int16)


@given(label_maps(), st.data())
@settings(max_examples=150 // FEWER, deadline=None)
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


@pytest.mark.parametrize("spacing", SPACINGS)
def test_equals_scipy_off_ties(spacing):
    compare_with_scipy(spacing, range(40 // FEWER))


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
def test_equals_scipy_off_ties_many_times(spacing):
    compare_with_scipy(spacing, range(1000, 1500 // FEWER))


def compare_with_scipy(spacing, seeds):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        shape = rng.integers(1, 20, 3)
        labels, count = connected_components(rng.random(shape) < rng.choice([0.003, 0.03, 0.3]))
        cells, distance, index = nearest_component(labels, spacing, return_distance=True, return_index=True)
        if count == 0:
            assert np.isinf(distance).all()
            continue
        expected = ndimage.distance_transform_edt(labels == 0, sampling=spacing)
        np.testing.assert_allclose(distance, expected, rtol=1e-6)
        np.testing.assert_array_equal(cells[labels > 0], labels[labels > 0])
        np.testing.assert_array_equal(cells, labels.ravel()[index])
        assert_is_nearest(index, expected, spacing)


def assert_is_nearest(index, distance, spacing):
    steps = np.indices(index.shape) - np.stack(np.unravel_index(index, index.shape))
    mm = np.ones(3) if spacing is None else np.asarray(spacing)
    own = np.sqrt(((steps * mm[:, None, None, None]) ** 2).sum(axis=0))
    np.testing.assert_allclose(own, distance, rtol=1e-9, atol=1e-9)


def search(labels, spacing, patience, limit=np.inf):
    """Positions and distances that the inner search finds; without patience, the envelope does all."""
    scale = module._choose_scale(np.asarray(spacing), labels.shape)
    return module._find_nearest(labels, scale, limit, patience, measured=True, numbered=True)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (np.pi, 1.0, np.e)])
def test_searching_and_envelope_agree_to_the_bit(spacing):
    for seed in range(60 // FEWER):
        rng = np.random.default_rng(seed)
        shape = rng.integers(1, 30 // min(FEWER, 2), 3)
        labels = (rng.random(shape) < rng.choice([0.001, 0.01, 0.1, 0.5])).astype(np.int32)
        results = [search(labels, spacing, patience) for patience in (0, 1, 3, 10**6)]
        for found, distance in results[1:]:
            np.testing.assert_array_equal(found, results[0][0])
            np.testing.assert_array_equal(distance, results[0][1])


@pytest.mark.parametrize("limit", [None, 2.5, 600.0])
def test_short_keys_within_planes_of_a_volume_that_needs_long_ones(limit):
    spacing = (500.0, 1.0, 1.0)
    labels = np.zeros((20, 12, 70), np.int32)  # most planes are empty
    labels[3, 2, 5], labels[3, 9, 60], labels[11, 4, 30] = 1, 2, 3
    scale = module._choose_scale(np.array(spacing), labels.shape)
    assert scale.far.dtype == np.int64
    assert module._far_in_plane(scale, labels.shape).dtype == np.int32
    cells, distance = nearest_component(labels, spacing, return_distance=True, max_distance=limit)
    expected, place = ndimage.distance_transform_edt(labels == 0, sampling=spacing, return_indices=True)
    within = expected <= (np.inf if limit is None else limit)
    np.testing.assert_allclose(distance, np.where(within, expected, np.inf), rtol=1e-6)
    np.testing.assert_array_equal(cells > 0, within)
    differ = within & (cells != labels[tuple(place)])  # allowed where both are equally near
    to_each = [np.linalg.norm((np.argwhere(labels == c)[0] - np.argwhere(differ)) * spacing, axis=1) for c in (1, 2, 3)]
    own = np.choose(cells[differ] - 1, to_each)
    np.testing.assert_allclose(own, expected[differ], rtol=1e-9)


def test_long_sparse_line_runs_out_of_patience():
    labels = np.zeros((2, 700), np.int16)
    labels[0, 3], labels[1, 650] = 1, 2
    for volume in (labels, labels.T.copy(), labels.reshape(2, 700, 1), labels.T.reshape(700, 1, 2)):
        cells, distance = nearest_component(volume, return_distance=True)
        np.testing.assert_allclose(distance, ndimage.distance_transform_edt(volume == 0), rtol=1e-6)
        assert (cells == 1).sum() + (cells == 2).sum() == labels.size


@given(label_maps(), st.data())
@settings(max_examples=100 // FEWER, deadline=None)
def test_limit_only_takes_away_what_is_farther(labels, data):
    spacing = data.draw(st.lists(st.sampled_from([0.1, 0.3, 0.8, 3.0]), min_size=labels.ndim, max_size=labels.ndim))
    cells, distance, index = nearest_component(labels, spacing, return_distance=True, return_index=True)
    limit = data.draw(st.sampled_from([0, 0.1, 0.3, 0.8, 1.0, 2.4, 5.0, 1e9, np.inf, *distance.ravel()[:3].tolist()]))
    near, near_distance, near_index = nearest_component(
        labels, spacing, return_distance=True, return_index=True, max_distance=limit
    )
    within = (distance <= limit * (1 + 1e-7)) & np.isfinite(distance)
    np.testing.assert_array_equal(near, np.where(within, cells, 0))
    np.testing.assert_array_equal(near_distance, np.where(within, distance, np.inf))
    np.testing.assert_array_equal(near_index, np.where(within, index, -1))
    np.testing.assert_array_equal(nearest_component(labels, spacing, max_distance=limit), near)


def test_index_is_the_first_of_several_in_memory_order():
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0, 1, 1] = labels[1, 0, 1] = labels[1, 1, 0] = labels[1, 1, 2] = 1
    _, index = nearest_component(labels, return_index=True)
    assert index.dtype == np.int64
    assert np.unravel_index(index[1, 1, 1], labels.shape) == (0, 1, 1)


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
    empty = np.zeros(shape, np.uint8)
    cells, distance, index = nearest_component(empty, return_distance=True, return_index=True)
    assert cells.shape == distance.shape == index.shape == shape
    assert not cells.any()
    assert np.isinf(distance).all()
    assert (index == -1).all()
    assert not nearest_component(empty).any()


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


@pytest.mark.parametrize("limit", [-1.0, np.nan])
def test_bad_limit_is_refused(limit):
    with pytest.raises(ValueError, match="max_distance"):
        nearest_component(np.ones((3, 3), int), max_distance=limit)


def test_short_keys_are_used_only_where_they_are_exact():
    cube = (128, 128, 128)
    for steps, whole in (((1, 1, 1), [1, 1, 1]), ((3, 0.8, 0.8), [225, 16, 16]), ((0.5, 0.5, 0.5), [1, 1, 1])):
        scale = module._choose_scale(np.array(steps, float), cube)
        assert scale.weights == whole
        assert scale.far.dtype == np.int32
    assert module._choose_scale(np.ones(3), (1000, 1000, 1000)).far.dtype == np.int64
    odd = module._choose_scale(np.array([np.pi, 1.0, np.e]), cube)
    assert odd.far.dtype == np.int64
    np.testing.assert_allclose(np.array(odd.weights) * odd.unit, [np.pi**2, 1, np.e**2], rtol=1e-9)
