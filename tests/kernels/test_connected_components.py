import cc3d
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from numba_kernels import connected_components

RANK = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}
FEWER = 10 if numba.config.DISABLE_JIT else 1  # plain Python is slow
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


def wide_volumes(count, classes, seed):
    """Rows of several words of 64 voxels, with long and short runs, often across the border of a word."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        shape = (*rng.integers(1, 5, 2), rng.choice([63, 64, 65, 127, 128, 129, 150, 200]))
        labels = rng.integers(1, classes + 1, shape) * (rng.random(shape) < rng.choice([0.1, 0.4, 0.8, 1.0]))
        long = np.repeat(labels, rng.integers(1, 9), axis=2)[:, :, : shape[2]]
        yield np.roll(long, rng.integers(64), axis=2).astype(rng.choice([np.uint8, np.int32]))


@given(label_maps(), st.data())
@settings(max_examples=150 // FEWER, deadline=None)
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
@pytest.mark.parametrize("volumes", [random_volumes, wide_volumes])
def test_equals_scipy_with_the_same_numbers(connectivity, volumes):
    compare_with_scipy(volumes(150 // FEWER, 1, seed=connectivity), connectivity)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("volumes", [random_volumes, wide_volumes])
def test_equals_cc3d_on_many_classes(connectivity, volumes):
    compare_with_cc3d(volumes(150 // FEWER, 3, seed=connectivity + 100), connectivity)


@pytest.mark.slow
@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("volumes", [random_volumes, wide_volumes])
def test_equals_scipy_and_cc3d_thousands_of_times(connectivity, volumes):
    compare_with_scipy(volumes(2000, 1, seed=connectivity + 200), connectivity)
    compare_with_cc3d(volumes(2000, 2, seed=connectivity + 300), connectivity)


def compare_with_scipy(masks, connectivity):
    structure = ndimage.generate_binary_structure(3, RANK[connectivity])
    for mask in masks:
        components, count = connected_components(mask.astype(bool), connectivity)
        expected, expected_count = ndimage.label(mask, structure)
        assert count == expected_count
        np.testing.assert_array_equal(components, expected)


def compare_with_cc3d(volumes, connectivity):
    for labels in volumes:
        components, count = connected_components(labels, connectivity)
        expected, expected_count = cc3d.connected_components(labels, connectivity=connectivity, return_N=True)
        assert count == expected_count
        assert same_partition(components, expected)
        firsts = [int(np.argmax(components == number)) for number in range(1, min(count, 50) + 1)]
        assert firsts == sorted(firsts)


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


def test_labels_that_differ_by_a_multiple_of_2_to_the_32_stay_apart():
    components, count = connected_components(np.array([[1, 1 + 2**32, 0, -(2**40), 2**32]]))
    assert count == 4
    np.testing.assert_array_equal(components, [[1, 2, 0, 3, 4]])


def test_diagonal_contacts_of_equally_long_runs():
    # Two adjacent runs end where the runs of the row above end, with labels crossed over.
    labels = np.array([[2, 2, 2, 1, 1], [1, 1, 1, 2, 2]])
    components, count = connected_components(labels, 8)
    assert count == 2
    np.testing.assert_array_equal(components, [[1, 1, 1, 2, 2], [2, 2, 2, 1, 1]])


def test_eighteen_neighbours_of_which_no_third_voxel_touches_both():
    # (1, 1, 1) touches (1, 0, 1) and both ends of the row above, which leave out the corners of (1, 0, 1).
    components, count = connected_components(np.array([[[0, 0, 0], [1, 0, 1]], [[0, 1, 0], [0, 1, 0]]]), 18)
    assert count == 1
    assert components.sum() == 4


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
