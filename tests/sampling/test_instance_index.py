"""Instances are found as scipy finds them, and kept in a file only as long as that file tells the truth."""

import hashlib
import json
import os
from dataclasses import fields

import numpy as np
import pytest
from scipy import ndimage

from nnunet_imbal.errors import ConfigError, DataError, LabelError
from nnunet_imbal.sampling import MAX_POSITIONS, InstanceIndex, build_index, cached_index, find_instances, merge


def naive(mask):
    """Per component: box, and the set of its voxels."""
    components, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    for number, box in zip(range(1, count + 1), ndimage.find_objects(components), strict=True):
        yield [(each.start, each.stop) for each in box], set(map(tuple, np.argwhere(components == number).tolist()))


def assert_same(one, two):
    for field in fields(InstanceIndex):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))
        assert getattr(one, field.name) is not None


@pytest.mark.parametrize("classes", [[1, 2], [(1, 2), 2], [5]])
@pytest.mark.parametrize("shape", [(24, 21), (14, 12, 13)])
def test_equal_to_scipy(rng, shape, classes):
    labels = rng.choice(np.array([0, 1, 2, 3], np.int8), shape, p=[0.85, 0.07, 0.05, 0.03])
    labels[:8, :8] = 1  # an instance with more voxels than are remembered
    index = find_instances(labels, classes, case="x")
    assert index.cases == ("x",)
    row = 0
    for number, each in enumerate(classes):
        for box, voxels in naive(np.isin(labels, each)):
            assert index.class_of[row] == number
            assert index.volumes[row] == len(voxels)
            assert index.boxes[row].tolist() == [list(span) for span in box]
            remembered = index.positions[index.first_position[row] : index.first_position[row + 1]]
            assert len({tuple(v) for v in remembered.tolist()} & voxels) == min(MAX_POSITIONS, len(voxels))
            row += 1
    assert row == len(index)
    assert index.first_position[-1] == len(index.positions)


def test_touching_classes_are_two_instances_and_corners_join():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0], labels[1, 1, 1], labels[1, 1, 2] = 1, 1, 2
    assert find_instances(labels).volumes.tolist() == [2, 1]
    assert find_instances(labels, [(1, 2)]).volumes.tolist() == [3]


def test_small_instances_other_labels_and_negative_values_are_left_out():
    labels = np.array([[-1, -1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 3, 3, 3]], np.int16)
    index = find_instances(labels, [1, 2], min_voxels=2)
    assert index.volumes.tolist() == [2]
    assert index.cases_per_class().tolist() == [1, 0]


def test_without_foreground():
    index = find_instances(np.zeros((3, 4, 5), bool), [1])
    assert len(index) == 0
    assert index.boxes.shape == (0, 3, 2)
    assert index.positions.shape == (0, 3)
    assert len(merge([index, index])) == 0


def test_floats_of_whole_numbers_are_labels():
    assert find_instances(np.array([[0.0, 1.0]])).volumes.tolist() == [1]


@pytest.mark.parametrize(
    "labels", [np.array([[0.5]]), np.array([[np.nan]]), np.array([[np.inf]]), np.ones((1, 2, 2, 2))]
)
def test_not_a_label_map(labels):
    with pytest.raises(LabelError, match="expected"):
        find_instances(labels)


@pytest.mark.parametrize("option", ["min_voxels", "max_positions"])
def test_impossible_options(option):
    with pytest.raises(ConfigError, match=f"{option} must be at least 1, got 0"):
        find_instances(np.ones((2, 2), bool), **{option: 0})


def test_merge_refuses_other_classes():
    parts = [find_instances(np.ones((2, 2), np.uint8), classes) for classes in ([1], [2])]
    with pytest.raises(ValueError, match="same classes"):
        merge(parts)


class Cases:
    """Label maps in files, and how often they were read."""

    def __init__(self, folder, rng):
        self.files, self.read, self.words = {}, [], []
        self.path = folder / "kept" / "index.npz"
        for case in ("a", "b", "c"):
            self.files[case] = folder / f"{case}.npy"
            np.save(self.files[case], rng.choice(np.array([0, 1, 2], np.int8), (9, 9, 9), p=[0.9, 0.05, 0.05]))

    def load(self, case):
        self.read.append(case)
        return np.load(self.files[case])

    def index(self, classes=((1,), (2,)), **options):
        self.read.clear()
        self.words.clear()
        return cached_index(self.path, self.files, self.load, classes, say=self.words.append, **options)


@pytest.fixture
def cases(tmp_path, rng):
    made = Cases(tmp_path, rng)
    made.first = made.index()
    assert sorted(made.read) == ["a", "b", "c"]
    return made


def test_kept_and_read_again(cases):
    assert_same(cases.index(), cases.first)
    assert cases.read == cases.words == []
    assert sorted(path.name for path in cases.path.parent.iterdir()) == ["index.json", "index.npz"]
    assert_same(build_index("abc", cases.load, [(1,), (2,)]), cases.first)


def _touch(cases):
    os.utime(cases.files["b"], ns=(1, 1))


def _new_labels(cases):
    np.save(cases.files["b"], np.ones((4, 4, 4), np.int8))


def _fewer_cases(cases):
    del cases.files["c"]


def _other_order(cases):
    cases.files = dict(reversed(cases.files.items()))


@pytest.mark.parametrize("change", [_touch, _new_labels, _fewer_cases, _other_order])
def test_made_again_when_the_cases_change(cases, change):
    change(cases)
    index = cases.index()
    assert sorted(cases.read) == sorted(cases.files)
    assert list(index.cases) == list(cases.files)
    cases.index()
    assert cases.read == []


def test_made_again_when_the_settings_change(cases):
    assert cases.index(classes=[(1, 2)]).classes == ((1, 2),)
    assert cases.read
    assert cases.index(classes=[(1, 2)], min_voxels=2).volumes.min() == 2
    assert cases.read


@pytest.mark.parametrize("suffix", [".npz", ".json"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"[1]", b"\xff\xfe"])
def test_damaged_files_are_made_again_with_a_word(cases, suffix, content):
    cases.path.with_suffix(suffix).write_bytes(content)
    assert_same(cases.index(), cases.first)
    assert "is damaged" in cases.words[0]
    cases.index()
    assert cases.words == []


def test_one_flipped_bit_is_noticed(cases):
    data = bytearray(cases.path.read_bytes())
    data[len(data) // 2] ^= 1
    cases.path.write_bytes(bytes(data))
    assert_same(cases.index(), cases.first)
    assert "checksum" in cases.words[0]


def test_nothing_is_unpickled(cases):
    np.savez(cases.path, volumes=np.array([print], dtype=object))
    note = cases.path.with_suffix(".json")
    forged = json.loads(note.read_text()) | {"sha256": hashlib.sha256(cases.path.read_bytes()).hexdigest()}
    note.write_text(json.dumps(forged))
    assert_same(cases.index(), cases.first)
    assert "is damaged" in cases.words[0]


def test_a_place_that_cannot_be_written_costs_the_file_only(tmp_path, rng):
    cases = Cases(tmp_path, rng)
    (tmp_path / "kept").write_text("a file where the folder should be")
    assert len(cases.index())
    assert "could not be kept" in cases.words[-1]


def test_an_unreadable_case_is_named(cases):
    cases.files["b"].write_bytes(b"\x93NUMPY rubbish")
    with pytest.raises(DataError, match="case b"):
        cases.index()
    cases.files["b"].unlink()
    with pytest.raises(DataError, match="of case b: No such file"):
        cases.index()
    with pytest.raises(DataError, match="no case"):
        build_index([], cases.load, [(1,)])
