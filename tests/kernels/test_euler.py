from itertools import product

import numpy as np
import pytest
import skimage.measure
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels import connected_components, euler_number

PAIRS = {2: ((8, 4), (4, 8)), 3: ((26, 6), (6, 26))}


def naive_closed(mask):
    """Every corner, edge, face and cube by its doubled coordinates, in a set; even coordinates are corners."""
    cells = set()
    for voxel in np.argwhere(mask):
        cells |= {tuple(2 * voxel + 1 + step) for step in product((-1, 0, 1), repeat=mask.ndim)}
    return sum((-1) ** sum(int(c) % 2 for c in cell) for cell in cells)


def naive_points(mask):
    """Every block of 1, 2, 4 or 8 voxels that is all foreground."""
    total = 0
    for size in product((1, 2), repeat=mask.ndim):
        for start in np.ndindex(mask.shape):
            block = mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
            total += (-1) ** size.count(2) * (block.shape == size and bool(block.all()))
    return total


@given(st.lists(st.integers(0, 5), min_size=2, max_size=3), st.floats(0, 1), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_equals_naive_twin(shape, density, seed):
    mask = np.random.default_rng(seed).random(shape) < density
    before = mask.copy()
    assert euler_number(mask) == naive_closed(mask)
    assert euler_number(mask, PAIRS[mask.ndim][1][0]) == naive_points(mask)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("width", [47, 48, 49, 63, 64, 65, 111, 112, 113])
def test_equals_naive_twin_at_the_ends_of_words(width):
    mask = np.random.default_rng(width).random((2, 3, width)) < 0.5
    assert (euler_number(mask), euler_number(mask, 6)) == (naive_closed(mask), naive_points(mask))


def test_equals_skimage():
    rng = np.random.default_rng(0)
    for _ in range(60):
        mask = rng.random(rng.integers(1, (6, 9, 100))) < rng.random()
        padded = np.pad(mask, 1)
        assert euler_number(mask, 26) == skimage.measure.euler_number(padded, 3)
        assert euler_number(mask, 6) == skimage.measure.euler_number(padded, 1)
        assert euler_number(mask[0], 8) == skimage.measure.euler_number(padded[1], 2)
        assert euler_number(mask[0], 4) == skimage.measure.euler_number(padded[1], 1)


def test_flat_volume_equals_picture():
    mask = np.random.default_rng(1).random((9, 40)) < 0.6
    for axis in range(3):
        volume = np.expand_dims(mask, axis)
        assert (euler_number(volume, 26), euler_number(volume, 6)) == (euler_number(mask, 8), euler_number(mask, 4))


def test_picture_has_pieces_minus_holes():
    """Holes are the pieces of the background, seen with the other neighbourhood, but for the outside."""
    for seed in range(20):
        mask = np.random.default_rng(seed).random((11, 13)) < 0.6
        for own, other in PAIRS[2]:
            holes = connected_components(np.pad(~mask, 1, constant_values=True), other)[1] - 1
            assert euler_number(mask, own) == connected_components(mask, own)[1] - holes


def test_known_shapes():
    ball = np.pad(np.ones((3, 3, 3), bool), 1)
    shell = ball.copy()
    shell[2, 2, 2] = False
    torus = ball.copy()
    torus[:, 2, 2] = False
    assert [euler_number(shape) for shape in (ball, shell, torus)] == [1, 2, 0]
    assert [euler_number(shape, 6) for shape in (ball, shell, torus)] == [1, 2, 0]
    bar = np.zeros((5, 9), bool)
    bar[1:4, 1:8] = True
    broken = bar.copy()
    broken[1:4, 4] = False
    assert (euler_number(bar), euler_number(broken)) == (1, 2)
    corner = np.zeros((2, 2, 2), bool)
    corner[0, 0, 0] = corner[1, 1, 1] = True
    assert (euler_number(corner, 26), euler_number(corner, 6)) == (1, 2)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 3, 3), (1, 1), (1, 1, 1), (4, 5, 6)])
def test_empty_is_nothing_and_full_is_one(shape):
    for connectivity, _ in PAIRS[len(shape)]:
        assert euler_number(np.zeros(shape, bool), connectivity) == 0
        assert euler_number(np.ones(shape, np.int16), connectivity) == (0 not in shape)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, ">i4"])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "read-only"])
def test_dtype_and_memory_order_do_not_matter(dtype, layout):
    values = np.random.default_rng(1).integers(0, 2, (5, 6, 7))
    mask = values.astype(dtype)
    if layout == "F":
        mask = np.asfortranarray(mask)
    elif layout == "strided":
        mask = np.repeat(mask, 2, axis=0)[::2]
    elif layout == "read-only":
        mask.flags.writeable = False
    assert euler_number(mask) == naive_closed(values)


@pytest.mark.parametrize(
    ("mask", "connectivity", "error", "words"),
    [
        (np.zeros((3, 3)), None, TypeError, "float64"),
        (np.zeros(3, int), None, ValueError, "2-D or 3-D"),
        (np.zeros((3, 3), int), 26, ValueError, "4 or 8, got 26"),
        (np.zeros((3, 3, 3), int), 18, ValueError, "6 or 26, got 18"),
    ],
)
def test_bad_input_is_refused(mask, connectivity, error, words):
    with pytest.raises(error, match=words):
        euler_number(mask, connectivity)
