import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_imbal.metrics import match_contacts, touching_classes


def naive(labels, most):
    """Look from every voxel at its neighbours, which differ in at most so many coordinates."""
    pairs = set()
    for voxel in np.ndindex(labels.shape):
        for step in product((-1, 0, 1), repeat=labels.ndim):
            other = tuple(v + s for v, s in zip(voxel, step, strict=True))
            inside = all(0 <= o < n for o, n in zip(other, labels.shape, strict=True))
            if sum(map(abs, step)) <= most and inside and 0 < labels[voxel] < labels[other]:
                pairs.add((int(labels[voxel]), int(labels[other])))
    return pairs


@given(st.lists(st.integers(0, 5), min_size=2, max_size=3), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_equals_naive_twin(shape, seed):
    labels = np.random.default_rng(seed).choice([0, 0, 0, 0, 1, 2, 7, 300], shape)
    few = {2: 4, 3: 6}[labels.ndim]
    assert touching_classes(labels) == naive(labels, labels.ndim)
    assert touching_classes(labels, few) == naive(labels, 1)


def test_match():
    truth = np.array([[1, 2, 0, 3, 4]], np.uint8)
    found = np.array([[1, 2, 2, 3, 0]], np.uint8)
    match = match_contacts(found, truth)
    assert (match.kept, match.missed, match.invented) == ({(1, 2)}, {(3, 4)}, {(2, 3)})
    assert (match.recall, match.precision, match.f1) == (0.5, 0.5, 0.5)


def test_a_gap_inside_a_vessel_changes_no_contact():
    truth = np.zeros((5, 5, 10), np.uint8)
    truth[1:4, 1:4, 1:5], truth[2, 2, 5:9] = 1, 2
    found = truth.copy()
    found[2, 2, 6] = 0
    assert match_contacts(found, truth).f1 == 1
    found[2, 2, 5] = 0
    assert match_contacts(found, truth).missed == {(1, 2)}


def test_empty_maps():
    empty, pair = np.zeros((2, 2), np.uint8), np.array([[1, 2], [0, 0]], np.uint8)
    assert math.isnan(match_contacts(empty, empty).f1)
    for match in (match_contacts(empty, pair), match_contacts(pair, empty)):
        assert match.f1 == 0
    assert touching_classes(np.zeros((0, 3), int)) == frozenset()
    assert touching_classes(np.ones((3, 3), bool)) == frozenset()


def test_impossible_contacts_can_be_counted():
    allowed = touching_classes(np.array([[1, 2, 3]])) | touching_classes(np.array([[3, 4, 0]]))
    assert touching_classes(np.array([[2, 1, 4, 3]])) - allowed == {(1, 4)}


@pytest.mark.parametrize(
    ("labels", "connectivity", "error", "words"),
    [
        (np.zeros((3, 3)), None, TypeError, "float64"),
        (np.full((3, 3), -1), None, ValueError, "0 or more, got -1"),
        (np.zeros(3, int), None, ValueError, "2-D or 3-D"),
        (np.zeros((3, 3), int), 26, ValueError, r"\[4, 8\], got 26"),
    ],
)
def test_bad_input_is_refused(labels, connectivity, error, words):
    with pytest.raises(error, match=words):
        match_contacts(labels, labels, connectivity)


def test_other_grid_is_refused():
    with pytest.raises(ValueError, match="same grid"):
        match_contacts(np.zeros((2, 2), int), np.zeros((2, 3), int))
