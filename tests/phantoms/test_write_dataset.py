"""Datasets on disk: complete, as nnU-Net wants them, and never over something of the user's."""

import json

import nibabel as nib
import numpy as np
import pytest

from nnunet_imbal.check import check_dataset
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.phantoms import LesionPhantom, write_dataset

SMALL = LesionPhantom(shape=(28, 28, 28), spacing=(2.0, 2.0, 2.0))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_lesion_dataset_is_complete(tmp_path):
    folder = write_dataset(SMALL, tmp_path / "raw", dataset_id=7, cases=5, test_cases=1, seed=3)
    assert folder == tmp_path / "raw" / "Dataset007_PhantomLesions"
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [folder.name]
    expected = ["README.md", "dataset.json"]
    for part, name in [*(("Tr", f"lesions_{n:03d}") for n in range(5)), ("Ts", "lesions_test_000")]:
        expected += [f"images{part}/{name}_0000.nii.gz", f"labels{part}/{name}.nii.gz"]
        expected += [f"instances{part}/{name}.nii.gz", f"truth/{name}.json"]
    assert files(folder) == sorted(expected)
    assert check_dataset(folder) == []


def test_files_hold_what_the_phantom_made(tmp_path):
    folder = write_dataset(SMALL, tmp_path, cases=1, test_cases=1, seed=3)
    case = SMALL.test_case(3, 0)
    for part, wanted in [("imagesTs", case.image), ("labelsTs", case.label), ("instancesTs", case.instances)]:
        stored = nib.load(next((folder / part).iterdir()))
        np.testing.assert_array_equal(np.asarray(stored.dataobj), wanted)
        assert stored.get_data_dtype() == wanted.dtype
        assert stored.header.get_zooms() == (2.0, 2.0, 2.0)
    assert json.loads((folder / "truth" / "lesions_test_000.json").read_text()) == json.loads(json.dumps(case.truth))


@pytest.mark.filterwarnings("ignore:.*:ResourceWarning")
def test_spine_dataset_is_sound_and_says_what_it_is_for(tmp_path):
    folder = write_dataset("spine", tmp_path, cases=5, test_cases=4)
    assert folder.name == "Dataset900_Spine"
    assert check_dataset(folder) == []
    assert [path.name for path in sorted((folder / "labelsTs").iterdir())] == [
        "spine_test_000.nii.gz",
        "spine_test_001.nii.gz",
    ]
    assert "does NOT measure generalisation" in (folder / "README.md").read_text(encoding="utf-8")
    assert "does NOT measure generalisation" in (folder / "dataset.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["Dataset900_PhantomLesions", "Dataset900_Mine"])
def test_a_dataset_with_this_number_stays_as_it_is(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match=name):
        write_dataset(SMALL, tmp_path, cases=1, test_cases=0)
    assert files(tmp_path) == [f"{name}/precious.txt"]


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "raw").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        write_dataset(SMALL, tmp_path / "raw", cases=1, test_cases=0)


class Failing(LesionPhantom):
    def test_case(self, seed, index):
        raise KeyboardInterrupt


def test_nothing_half_done_is_left_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_dataset(Failing(shape=(28, 28, 28)), tmp_path, cases=1, test_cases=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("phantom-lesion", {}, "phantom-lesions"),
        ("spines", {}, "did you mean 'spine'"),
        ("spine", {"dataset_id": 1000}, "1000"),
        ("spine", {"cases": 0}, "0 training"),
        ("spine", {"test_cases": -1}, "-1 test"),
        ("spine", {"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_words_and_numbers_are_refused(tmp_path, name, numbers, message):
    with pytest.raises(ConfigError, match=message):
        write_dataset(name, tmp_path, **numbers)
    assert list(tmp_path.iterdir()) == []
