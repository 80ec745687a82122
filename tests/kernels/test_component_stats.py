import cc3d
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from numba_kernels import component_stats, connected_components, largest_component, remove_small_components

FEWER = 10 if numba.config.DISABLE_JIT else 1  # plain Python is slow
CONNECTIVITIES = {2: (4, 8), 3: (6, 18, 26)}


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(0, 9), min_size=2, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = draw(st.sampled_from([0.0, 0.1, 0.4, 0.9, 1.0]))
    dtype = draw(st.sampled_from([np.bool_, np.uint8, np.int16, np.int64]))
    labels = (rng.integers(1, 4, shape) * (rng.random(shape) < density)).astype(dtype)
    connectivity = draw(st.sampled_from(CONNECTIVITIES[len(shape)]))
    fields = [rng.random(shape).astype(draw(st.sampled_from([np.float16, np.float32, np.float64, np.bool_])))]
    fields = draw(st.sampled_from([[], fields, [*fields, labels]]))
    if draw(st.booleans()):
        labels, fields = np.asfortranarray(labels), [np.asfortranarray(field) for field in fields]
        labels.flags.writeable = False
    return labels, connectivity, fields


@given(cases())
@settings(max_examples=150 // FEWER, deadline=None)
def test_equals_counting_over_the_component_map(case):
    labels, connectivity, fields = case
    components, count = connected_components(labels, connectivity)
    stats = component_stats(labels, connectivity, fields=fields)
    assert stats.labels.dtype == labels.dtype
    assert stats.labels.shape == stats.sizes.shape == (count,)
    assert stats.boxes.shape == (count, labels.ndim, 2)
    assert stats.centroids.shape == (count, labels.ndim)
    assert stats.sums.shape == (len(fields), count)
    for k in range(count):
        places = np.argwhere(components == k + 1)
        assert stats.labels[k] == labels[tuple(places[0])]
        assert stats.sizes[k] == len(places)
        np.testing.assert_array_equal(stats.boxes[k, :, 0], places.min(0))
        np.testing.assert_array_equal(stats.boxes[k, :, 1], places.max(0) + 1)
        np.testing.assert_allclose(stats.centroids[k], places.mean(0), rtol=1e-12, atol=1e-12)
        for field, sums in zip(fields, stats.sums, strict=True):
            np.testing.assert_allclose(sums[k], field[components == k + 1].sum(dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize("connectivity", [6, 26])
def test_equals_cc3d_and_scipy(connectivity):
    rng = np.random.default_rng(connectivity)
    structure = ndimage.generate_binary_structure(3, {6: 1, 26: 3}[connectivity])
    for _ in range(100 // FEWER):
        shape = (*rng.integers(1, 12, 2), rng.integers(1, 150))
        mask, field = rng.random(shape) < rng.random(), rng.random(shape, np.float32)
        components, count = ndimage.label(mask, structure)
        stats = component_stats(mask, connectivity, fields=[field])
        expected = cc3d.statistics(components.astype(np.uint32))
        np.testing.assert_array_equal(stats.sizes, expected["voxel_counts"][1:])
        np.testing.assert_allclose(stats.centroids, expected["centroids"][1:], rtol=1e-5, atol=1e-4)
        sums = ndimage.sum_labels(field, components, np.arange(1, count + 1))
        np.testing.assert_allclose(stats.sums[0], sums, rtol=1e-5)
        slices = ndimage.find_objects(components)
        np.testing.assert_array_equal(
            stats.boxes, np.array([[(s.start, s.stop) for s in box] for box in slices]).reshape(count, 3, 2)
        )


@given(cases(), st.integers(-1, 30))
@settings(max_examples=100 // FEWER, deadline=None)
def test_large_components_stay_and_small_ones_go(case, least):
    labels, connectivity, _ = case
    before = labels.copy()
    components, count = connected_components(labels != 0, connectivity)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = remove_small_components(labels, least, connectivity)
    assert kept.dtype == np.bool_
    np.testing.assert_array_equal(kept, (sizes[components] >= least) & (components > 0))
    largest = largest_component(labels, connectivity)
    assert largest.dtype == np.bool_
    expected = components == sizes.argmax() if count else np.zeros(labels.shape, bool)
    np.testing.assert_array_equal(largest, expected)
    np.testing.assert_array_equal(labels, before)


def test_one_long_component_over_many_words():
    labels = np.full((2, 3, 200), 5, np.int32)
    stats = component_stats(labels, fields=[np.ones(labels.shape)])
    assert stats.labels.tolist() == [5]
    assert stats.sizes.tolist() == [1200]
    assert stats.boxes.tolist() == [[[0, 2], [0, 3], [0, 200]]]
    assert stats.centroids.tolist() == [[0.5, 1.0, 99.5]]
    assert stats.sums.tolist() == [[1200.0]]


def test_not_a_number_stays_in_its_component():
    field = np.array([[np.nan, 0.5, 0.25]])
    np.testing.assert_array_equal(component_stats(np.array([[1, 0, 1]]), fields=[field]).sums, [[np.nan, 0.25]])


@pytest.mark.parametrize(
    ("field", "error", "words"),
    [
        (np.zeros((3, 2)), ValueError, r"\(2, 3\), got \(3, 2\)"),
        (np.zeros((2, 3), complex), TypeError, "complex"),
    ],
)
def test_bad_fields_are_refused(field, error, words):
    with pytest.raises(error, match=words):
        component_stats(np.ones((2, 3), bool), fields=[field])


@pytest.mark.parametrize(
    "function", [component_stats, largest_component, lambda mask: remove_small_components(mask, 2)]
)
def test_bad_masks_are_refused(function):
    with pytest.raises(TypeError, match="float64"):
        function(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="2-D or 3-D"):
        function(np.zeros(3, bool))
