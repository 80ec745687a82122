from itertools import product

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels import class_contacts

CONNECTIVITIES = {2: {4: 1, 8: 2}, 3: {6: 1, 18: 2, 26: 3}}


def naive_contacts(labels, num_classes, rank):
    """Look from every voxel at every neighbour."""
    contacts = np.zeros((num_classes, num_classes), np.int64)
    steps = [step for step in product((-1, 0, 1), repeat=labels.ndim) if 1 <= sum(map(abs, step)) <= rank]
    for voxel in np.ndindex(labels.shape):
        for step in steps:
            other = tuple(v + s for v, s in zip(voxel, step, strict=True))
            inside = all(0 <= o < n for o, n in zip(other, labels.shape, strict=True))
            if inside and labels[other] != labels[voxel]:
                contacts[labels[voxel], labels[other]] += 1
    return contacts


@given(st.lists(st.integers(0, 9), min_size=2, max_size=3), st.integers(0, 2**32), st.data())
@settings(max_examples=80, deadline=None)
def test_equals_naive_twin(shape, seed, data):
    num_classes = data.draw(st.sampled_from([1, 2, 5, 300]))
    connectivity = data.draw(st.sampled_from(list(CONNECTIVITIES[len(shape)])))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, shape) * (rng.random(shape) < 0.7)
    before = labels.copy()
    contacts = class_contacts(labels, num_classes, connectivity)
    assert contacts.dtype == np.int64
    expected = naive_contacts(labels, num_classes, CONNECTIVITIES[labels.ndim][connectivity])
    np.testing.assert_array_equal(contacts, expected)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 127, 128, 129])
def test_equals_naive_twin_at_the_ends_of_words(width):
    labels = np.random.default_rng(width).integers(0, 3, (2, 3, width))
    np.testing.assert_array_equal(class_contacts(labels, 3), naive_contacts(labels, 3, 3))


def peer(labels, num_classes, connectivity):
    contacts = np.zeros((num_classes, num_classes), np.int64)
    for pair, count in cc3d.contacts(labels, connectivity=connectivity, surface_area=False).items():
        contacts[pair] += count
    return contacts + contacts.T


@pytest.mark.parametrize("connectivity", [6, 18])  # with 26, cc3d 4.1 leaves out some diagonal pairs
def test_equals_cc3d(connectivity):
    rng = np.random.default_rng(connectivity)
    for _ in range(100):
        labels = rng.integers(0, 4, rng.integers(1, 14, 3)).astype(np.uint8)
        contacts = class_contacts(labels, 4, connectivity)
        contacts[0] = contacts[:, 0] = 0  # cc3d does not count background
        np.testing.assert_array_equal(contacts, peer(labels, 4, connectivity))


@pytest.mark.parametrize("shape", [(3, 4), (1, 1, 1), (1, 5, 4), (5, 1, 4), (5, 4, 1), (0, 3, 3), (3, 0)])
def test_special_volumes(shape):
    assert not class_contacts(np.zeros(shape, bool), 2).any()
    assert not class_contacts(np.ones(shape, np.int16), 2).any()
    board = np.indices(shape).sum(axis=0) % 2
    for connectivity, rank in CONNECTIVITIES[len(shape)].items():
        np.testing.assert_array_equal(class_contacts(board, 2, connectivity), naive_contacts(board, 2, rank))


def test_single_voxel_has_its_neighbours():
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[1, 1, 1] = 1
    for connectivity in (6, 18, 26):
        assert class_contacts(labels, 2, connectivity).tolist() == [[0, connectivity], [connectivity, 0]]


def test_thick_vessel_meets_thin_vessel():
    labels = np.zeros((5, 5, 10), np.uint8)
    labels[1:4, 1:4, 1:5] = 1
    labels[2, 2, 5:9] = 2
    assert class_contacts(labels, 3)[1, 2] == 9


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int16, np.int64, np.uint64, ">i4"])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "read-only"])
def test_dtype_and_memory_order_do_not_matter(dtype, layout):
    values = np.random.default_rng(1).integers(0, 2, (5, 6, 7))
    labels = values.astype(dtype)
    if layout == "F":
        labels = np.asfortranarray(labels)
    elif layout == "strided":
        labels = np.repeat(labels, 2, axis=0)[::2]
    elif layout == "read-only":
        labels.flags.writeable = False
    np.testing.assert_array_equal(class_contacts(labels, 2), naive_contacts(values, 2, 3))


@pytest.mark.parametrize(
    ("labels", "connectivity", "error", "words"),
    [
        (np.zeros((3, 3)), None, TypeError, "float64"),
        (np.zeros(3, int), None, ValueError, "2-D or 3-D"),
        (np.zeros((3, 3), int), 26, ValueError, r"\[4, 8\], got 26"),
        (np.full((3, 3), 3), None, ValueError, r"0\.\.2, got 3\.\.3"),
        (np.full((3, 3), -1), None, ValueError, r"0\.\.2, got -1\.\.-1"),
    ],
)
def test_bad_input_is_refused(labels, connectivity, error, words):
    with pytest.raises(error, match=words):
        class_contacts(labels, 3, connectivity)
