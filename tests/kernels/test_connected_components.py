import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from numba_kernels import connected_components

RANK = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}
CONNECTIVITIES = {2: (4, 8), 3: (6, 18, 26)}
INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


@st.composite
def label_maps(draw):
    shape = draw(st.lists(st.integers(0, 9), min_size=2, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    classes = draw(st.integers(1, 3))
    density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.95, 1.0]))
    labels = rng.integers(1, classes + 1, shape) * (rng.random(shape) < density)
    return labels.astype(draw(st.sampled_from(INTEGERS)))


def random_volumes(count, classes, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = rng.integers(1, 14, 3)
        yield (rng.integers(1, classes + 1, shape) * (rng.random(shape) < rng.random())).astype(np.uint8)


@given(label_maps(), st.data())
@settings(max_examples=150, deadline=None)
def test_equals_naive_twin(naive, labels, data):
    connectivity = data.draw(st.sampled_from(CONNECTIVITIES[labels.ndim]))
    before = labels.copy()
    components, count = connected_components(labels, connectivity)
    expected, expected_count = naive.connected_components(labels, connectivity)
    assert components.dtype == np.int32
    assert components.flags.c_contiguous
    assert count == expected_count
    np.testing.assert_array_equal(components, expected)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_equals_scipy_with_the_same_numbers(connectivity):
    structure = ndimage.generate_binary_structure(3, RANK[connectivity])
    for mask in random_volumes(150, 1, seed=connectivity):
        components, count = connected_components(mask.astype(bool), connectivity)
        expected, expected_count = ndimage.label(mask, structure)
        assert count == expected_count
        np.testing.assert_array_equal(components, expected)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_equals_cc3d_on_many_classes(connectivity):
    for labels in random_volumes(150, 3, seed=connectivity + 100):
        components, count = connected_components(labels, connectivity)
        expected, expected_count = cc3d.connected_components(labels, connectivity=connectivity, return_N=True)
        assert count == expected_count
        assert same_partition(components, expected)


def same_partition(a, b):
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


@pytest.mark.parametrize("ndim", [2, 3])
def test_default_is_full_connectivity(ndim):
    diagonal = np.zeros((2,) * ndim, np.uint8)
    diagonal[(0,) * ndim] = diagonal[(1,) * ndim] = 1
    assert connected_components(diagonal)[1] == 1
    assert connected_components(diagonal, CONNECTIVITIES[ndim][-2])[1] == 2


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 1), (1, 7, 9), (7, 1, 9), (7, 9, 1), (1, 9), (9, 1), (0, 3, 3)])
@pytest.mark.parametrize("fill", ["empty", "full", "checkerboard", "one voxel"])
def test_special_volumes(naive, shape, fill):
    mask = np.zeros(shape, np.uint8)
    if fill == "full":
        mask[...] = 7
    elif fill == "checkerboard":
        mask[np.indices(shape).sum(axis=0) % 2 == 0] = 1
    elif mask.size and fill == "one voxel":
        mask[tuple(n // 2 for n in shape)] = 255
    for connectivity in CONNECTIVITIES[mask.ndim]:
        components, count = connected_components(mask, connectivity)
        expected, expected_count = naive.connected_components(mask, connectivity)
        assert count == expected_count
        np.testing.assert_array_equal(components, expected)


@pytest.mark.parametrize("dtype", [np.bool_, *INTEGERS, ">i2", ">u8"])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "reversed", "read-only"])
def test_dtype_and_memory_order_do_not_matter(dtype, layout):
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2 if dtype is np.bool_ else 3, (5, 6, 7))
    labels = values.astype(dtype)
    if layout == "F":
        labels = np.asfortranarray(labels)
    elif layout == "strided":
        labels = np.repeat(labels, 2, axis=2)[:, :, ::2]
    elif layout == "reversed":
        labels = labels[::-1, :, ::-1][::-1, :, ::-1]
    elif layout == "read-only":
        labels.flags.writeable = False
    before = labels.copy()
    components, count = connected_components(labels, 6)
    expected, expected_count = connected_components(values, 6)
    assert count == expected_count
    np.testing.assert_array_equal(components, expected)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint64])
def test_extreme_label_values_stay_apart(dtype):
    limits = np.iinfo(dtype)
    labels = np.array([[limits.max, limits.max, limits.min or 1, 0, limits.max - 1]], dtype)
    components, count = connected_components(labels)
    assert count == 3
    np.testing.assert_array_equal(components, [[1, 1, 2, 0, 3]])


def test_diagonal_contacts_of_equally_long_runs():
    # Two adjacent runs end where the runs of the row above end, with labels crossed over.
    labels = np.array([[2, 2, 2, 1, 1], [1, 1, 1, 2, 2]])
    components, count = connected_components(labels, 8)
    assert count == 2
    np.testing.assert_array_equal(components, [[1, 1, 1, 2, 2], [2, 2, 2, 1, 1]])


def test_two_dimensions_equal_one_slice():
    mask = np.random.default_rng(0).random((1, 20, 30)) < 0.4
    for flat, deep in ((4, 6), (8, 26), (8, 18)):
        np.testing.assert_array_equal(connected_components(mask[0], flat)[0], connected_components(mask, deep)[0][0])


def test_more_components_than_16_bits_can_count():
    mask = np.zeros((100, 100, 100), bool)
    mask[::2, ::2, ::2] = True
    components, count = connected_components(mask)
    assert count == 125_000 > 65_535
    assert components.max() == count
    np.testing.assert_array_equal(components[mask], np.arange(1, count + 1))


@pytest.mark.parametrize(
    ("labels", "connectivity", "error", "words"),
    [
        (np.zeros((3, 3)), None, TypeError, "float64"),
        (np.zeros((3, 3), complex), None, TypeError, "complex"),
        (np.zeros(3, int), None, ValueError, r"\(3,\)"),
        (np.zeros((1, 1, 3, 3), int), None, ValueError, "2-D or 3-D"),
        (np.zeros((3, 3), int), 26, ValueError, r"\[4, 8\], got 26"),
        (np.zeros((3, 3, 3), int), 8, ValueError, r"\[6, 18, 26\], got 8"),
    ],
)
def test_bad_input_is_refused(labels, connectivity, error, words):
    with pytest.raises(error, match=words):
        connected_components(labels, connectivity)
