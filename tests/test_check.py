"""Every fault that a raw dataset can have is told, all at once, and nothing is touched."""

import gzip
import io
import json

import nibabel
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from nnunet_imbal import _progress
from nnunet_imbal.check import check_dataset, find_dataset, print_problems
from nnunet_imbal.cli import app, main
from nnunet_imbal.errors import ConfigError

SHAPE = (5, 6, 7)  # Z, Y, X
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def save(path, array, shift=0.0, spacing=1.0):
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[0, 3] = shift
    nibabel.save(nibabel.Nifti1Image(np.asarray(array).T, affine), path)


def describe(folder, **changes):
    content = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": LABELS,
        "numTraining": 5,
        "file_ending": ".nii.gz",
        **changes,
    }
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def image(rng):
    return rng.normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def label():
    label = np.zeros(SHAPE, np.uint8)
    label[1:4, 1:4, 1:4] = 1
    label[2, 2, 2] = 2
    return label


@pytest.fixture
def folder(tmp_path, image, label):
    """Five good cases a to e with two channels."""
    folder = tmp_path / "Dataset007_Brain"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in "abcde":
        for channel in range(2):
            save(folder / "imagesTr" / f"{case}_000{channel}.nii.gz", image)
        save(folder / "labelsTr" / f"{case}.nii.gz", label)
    describe(folder)
    return folder


def only(folder):
    (problem,) = check_dataset(folder)
    return problem


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def test_good_dataset_has_no_problem(folder):
    before = snapshot(folder)
    assert check_dataset(folder) == []
    assert snapshot(folder) == before


def test_case_of_ignore_label_only_is_fine(folder):
    describe(folder, labels={**LABELS, "ignore": 3})
    save(folder / "labelsTr" / "b.nii.gz", np.full(SHAPE, 3, np.uint8))
    assert check_dataset(folder) == []


def test_regions_are_fine(folder):
    describe(folder, labels={"background": 0, "whole": [1, 2], "lesion": 2}, regions_class_order=[1, 2])
    assert check_dataset(folder) == []


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"file_ending": None}, "DataError", "lacks file_ending"),
        ({"channel_names": None, "modality": {"0": "CT"}}, "DataError", 'lacks channel_names.*v1 said "modality"'),
        ({"channel_names": ["CT"]}, "DataError", "channel_names is .*expected"),
        ({"file_ending": "nii.gz"}, "DataError", "file_ending is 'nii.gz'"),
        ({"numTraining": None}, "DataError", "lacks numTraining"),
        ({"numTraining": 7}, "DataError", "numTraining is 7, but 5 cases"),
        ({"labels": None}, "LabelError", 'no "labels"'),
        ({"labels": {"0": "background", "1": "organ"}}, "LabelError", "turn it round"),
        ({"labels": {"organ": 1, "lesion": 2}}, "LabelError", "background is None, expected 0"),
        ({"labels": {**LABELS, "background": 3}}, "LabelError", "background is 3, expected 0"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 2, "lesion": 3}}, "LabelError", "ignore is 2.*needs 4"),
        ({"labels": {"background": 0, "whole": [1, 2], "lesion": 2}}, "LabelError", "order is None; expected 2"),
        ({"dataset": {"a": ["a.nii.gz"]}}, "DataError", '"dataset" is not like'),
    ],
)
def test_faults_of_dataset_json(folder, changes, error, words):
    describe(folder, **changes)
    problem = next(each for each in check_dataset(folder) if each.serious)
    assert (problem.case, problem.error) == ("", error)
    assert "dataset.json" in problem.message
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(problem.message)


def test_gap_between_labels(folder):
    describe(folder, labels={**LABELS, "cyst": 4})
    serious, warning = check_dataset(folder)
    assert "[0, 1, 2, 4]; nnU-Net needs 0, 1, 2, ... without a gap" in serious.message
    assert "class cyst (4) occurs in none of 5 label maps" in warning.message
    assert not warning.serious


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_dataset_json_missing_or_no_json(folder, text):
    (folder / "dataset.json").unlink()
    if text is not None:
        (folder / "dataset.json").write_text(text)
    problem = only(folder)
    assert (problem.error, problem.file) == ("DataError", folder / "dataset.json")


def test_empty_dataset(folder):
    for path in [*folder.glob("imagesTr/*"), *folder.glob("labelsTr/*")]:
        path.unlink()
    problem = only(folder)
    assert "no training image that ends in .nii.gz" in problem.message
    assert problem.serious


def test_missing_folder(folder):
    (folder / "labelsTr").rename(folder / "labels")
    assert "labelsTr is no folder" in only(folder).message


def test_missing_channel_extra_channel_and_wrong_number(folder, image):
    (folder / "imagesTr" / "b_0001.nii.gz").unlink()
    save(folder / "imagesTr" / "c_0002.nii.gz", image)
    (folder / "imagesTr" / "d_0001.nii.gz").rename(folder / "imagesTr" / "d_0002.nii.gz")
    first, second, third = check_dataset(folder)
    assert "case b has 1 image (b_0000.nii.gz), dataset.json declares 2 channels" in first.message
    assert "case c has 3 images" in second.message
    assert "(d_0000.nii.gz, d_0002.nii.gz)" in third.message
    assert [each.case for each in (first, second, third)] == ["b", "c", "d"]


def test_label_without_image_and_image_without_label(folder):
    for channel in range(2):
        (folder / "imagesTr" / f"b_000{channel}.nii.gz").unlink()
    (folder / "labelsTr" / "d.nii.gz").unlink()
    describe(folder, numTraining=4)
    no_image, no_label = (each for each in check_dataset(folder) if each.serious)
    assert (no_image.case, no_image.file) == ("b", folder / "labelsTr" / "b.nii.gz")
    assert "has no image; nnU-Net looks for imagesTr/b_0000.nii.gz" in no_image.message
    assert (no_label.case, no_label.file) == ("d", folder / "labelsTr" / "d.nii.gz")
    assert "has no label map" in no_label.message


def test_file_without_channel_number(folder, image):
    save(folder / "imagesTr" / "scan.nii.gz", image)
    assert "scan.nii.gz has no channel number" in only(folder).message


def test_hidden_file_counts_as_case_because_nnunet_takes_it_for_one(folder):
    (folder / "imagesTr" / "._a_0000.nii.gz").write_bytes(b"Mac OS X")
    assert "._a" in {each.case for each in check_dataset(folder) if each.serious}


def test_file_of_another_format_is_a_warning(folder, image):
    save(folder / "imagesTr" / "f_0000.nii", image)
    problem = only(folder)
    assert "leaves out what does not end in .nii.gz: f_0000.nii" in problem.message
    assert not problem.serious


def damage(kind, path, image):
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "too few voxels":
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-40]))
    elif kind == "no image":
        path.write_bytes(b"<html>404</html>")
    elif kind == "0 bytes":
        path.write_bytes(b"")
    elif kind == "dead link":
        path.unlink()
        path.symlink_to(path.with_name("gone"))
    elif kind == "4-D":
        save(path, np.stack([image, image]))
    else:
        image = image.copy()
        image[1, 2, 3] = float(kind)
        save(path, image)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut off", "damaged or cut off"),
        ("too few voxels", "damaged or cut off"),
        ("no image", "damaged or cut off"),
        ("0 bytes", "is empty"),
        ("dead link", "no such file"),
        ("4-D", "4-D"),
        ("nan", "voxel (1, 2, 3) (Z, Y, X) is nan"),
        ("inf", "voxel (1, 2, 3) (Z, Y, X) is inf"),
    ],
)
@pytest.mark.parametrize("part", ["imagesTr/c_0001.nii.gz", "labelsTr/c.nii.gz"])
def test_damaged_file(folder, image, kind, words, part):
    damage(kind, folder / part, image)
    problem = only(folder)
    assert (problem.case, problem.file, problem.error) == ("c", folder / part, "DataError")
    assert words in problem.message
    assert problem.serious


@pytest.mark.parametrize("part", ["imagesTr/c_0001.nii.gz", "labelsTr/c.nii.gz"])
@pytest.mark.parametrize(
    ("slices", "change", "words"),
    [(5, {"shift": 0.5}, "origin"), (5, {"spacing": 2.0}, "spacing"), (4, {}, "number of voxels along axis Z")],
)
def test_different_geometry(folder, image, label, part, slices, change, words):
    array = image if "images" in part else label
    save(folder / part, array[:slices], **change)
    problem = only(folder)
    assert (problem.case, problem.file, problem.error) == ("c", folder / part, "GeometryError")
    assert words in problem.message
    assert "c_0000.nii.gz" in problem.message


def test_undeclared_label(folder, label):
    label[0, 0, 0], label[0, 0, 1] = 9, 200
    save(folder / "labelsTr" / "c.nii.gz", label)
    problem = only(folder)
    assert (problem.case, problem.error) == ("c", "LabelError")
    assert "c.nii.gz holds the label 9, 200, dataset.json declares 0, 1, 2" in problem.message


def test_label_maps_that_are_none(folder, label):
    save(folder / "labelsTr" / "b.nii.gz", label * np.float32(0.7))
    save(folder / "labelsTr" / "c.nii.gz", label.astype(np.int16) * -1)
    fraction, negative = check_dataset(folder)
    assert (fraction.case, fraction.error) == ("b", "DataError")
    assert "not whole numbers" in fraction.message
    assert (negative.case, negative.error) == ("c", "LabelError")


def test_constant_image_and_absent_class_are_warnings(folder, label):
    save(folder / "imagesTr" / "b_0000.nii.gz", np.full(SHAPE, 3, np.int16))
    for case in "abcde":
        save(folder / "labelsTr" / f"{case}.nii.gz", np.minimum(label, 1))
    absent, constant = check_dataset(folder)
    assert not absent.serious
    assert not constant.serious
    assert "class lesion (2) occurs in none of 5 label maps" in absent.message
    assert "every voxel is 3" in constant.message


def test_few_cases_are_a_warning(folder):
    for path in [*folder.glob("imagesTr/e_*"), *folder.glob("labelsTr/e.*")]:
        path.unlink()
    describe(folder, numTraining=4)
    problem = only(folder)
    assert "five folds need 5" in problem.message
    assert not problem.serious


def test_files_listed_in_dataset_json(folder, monkeypatch):
    monkeypatch.setenv("IMAGES", str(folder / "imagesTr"))
    listed = {
        case: {
            "images": [f"$IMAGES/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz"],
            "label": f"labelsTr/{case}.nii.gz",
        }
        for case in "abcde"
    }
    describe(folder, dataset=listed)
    assert check_dataset(folder) == []
    listed["b"]["images"].pop()
    listed["d"]["label"] = "labelsTr/none.nii.gz"
    describe(folder, dataset=listed)
    count, missing = check_dataset(folder)
    assert "case b has 1 image (b_0000.nii.gz), dataset.json declares 2 channels; " in count.message
    assert str(missing.file).endswith("none.nii.gz")


@pytest.mark.parametrize(("ending", "words"), [(".png", "voxels of images"), (".tif", "no voxels")])
def test_pictures_are_checked_as_far_as_possible(folder, ending, words):
    for path in [*folder.glob("imagesTr/*"), *folder.glob("labelsTr/*")]:
        path.unlink()
    for case in "abcde":
        (folder / "imagesTr" / f"{case}_0000{ending}").write_bytes(b"colours")
        (folder / "labelsTr" / f"{case}{ending}").write_bytes(b"labels")
    describe(folder, channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=ending)
    problems = check_dataset(folder)
    assert any(words in each.message and not each.serious for each in problems)
    assert [each.case for each in problems if each.serious] == (list("abcde") if ending == ".png" else [])


def test_all_problems_are_told_in_the_same_order(folder, image, label):
    damage("cut off", folder / "imagesTr" / "d_0000.nii.gz", image)
    damage("nan", folder / "imagesTr" / "b_0000.nii.gz", image)
    damage("0 bytes", folder / "labelsTr" / "b.nii.gz", image)
    save(folder / "labelsTr" / "c.nii.gz", label * 5, shift=0.5)
    describe(folder, numTraining=3)
    problems = check_dataset(folder, workers=2)
    assert [each.case for each in problems] == ["", "b", "b", "c", "c", "d"]
    assert [each.error for each in problems[3:5]] == ["LabelError", "GeometryError"]
    assert check_dataset(folder, workers=1) == problems
    assert check_dataset(folder, workers=4) == problems


def test_no_worker_is_refused(folder):
    with pytest.raises(ConfigError, match="workers is 0"):
        check_dataset(folder, workers=0)


def test_progress_bar_comes_after_two_seconds(folder, monkeypatch, capsys):
    check_dataset(folder)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(_progress, "PATIENCE_SECONDS", 0.0)
    check_dataset(folder)
    assert "Checking" in capsys.readouterr().err


def test_find_dataset_by_path_number_and_name(folder, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(folder.parent))
    for name in (str(folder), "7", "007", "Dataset007_Brain"):
        assert find_dataset(name) == folder
    with pytest.raises(ConfigError, match="holds Dataset007_Brain"):
        find_dataset("8")
    with pytest.raises(ConfigError, match="Liver is no folder"):
        find_dataset("Liver")
    (folder.parent / "Dataset007_Head").mkdir()
    with pytest.raises(ConfigError, match="Dataset007_Brain and Dataset007_Head"):
        find_dataset("7")


def test_find_dataset_without_nnunet_raw(monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(ConfigError, match="nnUNet_raw is not set"):
        find_dataset("7")


def test_command_on_good_dataset(folder):
    result = CliRunner().invoke(app, ["check", str(folder)])
    assert (result.exit_code, result.stdout) == (0, "5 cases, nothing wrong\n")


def test_command_ends_with_status_1_and_a_table(folder, image):
    damage("nan", folder / "imagesTr" / "b_0000.nii.gz", image)
    result = CliRunner().invoke(app, ["check", str(folder)], terminal_width=200)
    assert result.exit_code == 1
    assert "DataError" in result.stdout
    assert result.stdout.endswith("5 cases, 1 error, 0 warnings\n")


def test_command_with_warnings_only_succeeds(folder):
    save(folder / "imagesTr" / "b_0000.nii.gz", np.zeros(SHAPE, np.int16))
    result = CliRunner().invoke(app, ["check", str(folder)])
    assert result.exit_code == 0
    assert result.stdout.endswith("5 cases, 0 errors, 1 warning\n")


def test_command_without_nnunet_raw_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    monkeypatch.setattr("sys.argv", ["nnunet-imbal", "check", "7"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.startswith("ConfigError: 7 is no folder")


def test_help_says_that_nothing_is_changed():
    assert "nothing is changed" in " ".join(CliRunner().invoke(app, ["check", "--help"]).stdout.split())


def test_table_shows_names_relative_to_the_dataset_and_odd_characters(folder, image):
    odd = folder / "labelsTr" / "[red]ü.nii.gz"
    damage("0 bytes", odd, image)
    console = Console(width=120, file=io.StringIO())
    print_problems(folder, check_dataset(folder), console)
    text = console.file.getvalue()
    assert "[red]ü" in text
    assert f"{folder}/labelsTr" not in text
