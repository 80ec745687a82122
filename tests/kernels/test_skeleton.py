from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import euler_number
from skimage.morphology import skeletonize as lee_skeleton

from numba_kernels import skeletonize, tube

ALL = np.ones((3, 3, 3), bool)
CROSS = ndimage.generate_binary_structure(3, 1)
NO_CORNERS = ndimage.generate_binary_structure(3, 2)
DIRECTIONS = ((0, -1, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0), (0, 0, -1), (-1, 0, 0))


@cache
def simple_and_no_end(neighbourhood):
    """Bertrand and Malandain: one piece of foreground among the 26, one of background that touches the middle."""
    block = np.frombuffer(neighbourhood, bool).reshape(3, 3, 3).copy()
    block[1, 1, 1] = False
    if block.sum() < 2 or ndimage.label(block, ALL)[1] != 1:
        return False
    pieces = ndimage.label(~block & NO_CORNERS & (np.arange(27).reshape(3, 3, 3) != 13), CROSS)[0]
    return np.unique(pieces[CROSS & (pieces > 0)]).size == 1


def deletable(padded, voxel):
    return simple_and_no_end(padded[tuple(slice(v, v + 3) for v in voxel)].tobytes())


def naive_skeleton(mask):
    """The rule of the documentation, voxel by voxel."""
    volume = np.pad(mask if mask.ndim == 3 else mask[None], 1)
    inner = volume[1:-1, 1:-1, 1:-1]
    directions = [d for d in DIRECTIONS if inner.shape[0] != 1 or d[0] == 0]
    changed = True
    while changed:
        before = inner.copy()
        for direction in directions:
            border = inner & ~np.roll(volume, [-d for d in direction], (0, 1, 2))[1:-1, 1:-1, 1:-1]
            marked = [tuple(v) for v in np.argwhere(border) if deletable(volume, v)]
            for odd in product((0, 1), repeat=3):
                turn = [v for v in marked if tuple(c % 2 for c in v) == odd]
                for voxel in [v for v in turn if deletable(volume, v)]:
                    inner[voxel] = False
        changed = not np.array_equal(before, inner)
    return inner.reshape(mask.shape)


def topology(mask):
    """Pieces of the foreground, pieces of the background, Euler number."""
    mask = mask if mask.ndim == 3 else mask[None]
    return ndimage.label(mask, ALL)[1], ndimage.label(~np.pad(mask, 1))[1], euler_number(mask, 3)


def random_masks(count, seed, sides, widths):
    rng = np.random.default_rng(seed)
    for k in range(count):
        shape = (*rng.integers(1, sides, 2), int(rng.choice(widths)))
        if k % 3 == 0:
            yield rng.random(shape) < rng.choice([0.1, 0.3, 0.5, 0.7, 0.9])
        elif k % 3 == 1:
            yield ndimage.gaussian_filter(rng.standard_normal(shape), rng.choice([1.0, 2.0])) > 0
        else:
            yield ndimage.binary_dilation(rng.random(shape) < 0.01, iterations=int(rng.integers(1, 5)))


WIDTHS = (1, 2, 5, 8, 11, 54, 55, 56, 57, 63, 64, 65)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=3), st.integers(0, 2**32), st.sampled_from([0.3, 0.6, 0.9, 1]))
@settings(max_examples=50, deadline=None)
def test_equals_naive_twin(shape, seed, density):
    mask = np.random.default_rng(seed).random(shape) < density
    before = mask.copy()
    skeleton = skeletonize(mask)
    assert skeleton.dtype == bool
    assert skeleton.flags.c_contiguous
    np.testing.assert_array_equal(skeleton, naive_skeleton(mask))
    np.testing.assert_array_equal(mask, before)


def test_equals_naive_twin_where_rows_take_several_words():
    for mask in random_masks(10, 1, 6, WIDTHS):
        np.testing.assert_array_equal(skeletonize(mask), naive_skeleton(mask))


def test_compat_equals_skimage():
    for mask in random_masks(60, 2, 9, WIDTHS):
        np.testing.assert_array_equal(skeletonize(mask, compat="skimage-0.26"), lee_skeleton(mask, method="lee"))


@pytest.mark.slow
def test_compat_equals_skimage_a_thousand_times():
    for mask in random_masks(1000, 3, 24, (*WIDTHS, 119, 120, 121, 128)):
        np.testing.assert_array_equal(skeletonize(mask, compat="skimage-0.26"), lee_skeleton(mask, method="lee"))


def test_compat_equals_skimage_in_two_dimensions():
    for mask in random_masks(30, 4, 20, WIDTHS):
        flat = mask[0]
        np.testing.assert_array_equal(skeletonize(flat, compat="skimage-0.26"), lee_skeleton(flat, method="lee"))


def assert_thin_and_faithful(mask):
    skeleton = skeletonize(mask)
    assert not (skeleton & ~mask).any()
    assert topology(skeleton) == topology(mask)
    padded = np.pad(skeleton if skeleton.ndim == 3 else skeleton[None], 1)
    assert not any(deletable(padded, voxel - 1) for voxel in np.argwhere(padded))


def test_topology_is_kept_and_nothing_more_can_go():
    for mask in random_masks(45, 5, 12, (3, 9, 12)):
        assert_thin_and_faithful(mask)
        assert_thin_and_faithful(mask[0])


@pytest.mark.slow
def test_topology_is_kept_a_thousand_times():
    for mask in random_masks(1000, 6, 20, WIDTHS):
        assert_thin_and_faithful(mask)


def ball(radius):
    grid = np.indices((2 * radius + 2,) * 3) - radius - 0.5
    return (grid**2).sum(axis=0) <= radius**2


@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 4, 4), (4, 4, 8), (6, 6, 6)])
def test_boxes_that_skimage_loses_are_kept(shape):
    box = np.pad(np.ones(shape, bool), 2)
    assert not lee_skeleton(box, method="lee").any()
    assert not skeletonize(box, compat="skimage-0.26").any()
    assert_thin_and_faithful(box)


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 5, 6])
def test_balls_around_a_corner_that_skimage_loses_are_kept(radius):
    assert not lee_skeleton(ball(radius), method="lee").any()
    assert topology(skeletonize(ball(radius))) == (1, 1, 1)


def test_every_lesion_has_a_skeleton():
    """Ellipsoids as small as lesions of the brain are; scikit-image 0.26 leaves many of them without a single voxel."""
    rng = np.random.default_rng(0)
    grid = np.indices((40, 40, 40)).reshape(3, -1, 1)
    centres, radii = rng.uniform(0, 40, (3, 1, 20)), np.exp(rng.normal(0.3, 0.4, (3, 1, 20)))
    lesions = (((grid - centres) / radii) ** 2).sum(axis=0).min(axis=1).reshape(40, 40, 40) <= 1
    pieces = ndimage.label(lesions, ALL)[1]
    assert pieces > 10
    assert ndimage.label(lee_skeleton(lesions, method="lee"), ALL)[1] < pieces
    assert topology(skeletonize(lesions)) == topology(lesions)


def test_rings_and_shells_stay_rings_and_shells():
    y, x = np.indices((21, 21)) - 10
    ring = (np.hypot(y, x) < 9) & (np.hypot(y, x) > 4)
    assert topology(skeletonize(ring)) == (1, 1, 0)
    shell = np.pad(np.ones((7, 7, 7), bool), 1)
    shell[3:6, 3:6, 3:6] = False
    assert topology(skeletonize(shell)) == (1, 2, 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64, np.uint64, ">i4"])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "read-only"])
def test_classes_are_thinned_as_if_alone(dtype, layout):
    labels = np.random.default_rng(7).integers(0, 3, (5, 7, 9))
    labels[1:, 2:, 3:] = np.repeat(np.repeat(labels[1:3, 2:4, 3:5], 3, 1), 3, 2)[:4, :5, :6].repeat(2, 0)
    labels = labels.astype(dtype)
    if layout == "F":
        labels = np.asfortranarray(labels)
    elif layout == "strided":
        labels = np.repeat(labels, 2, axis=2)[:, :, ::2]
    elif layout == "read-only":
        labels.flags.writeable = False
    before = labels.copy()
    skeletons = skeletonize(labels)
    assert skeletons.dtype == labels.dtype
    for label in (1, 2):
        np.testing.assert_array_equal(skeletons == label, skeletonize(labels == label))
    np.testing.assert_array_equal(labels, before)


def test_flat_class_in_a_volume_is_thinned_as_if_alone():
    """Its box is one plane high, and odd coordinates must stay odd."""
    labels = np.zeros((6, 9, 9), np.uint8)
    labels[3, 1:8, 1:8] = 4
    labels[0, 0, 0] = 1
    skeletons = skeletonize(labels)
    np.testing.assert_array_equal(skeletons == 4, naive_skeleton(labels == 4))
    assert skeletons[0, 0, 0] == 1


def test_negative_and_huge_labels_are_labels():
    labels = np.array([[-3, -3, 0, 2**40], [-3, -3, 0, 2**40]])
    skeletons = skeletonize(labels)
    np.testing.assert_array_equal(skeletons == -3, skeletonize(labels == -3))
    np.testing.assert_array_equal(skeletons == 2**40, skeletonize(labels == 2**40))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 1), (1, 7, 9), (7, 1, 9), (7, 9, 1), (1, 9), (9, 1), (0, 3, 3)])
@pytest.mark.parametrize("fill", ["empty", "full", "checkerboard", "one voxel"])
@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_special_volumes(shape, fill, dtype):
    mask = np.zeros(shape, bool)
    if fill == "full":
        mask[...] = True
    elif fill == "checkerboard":
        mask[np.indices(shape).sum(axis=0) % 2 == 0] = True
    elif mask.size and fill == "one voxel":
        mask[tuple(n // 2 for n in shape)] = True
    np.testing.assert_array_equal(skeletonize(mask.astype(dtype)), naive_skeleton(mask))
    np.testing.assert_array_equal(tube(mask.astype(dtype), 1), naive_tube(mask, 1))


def test_two_dimensions_equal_one_slice():
    mask = ndimage.gaussian_filter(np.random.default_rng(8).standard_normal((1, 20, 30)), (0, 2, 2)) > 0
    np.testing.assert_array_equal(skeletonize(mask[0]), skeletonize(mask)[0])
    np.testing.assert_array_equal(tube(mask[0], 1), tube(mask, 1)[0])


def thick_and_thin_vessel():
    labels = np.zeros((5, 5, 10), np.uint8)
    labels[1:4, 1:4, 1:5] = 1
    labels[2, 2, 5:9] = 2
    return labels


def test_vessel_that_narrows():
    labels = thick_and_thin_vessel()
    line = skeletonize(labels > 0, compat="skimage-0.26")
    np.testing.assert_array_equal(np.argwhere(line), [(2, 2, x) for x in range(2, 9)])
    target = np.where(tube(line), labels, 0)
    assert [(target == label).sum() for label in (1, 2)] == [32, 4]
    assert topology(skeletonize(labels > 0)) == (1, 1, 1)


def test_tube_around_the_line_of_a_bar():
    bar = np.zeros((5, 9), bool)
    bar[1:4, 1:8] = True
    line = np.zeros_like(bar)
    line[1, 6] = line[2, 1:6] = True
    np.testing.assert_array_equal(np.argwhere(bar & ~tube(line)), [(3, 7)])


def naive_tube(mask, radius):
    structure = ndimage.generate_binary_structure(mask.ndim, 1)
    return ndimage.binary_dilation(mask, structure, radius) if radius else mask


@given(st.lists(st.integers(0, 9), min_size=2, max_size=3), st.integers(0, 2**32), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_tube_equals_dilations(shape, seed, radius):
    mask = np.random.default_rng(seed).random(shape) < 0.05
    np.testing.assert_array_equal(tube(mask, radius), naive_tube(mask, radius))


def test_tube_where_rows_take_several_words():
    for mask in random_masks(20, 9, 6, WIDTHS):
        np.testing.assert_array_equal(tube(mask, 3), naive_tube(mask, 3))


@pytest.mark.parametrize(("shape", "count"), [((9, 9), 13), ((9, 9, 9), 25)])
def test_tube_around_one_voxel(shape, count):
    mask = np.zeros(shape, np.int16)
    mask[(4,) * len(shape)] = -5
    assert tube(mask).sum() == count


@pytest.mark.parametrize(
    ("labels", "options", "error", "words"),
    [
        (np.zeros((3, 3)), {}, TypeError, "float64"),
        (np.zeros(3, int), {}, ValueError, r"\(3,\)"),
        (np.zeros((3, 3), int), {"compat": "skimage"}, ValueError, "got 'skimage'"),
    ],
)
def test_bad_input_is_refused(labels, options, error, words):
    with pytest.raises(error, match=words):
        skeletonize(labels, **options)


def test_bad_tubes_are_refused():
    with pytest.raises(TypeError, match="float64"):
        tube(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="got -1"):
        tube(np.zeros((3, 3), bool), -1)
