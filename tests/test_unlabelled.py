"""Unlabelled cases come in whole or not at all, nnU-Net can use them, and they go out again without a trace."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from nnunet_imbal.check import inspect_dataset, is_unlabelled
from nnunet_imbal.cli import app
from nnunet_imbal.errors import ConfigError, DataError, GeometryError
from nnunet_imbal.io import check_same_geometry, read_label
from nnunet_imbal.unlabelled import add_unlabelled, dataset, extract_fingerprint, intensities, remove_unlabelled
from nnunet_imbal.unlabelled._names import group_by_case

SHAPE = (6, 7, 8)  # Z, Y, X
LABELS = {"background": 0, "organ": 1, "lesion": 2}
REGIONS = {"background": 0, "whole": [1, 2], "lesion": 2}


def save(path, array, shift=0.0):
    affine = np.diag([-1.0, -1.5, 2.0, 1.0])
    affine[0, 3] = shift
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.asarray(array).T, affine), path)


def description(folder):
    return json.loads((folder / "dataset.json").read_text())


def describe(folder, **changes):
    content = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": 5,
        "file_ending": ".nii.gz",
        "reference": "kept as it is",
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def make_image(rng):
    return lambda: rng.normal(100, 20, SHAPE).astype(np.float32)


@pytest.fixture
def folder(tmp_path, make_image):
    """Five labelled cases a to e."""
    folder = tmp_path / "Dataset007_Brain"
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 1:4, 1:4], labels[2, 2, 2] = 1, 2
    for case in "abcde":
        save(folder / "imagesTr" / f"{case}_0000.nii.gz", make_image())
        save(folder / "labelsTr" / f"{case}.nii.gz", labels)
    describe(folder)
    return folder


@pytest.fixture
def pool(tmp_path, make_image):
    """Three images elsewhere."""
    for case in ("u1", "u2", "u3"):
        save(tmp_path / "pool" / f"{case}.nii.gz", make_image())
    return tmp_path / "pool"


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class TestAdd:
    def test_a_folder_of_images(self, folder, pool):
        before = snapshot(folder)
        assert add_unlabelled(folder, [pool]) == ["u1", "u2", "u3"]
        after = snapshot(folder)
        for case in ("u1", "u2", "u3"):
            assert after[Path(f"imagesTr/{case}_0000.nii.gz")] == (pool / f"{case}.nii.gz").read_bytes()
            assert (read_label(folder / "labelsTr" / f"{case}.nii.gz").array == 3).all()
        content = description(folder)
        assert content["labels"] == {**LABELS, "ignore": 3}
        assert (content["numTraining"], content["reference"]) == (8, "kept as it is")
        untouched = before.keys() - {Path("dataset.json")}
        assert all(after[path] == before[path] for path in untouched)
        assert len(after) == len(before) + 7  # three images, three label maps, the note

    def test_check_accepts_them_and_counts_them(self, folder, pool):
        add_unlabelled(folder, [pool])
        found = inspect_dataset(folder)
        assert (found.problems, found.unlabelled) == ([], ("u1", "u2", "u3"))
        done = CliRunner().invoke(app, ["check", str(folder)])
        assert done.exit_code == 0
        assert "8 cases (3 unlabelled), nothing wrong" in done.output

    def test_too_few_labelled_cases_are_told(self, folder, pool):
        add_unlabelled(folder, [pool])
        for case in "bcde":
            (folder / "labelsTr" / f"{case}.nii.gz").write_bytes((folder / "labelsTr/u1.nii.gz").read_bytes())
        messages = [problem.message for problem in inspect_dataset(folder).problems]
        assert any("1 labelled case beside 7 unlabelled: no fold can be validated" in words for words in messages)

    def test_outside_of_the_image_is_background(self, folder, tmp_path, make_image):
        image, inside = make_image(), np.zeros(SHAPE, bool)
        inside[1:5, 2:6, 2:7] = True
        image[~inside] = 0
        image[3, 4, 4] = 0  # a hole in the middle belongs to the image
        save(tmp_path / "mr.nii.gz", image)
        add_unlabelled(folder, [tmp_path / "mr.nii.gz"])
        labels = read_label(folder / "labelsTr" / "mr.nii.gz").array
        np.testing.assert_array_equal(labels, np.where(inside, 3, 0))
        assert inspect_dataset(folder).unlabelled == ("mr",)

    def test_regions_and_channels(self, folder, tmp_path, make_image):
        describe(folder, labels=REGIONS, regions_class_order=[1, 2], channel_names={"0": "T1", "1": "T2"})
        for case in "abcde":
            save(folder / "imagesTr" / f"{case}_0001.nii.gz", make_image())
        for channel in range(2):
            save(tmp_path / f"x_000{channel}.nii.gz", make_image())
        assert add_unlabelled(folder, sorted(tmp_path.glob("x_*")), prefix="more_") == ["more_x"]
        assert description(folder)["labels"] == {**REGIONS, "ignore": 3}
        assert inspect_dataset(folder).problems == []

    def test_a_declared_ignore_label_stays(self, folder, pool):
        describe(folder, labels={**LABELS, "ignore": 3})
        add_unlabelled(folder, [pool])
        remove_unlabelled(folder)
        assert description(folder)["labels"]["ignore"] == 3

    def test_twice(self, folder, pool):
        add_unlabelled(folder, [pool / "u1.nii.gz"])
        add_unlabelled(folder, [pool / "u2.nii.gz"], link=True)
        assert (folder / "imagesTr" / "u2_0000.nii.gz").is_symlink()
        assert remove_unlabelled(folder).removed == ("u1", "u2")
        assert (pool / "u2.nii.gz").is_file()

    def test_a_dataset_that_lists_its_files(self, folder, pool):
        listed = {
            case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"} for case in "abcde"
        }
        describe(folder, dataset=listed)
        before = snapshot(folder)
        add_unlabelled(folder, [pool])
        assert inspect_dataset(folder).unlabelled == ("u1", "u2", "u3")
        remove_unlabelled(folder)
        assert json.loads(before[Path("dataset.json")]) == description(folder)


def _nan(image):
    image[0, 0, 0] = np.nan
    return image


# What is done to the dataset and the pool of images, with a new image at hand.
FAULTS = {
    "cut off": lambda folder, pool, new: (pool / "u2.nii.gz").write_bytes((pool / "u2.nii.gz").read_bytes()[:-40]),
    "constant": lambda folder, pool, new: save(pool / "u2.nii.gz", 0 * new),
    "flat": lambda folder, pool, new: save(pool / "u2.nii.gz", new[:1]),
    "nan": lambda folder, pool, new: save(pool / "u2.nii.gz", _nan(new)),
    "taken": lambda folder, pool, new: save(pool / "B.nii.gz", new),
    "twin": lambda folder, pool, new: (pool / "x.nii.gz").write_bytes(
        (folder / "imagesTr" / "c_0000.nii.gz").read_bytes()
    ),
    "twice": lambda folder, pool, new: save(pool / "u2_0000.nii.gz", new),
    "two channels": lambda folder, pool, new: save(pool / "u2_0001.nii.gz", new),
    "in the way": lambda folder, pool, new: (folder / "labelsTr" / "u2.nii.gz").write_bytes(b""),
    "dataset": lambda folder, pool, new: describe(folder, numTraining=7),
    "labels": lambda folder, pool, new: describe(folder, labels={"background": 0, "lesion": 2}),
}


class TestAllOrNothing:
    @pytest.mark.parametrize(
        ("kind", "error", "message"),
        [
            ("cut off", DataError, "u2.nii.gz cannot be read"),
            ("constant", DataError, "every voxel is 0.0"),
            ("flat", DataError, "single slice, expected a 3-D image"),
            ("nan", DataError, "is nan, one of 1"),
            ("taken", DataError, "has a case B already; set a prefix"),
            ("twin", DataError, "byte for byte"),
            ("twice", DataError, "both channel 0 of case u2"),
            ("two channels", DataError, "u2.nii.gz and .*u2_0001.nii.gz look like two channels of one case"),
            ("in the way", DataError, "u2.nii.gz has no image.*Nothing was added"),
            ("dataset", DataError, "numTraining is 7.*Nothing was added"),
            ("labels", DataError, "without a gap.*Nothing was added"),
        ],
    )
    def test_a_fault_changes_nothing(self, folder, pool, make_image, kind, error, message):
        FAULTS[kind](folder, pool, make_image())
        before = snapshot(folder)
        with pytest.raises(error, match=message):
            add_unlabelled(folder, [pool])
        assert snapshot(folder) == before
        assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [("nowhere", "nowhere: no such file or folder"), ("u.mha", "does not end in .nii.gz"), ("", "no .nii.gz file")],
    )
    def test_no_such_image(self, folder, tmp_path, name, message):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "u.mha").touch()
        with pytest.raises(DataError, match=message):
            add_unlabelled(folder, [tmp_path / "empty" / name])

    def test_channels_on_different_grids(self, folder, tmp_path, make_image):
        describe(folder, channel_names={"0": "T1", "1": "T2"})
        for case in "abcde":
            save(folder / "imagesTr" / f"{case}_0001.nii.gz", make_image())
        save(tmp_path / "x_0000.nii.gz", make_image())
        save(tmp_path / "x_0001.nii.gz", make_image(), shift=3.0)
        with pytest.raises(GeometryError, match="origin in mm along patient axis x"):
            add_unlabelled(folder, sorted(tmp_path.glob("x_*")))
        with pytest.raises(DataError, match="case x has the channels 0000, expected 0000 to 0001"):
            add_unlabelled(folder, [tmp_path / "x_0000.nii.gz"])
        assert description(folder)["numTraining"] == 5

    @pytest.mark.parametrize("moment", range(7))
    def test_a_full_disk_at_any_moment(self, folder, pool, monkeypatch, moment):
        """The n-th file that is put in its place fails; the note is the first, dataset.json the last."""
        before, count = snapshot(folder), iter(range(100))
        rename, write = Path.rename, dataset.write_atomically

        def failing(operation):
            def run(*arguments):
                if next(count) == moment:
                    raise OSError(28, "No space left on device")
                return operation(*arguments)

            return run

        monkeypatch.setattr(Path, "rename", failing(rename))
        monkeypatch.setattr(dataset, "write_atomically", failing(write))
        with pytest.raises(DataError, match=r"No space left on device.*nothing there was changed"):
            add_unlabelled(folder, [pool])
        assert snapshot(folder) == before

    def test_killed_in_the_middle(self, folder, pool, monkeypatch):
        """All files are there, dataset.json is not written, nothing is undone: --remove still cleans up."""
        before = snapshot(folder)
        add_unlabelled(folder, [pool])
        (folder / "dataset.json").write_bytes(before[Path("dataset.json")])
        (folder / "imagesTr" / "u3_0000.nii.gz").unlink()
        remove_unlabelled(folder)
        assert description(folder) == json.loads(before[Path("dataset.json")])
        assert snapshot(folder).keys() == before.keys()


class TestRemove:
    def test_everything_is_as_before(self, folder, pool):
        before = snapshot(folder)
        add_unlabelled(folder, [pool])
        assert remove_unlabelled(folder).removed == ("u1", "u2", "u3")
        after = snapshot(folder)
        assert json.loads(after.pop(Path("dataset.json"))) == json.loads(before.pop(Path("dataset.json")))
        assert after == before

    def test_what_was_annotated_since_stays(self, folder, pool):
        add_unlabelled(folder, [pool])
        labels = np.full(SHAPE, 3, np.uint8)
        labels[:3] = 1
        save(folder / "labelsTr" / "u2.nii.gz", labels)
        done = remove_unlabelled(folder)
        assert (done.removed, done.kept) == (("u1", "u3"), ("u2",))
        assert (folder / "imagesTr" / "u2_0000.nii.gz").is_file()
        assert inspect_dataset(folder).problems == []
        assert description(folder)["numTraining"] == 6
        with pytest.raises(ConfigError, match=r"has no unlabelled.json"):
            remove_unlabelled(folder)

    def test_the_last_copy_of_an_image_is_not_deleted(self, folder, pool):
        add_unlabelled(folder, [pool])
        (pool / "u2.nii.gz").unlink()
        before = snapshot(folder)
        with pytest.raises(DataError, match=r"u2_0000.nii.gz was copied from .*u2.nii.gz, which is gone"):
            remove_unlabelled(folder)
        assert snapshot(folder) == before

    def test_a_note_that_leads_elsewhere_is_refused(self, folder, pool):
        add_unlabelled(folder, [pool])
        note = folder / "unlabelled.json"
        note.write_text(note.read_text().replace('"u1"', '"../../u1"'))
        with pytest.raises(DataError, match="is no case name"):
            remove_unlabelled(folder)

    def test_splits_forget_them(self, folder, pool, tmp_path):
        add_unlabelled(folder, [pool])
        preprocessed = tmp_path / "preprocessed" / folder.name
        preprocessed.mkdir(parents=True)
        splits = [{"train": ["a", "b", "u1", "u2"], "val": ["c"]}]
        (preprocessed / "splits_final.json").write_text(json.dumps(splits))
        remove_unlabelled(folder, preprocessed=preprocessed)
        assert json.loads((preprocessed / "splits_final.json").read_text()) == [{"train": ["a", "b"], "val": ["c"]}]


class TestFingerprint:
    """nnU-Net's own extraction is tried in tests/trainers; here: what it gets to see, and where its result goes."""

    def view(self, folder, tmp_path):
        intensities._write_view(folder, tmp_path / "view")
        return json.loads((tmp_path / "view" / "dataset.json").read_text())

    def test_labelled_cases_only_and_no_voxel_to_ignore(self, folder, pool, tmp_path):
        add_unlabelled(folder, [pool])
        partly = read_label(folder / "labelsTr" / "b.nii.gz").array
        partly[4:] = 3
        save(folder / "labelsTr" / "b.nii.gz", partly)
        save(folder / "labelsTr" / "c.nii.gz", np.full(SHAPE, 3, np.uint8))  # unlabelled by the user's own hand
        content = self.view(folder, tmp_path)
        assert content["numTraining"] == 4
        assert sorted(content["dataset"]) == ["a", "b", "d", "e"]
        for case, files in content["dataset"].items():
            assert files["images"] == [str(folder / "imagesTr" / f"{case}_0000.nii.gz")]
        assert content["dataset"]["a"]["label"] == str(folder / "labelsTr" / "a.nii.gz")
        seen = read_label(content["dataset"]["b"]["label"])
        np.testing.assert_array_equal(seen.array, np.where(partly == 3, 0, partly))
        check_same_geometry(seen, read_label(folder / "labelsTr" / "b.nii.gz"))

    def test_without_an_ignore_label_nothing_changes(self, folder, tmp_path):
        listed = self.view(folder, tmp_path)["dataset"]
        assert [files["label"] for files in listed.values()] == [str(folder / f"labelsTr/{c}.nii.gz") for c in "abcde"]

    def test_no_labelled_case(self, folder, pool, tmp_path):
        add_unlabelled(folder, [pool])
        for case in "abcde":
            save(folder / "labelsTr" / f"{case}.nii.gz", np.full(SHAPE, 3, np.uint8))
        with pytest.raises(DataError, match="has no labelled case"):
            self.view(folder, tmp_path)

    def test_a_former_fingerprint_is_kept(self, tmp_path):
        for content in ("old", "new"):
            path = intensities._keep(tmp_path / "Dataset007_Brain", content)
        assert (path.name, path.read_text()) == ("dataset_fingerprint.json", "new")
        assert path.with_suffix(".json.bak").read_text() == "old"

    def test_a_name_nnunet_would_not_find(self, folder, tmp_path):
        with pytest.raises(ConfigError, match="Brain is no name of an nnU-Net dataset"):
            extract_fingerprint(folder.rename(tmp_path / "Brain"), tmp_path)


class TestCommand:
    def test_add_and_remove(self, folder, pool, monkeypatch):
        monkeypatch.setenv("nnUNet_raw", str(folder.parent))
        monkeypatch.delenv("nnUNet_preprocessed", raising=False)
        run = CliRunner().invoke
        done = run(app, ["add-unlabelled", "7", str(pool / "u1.nii.gz"), str(pool / "u2.nii.gz"), "--prefix", "p"])
        assert done.exit_code == 0, done.output
        assert "Added 2 unlabelled cases" in done.output
        assert "pu1, pu2" in done.output
        assert "nnunet-imbal extract-fingerprint 7" in done.output
        done = run(app, ["add-unlabelled", "7", "--remove"])
        assert done.exit_code == 0, done.output
        assert "Removed 2 unlabelled cases" in done.output

    @pytest.mark.parametrize("words", [[], ["--remove", "x.nii.gz"]])
    def test_images_or_remove(self, folder, words):
        done = CliRunner().invoke(app, ["add-unlabelled", str(folder), *words])
        assert done.exit_code == 2
        assert "name the images to add, or say --remove" in done.output

    def test_fingerprint_needs_the_folder(self, folder, monkeypatch):
        monkeypatch.delenv("nnUNet_preprocessed", raising=False)
        done = CliRunner().invoke(app, ["extract-fingerprint", str(folder)])
        assert isinstance(done.exception, ConfigError)


def test_names():
    files = [Path(name) for name in ("ct_0012.nii.gz", "y_0000.nii.gz", "scan.1.nii.gz")]
    assert group_by_case(files, ".nii.gz", 1) == {"ct_0012": [files[0]], "scan.1": [files[2]], "y": [files[1]]}
    with pytest.raises(DataError, match="has no channel number"):
        group_by_case(files, ".nii.gz", 2)
    with pytest.raises(ConfigError, match="cannot begin a case name"):
        group_by_case(files, ".nii.gz", 1, "a/b")


@pytest.mark.parametrize(
    ("labels", "content", "expected"),
    [
        ([3, 3, 3], [1, 1, 1], True),
        ([3, 0, 3], [1, 0, 1], True),
        ([3, 0, 3], [1, 1, 1], False),
        ([3, 1, 3], [1, 0, 1], False),
        ([0, 0, 0], [0, 0, 0], False),
        ([3, 0, 3], None, False),
    ],
)
def test_is_unlabelled(labels, content, expected):
    labels, content = np.array(labels), None if content is None else np.array(content, bool)
    assert is_unlabelled(labels, 3, content) is expected
    assert not is_unlabelled(labels, None, content)
