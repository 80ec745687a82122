import itertools
import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from nnunet_imbal.metrics import junctions, match_junctions


def tree(shape, *lines):
    """Straight lines one voxel thick between the given voxels."""
    mask = np.zeros(shape, bool)
    for start, stop in lines:
        start, stop = np.array(start), np.array(stop)
        for t in np.linspace(0, 1, 4 * max(shape)):
            mask[tuple(np.round(start + (stop - start) * t).astype(int))] = True
    return mask


def most_pairs(points, others, distance):
    """Try every assignment."""
    if len(points) > len(others):
        points, others = others, points
    near = np.linalg.norm(points[:, None] - others[None], axis=2) <= distance
    return max(
        sum(near[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(len(others)), len(points))
    )


def test_shapes_with_known_branchings():
    letter_y = tree((20, 20), ((10, 10), (1, 10)), ((10, 10), (18, 3)), ((10, 10), (18, 17)))
    letter_h = tree((9, 21), ((4, 5), (4, 15)), ((0, 5), (8, 5)), ((0, 15), (8, 15)))
    corner = tree((9, 9), ((1, 1), (1, 7)), ((1, 7), (7, 7)))
    ring = tree((9, 9), ((1, 4), (4, 7)), ((4, 7), (7, 4)), ((7, 4), (4, 1)), ((4, 1), (1, 4)))
    assert [len(junctions(mask)) for mask in (letter_y, letter_h, corner, ring)] == [1, 2, 0, 0]
    np.testing.assert_allclose(junctions(letter_h), [[4, 5], [4, 15]], atol=1)
    np.testing.assert_allclose(junctions(letter_y), [[10, 10]], atol=1)


def test_thick_vessels_branch_once():
    thin = tree((30, 30, 30), ((15, 15, 15), (2, 15, 15)), ((15, 15, 15), (27, 4, 15)), ((15, 15, 15), (27, 26, 15)))
    cube = np.ones((3, 3, 3), bool)
    for mask in (thin, binary_dilation(thin, cube)):
        places = junctions(mask)
        assert len(places) == 1
        assert np.linalg.norm(places[0] - 15) < 4


def test_bends_are_no_branchings():
    """Staircases of every slope, in the plane and in space."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        ends = rng.integers(0, 30, (2, 3))
        assert len(junctions(tree((30, 30, 30), ends))) == 0


def test_match():
    truth = tree((9, 41), ((4, 0), (4, 40)), ((0, 10), (8, 10)), ((0, 30), (8, 30)))
    found = tree((9, 41), ((4, 0), (4, 40)), ((0, 12), (8, 12)), ((0, 20), (8, 20)))
    match = match_junctions(found, truth, spacing=(1, 0.5), tolerance_mm=1)
    np.testing.assert_array_equal(match.found, [[4, 10]])
    np.testing.assert_array_equal(match.missed, [[4, 30]])
    np.testing.assert_array_equal(match.invented, [[4, 20]])
    assert (match.recall, match.precision, match.f1) == (0.5, 0.5, 0.5)
    assert match_junctions(found, truth, spacing=(1, 0.51), tolerance_mm=1).f1 == 0


@pytest.mark.parametrize("seed", range(12))
def test_as_many_pairs_as_possible(seed):
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        columns = rng.choice(np.arange(2, 38, 3), 4, replace=False)
        masks.append(tree((9, 41), ((4, 0), (4, 40)), *(((1, x), (7, x)) for x in columns.tolist())))
    match = match_junctions(*masks, spacing=(1, 1), tolerance_mm=4)
    assert len(match.found) == most_pairs(junctions(masks[0]), junctions(masks[1]), 4)
    assert len(match.found) + len(match.missed) == len(match.found) + len(match.invented) == 4


def test_nothing_to_branch():
    empty, line, cross = np.zeros((9, 9), bool), np.eye(9, dtype=bool), np.zeros((9, 9), bool)
    cross[4] = cross[:, 4] = True
    assert junctions(empty).shape == (0, 2)
    for pred, ref in itertools.product((empty, line), repeat=2):
        assert math.isnan(match_junctions(pred, ref, (1, 1), 1).f1)
    assert match_junctions(cross, line, (1, 1), 1).f1 == match_junctions(line, cross, (1, 1), 1).f1 == 0
    assert match_junctions(cross, cross, (1, 1), 0).f1 == 1


def test_labels_are_no_mask():
    with pytest.raises(ValueError, match=r"int64; compare labels first"):
        junctions(np.eye(3, dtype=np.int64))


@pytest.mark.parametrize(
    ("shape", "spacing", "tolerance", "words"),
    [
        ((3, 4), (1, 1), 1, "same grid"),
        ((3, 3), (1, 1, 1), 1, "2 positive numbers"),
        ((3, 3), (1, 1), -1, "0 or more"),
        ((3, 3), (1, 1), math.nan, "0 or more"),
    ],
)
def test_bad_input_is_refused(shape, spacing, tolerance, words):
    with pytest.raises(ValueError, match=words):
        match_junctions(np.zeros((3, 3), bool), np.zeros(shape, bool), spacing, tolerance)
