"""What is learnt from training labels."""

import numpy as np
import pytest

from nnunet_imbal.adjacency import Adjacency, learn_adjacency, learn_radius_range
from nnunet_imbal.errors import DataError


@pytest.fixture
def cases():
    """Five times 1-2-3 in a row, once 1 and 3 touch as well; class 4 in one case only, far away."""
    row = np.zeros((4, 5, 12), np.uint8)
    row[1:3, 1:3, 1:4], row[1:3, 1:3, 4:7], row[1:3, 1:3, 7:10] = 1, 2, 3
    other = row.copy()
    other[3, 3, 2:8] = 1
    other[0, 4, 11] = 4
    return [row] * 4 + [other]


def test_equals_obvious_loops(rng):
    maps = [rng.integers(0, 5, (3, 4, 5)) * (rng.random((3, 4, 5)) < 0.2) for _ in range(6)]
    together, touching = np.zeros((4, 4), int), np.zeros((4, 4), int)
    for labels in maps:
        pairs = set()
        for voxel in np.ndindex(labels.shape):
            for step in np.ndindex(3, 3, 3):
                other = tuple(np.array(voxel) + step - 1)
                if all(0 <= o < n for o, n in zip(other, labels.shape, strict=True)):
                    pairs.add((int(labels[voxel]), int(labels[other])))
        for a, b in np.ndindex(4, 4):
            together[a, b] += a + 1 in labels and b + 1 in labels
            touching[a, b] += a != b and (a + 1, b + 1) in pairs
    found = learn_adjacency(maps, 5)
    assert found.together == together.tolist()
    assert found.touching == touching.tolist()


def test_neighbours_of_training_labels_are_never_forbidden(cases):
    """A list written by hand forbids three pairs that do touch, and in one direction only."""
    found = learn_adjacency(cases, 5)
    forbidden = np.array(found.forbidden(least_cases=1))
    assert (forbidden == forbidden.T).all()
    assert not (forbidden * np.array(found.touching)).any()
    assert found.share()[0, 2] == pytest.approx(0.2)
    assert forbidden[3].tolist() == [1, 1, 1, 0]


def test_rare_contacts_and_little_evidence(cases):
    found = learn_adjacency(cases, 5)
    assert found.forbidden()[3] == [0, 0, 0, 0]  # class 4 was seen once: no evidence, no penalty
    assert found.forbidden(rarely=0.5)[0] == [0, 0, 1, 0]


def test_functions_that_read_a_case(cases):
    assert learn_adjacency([lambda case=case: case for case in cases], 5) == learn_adjacency(cases, 5)


def test_label_out_of_range(cases):
    with pytest.raises(ValueError, match=r"0\.\.3, got 0\.\.4"):
        learn_adjacency(cases, 4)


def test_files_come_back_as_they_went(cases, tmp_path):
    found = learn_adjacency(cases, 5)
    found.save(tmp_path / "adjacency.json")
    assert Adjacency.load(tmp_path / "adjacency.json") == found
    assert [path.name for path in tmp_path.iterdir()] == ["adjacency.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"together": [[1]]}',
        '{"together": [[1, 2]], "touching": [[1, 2]]}',
        '{"together": [[1]], "touching": [[2]]}',
        '{"together": [["a"]], "touching": [["a"]]}',
    ],
)
def test_damaged_files_are_refused(text, tmp_path):
    (tmp_path / "adjacency.json").write_text(text)
    with pytest.raises(DataError, match="learn the adjacency again"):
        Adjacency.load(tmp_path / "adjacency.json")
    with pytest.raises(DataError, match=r"missing\.json"):
        Adjacency.load(tmp_path / "missing.json")


def test_radius_range_of_two_vessels():
    thin, thick = np.zeros((9, 9, 30), np.uint8), np.zeros((9, 9, 30), np.uint8)
    thin[4, 4], thick[1:8, 1:8] = 1, 2
    assert learn_radius_range([thin, thick], [(1, 1, 1), (0.5, 0.5, 0.5)]) == (1.0, 2.0)
    with pytest.raises(DataError, match="no range"):
        learn_radius_range([thin], [(1, 1, 1)])
    with pytest.raises(DataError, match="no range"):
        learn_radius_range([], [])
