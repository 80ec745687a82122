import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels import component_max


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    count = draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    values = rng.integers(-4, 5, shape).astype(dtype)  # few values, so many ties
    return values, rng.integers(0, count + 1, shape).astype(np.int32), count


@given(cases())
@settings(max_examples=150, deadline=None)
def test_equals_naive_twin(naive, case):
    maxima, places = component_max(*case)
    expected_maxima, expected_places = naive.component_max(*case)
    assert maxima.dtype == case[0].dtype
    np.testing.assert_array_equal(maxima, expected_maxima)
    np.testing.assert_array_equal(places, expected_places)


def test_first_of_equal_voxels_counts():
    maxima, places = component_max(np.array([1.0, 3.0, 3.0, 3.0]), np.array([0, 1, 1, 2], np.int32), 3)
    assert maxima.tolist() == [1.0, 3.0, 3.0, -np.inf]
    assert places.tolist() == [0, 1, 3, -1]


def test_not_a_number_stays_visible_in_its_component():
    values = np.array([9.0, np.nan, np.nan, 5.0, 7.0, -np.inf], np.float32)
    maxima, places = component_max(values, np.array([1, 1, 1, 1, 2, 0], np.int32), 2)
    assert np.isnan(maxima[1])
    assert maxima[[0, 2]].tolist() == [-np.inf, 7.0]
    assert places.tolist() == [5, 1, 4]


@pytest.mark.parametrize("layout", ["F", "strided", "read-only"])
def test_memory_order_does_not_matter(layout):
    rng = np.random.default_rng(1)
    arrays = [rng.random((4, 6)).astype(np.float32), rng.integers(0, 3, (4, 6), np.int32)]
    expected = component_max(*arrays, 2)
    if layout == "F":
        others = [np.asfortranarray(array) for array in arrays]
    elif layout == "strided":
        others = [np.repeat(array, 2, axis=1)[:, ::2] for array in arrays]
    else:
        others = [array.copy() for array in arrays]
        for array in others:
            array.flags.writeable = False
    for got, wanted in zip(component_max(*others, 2), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("bad", [-1, 3])
def test_labels_out_of_range_are_refused_not_written(bad):
    with pytest.raises(ValueError, match=r"0\.\.2"):
        component_max(np.ones(4), np.array([0, 1, bad, 2], np.int32), 2)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        component_max(np.ones((2, 3)), np.ones((3, 2), np.int32), 1)
