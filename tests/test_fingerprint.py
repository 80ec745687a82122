"""The imbalance fingerprint: measures against plain loops, sums over cases, what is said, the file that keeps it."""

import json
from dataclasses import replace
from math import comb
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nnunet_imbal.cli import app
from nnunet_imbal.errors import DataError, LabelError
from nnunet_imbal.evaluation import DatasetLabels
from nnunet_imbal.fingerprint import default_path, describe, fingerprint_dataset, is_tree, load_fingerprint
from nnunet_imbal.fingerprint.case import chance_of_no_centre, measure_case, skeleton_length
from nnunet_imbal.fingerprint.dataset import summarise
from nnunet_imbal.fingerprint.words import is_scattered

LABELS = {"background": 0, "left vein": 1, "right vein": 2, "lesion": 3, "never": 4, "ignore": 5}


def write_case(folder, name, array, spacing=(1.0, 1.0, 2.0)):
    """The array is (Z, Y, X), the spacing of the file x, y, z."""
    image = nibabel.Nifti1Image(array.transpose().astype(np.uint8), np.diag([*spacing, 1.0]))
    nibabel.save(image, folder / "labelsTr" / f"{name}.nii.gz")
    nibabel.save(image, folder / "imagesTr" / f"{name}_0000.nii.gz")


@pytest.fixture
def dataset(tmp_path):
    """Two veins that touch in one case of two, lesions of 1, 8 and 64 voxels, and an unlabelled case."""
    folder = tmp_path / "raw" / "Dataset042_Veins"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    description = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 3, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    first = np.zeros((8, 20, 40), np.uint8)
    first[2:4, 2:4, 2:30], first[2:4, 4:6, 2:30] = 1, 2
    second = np.zeros_like(first)
    second[2:4, 2:4, 2:30], second[2:4, 7:9, 2:30] = 1, 2
    second[0, 15, 0], second[0:2, 15:17, 5:7], second[2:6, 12:16, 20:24] = 3, 3, 3
    second[7, :, :20] = 5
    write_case(folder, "a", first)
    write_case(folder, "b", second)
    write_case(folder, "c", np.full_like(first, 5))
    return folder


def test_fingerprint_of_a_dataset(dataset):
    found = fingerprint_dataset(dataset)
    vein, lesion, never = (found.classes[name] for name in ("left vein", "lesion", "never"))
    assert (found.dataset, found.cases, found.unlabelled) == ("Dataset042_Veins", 2, ["c"])
    assert found.ignored_share == pytest.approx(400 / (2 * 6400))
    assert (found.spacing_mm, found.shape) == ([2, 1, 1], [8, 20, 40])
    assert (vein.cases, vein.prevalence, vein.components_per_case) == (2, 1, [1] * 5)
    assert vein.volume_mm3 == pytest.approx([224] * 5)
    assert vein.volume_share == pytest.approx(2 * 112 / (2 * 6400 - 400))
    assert vein.touches == {"right vein": 0.5}
    assert (vein.partner, lesion.partner) == ("right vein", None)
    assert (lesion.cases, lesion.prevalence, lesion.components) == (1, 0.5, 3)
    assert lesion.component_mm3[2] == pytest.approx(16)
    assert lesion.component_mm3[0] == pytest.approx(2 + 0.1 * 14)  # 5 % quantile of 2, 16 and 128
    assert lesion.largest_share == pytest.approx(128 / 146)
    assert vein.tubularity > 3 > lesion.tubularity
    assert (lesion.example, never.example) == ("b", None)
    assert (never.cases, never.prevalence, never.volume_mm3, never.tubularity) == (0, 0, [], 0)
    assert found.together.radius_mm[2] >= vein.radius_mm[2]


def test_an_organ_with_specks_is_not_scattered(dataset):
    lesion, mm = fingerprint_dataset(dataset).classes["lesion"], [2.0, 1.0, 1.0]
    small = replace(lesion, component_mm3=[2.0, 2.0, 6.0, 9.0, 900.0])
    assert is_scattered(small, mm)
    assert not is_scattered(replace(small, largest_share=0.95), mm)
    metastasis = replace(small, largest_share=0.95, component_mm3=[20.0, 50.0, 90.0, 200.0, 9000.0])
    assert is_scattered(metastasis, mm)


def test_cases_with_one_component_do_not_hide_the_others():
    one, three = np.zeros((4, 4, 30), np.uint8), np.zeros((4, 4, 30), np.uint8)
    one[1, 1, 1:9] = three[1, 1, 1:9] = three[1, 1, 12:14] = three[1, 1, 20:22] = 1
    labels = DatasetLabels({"lesion": (1,)}, None, Path())
    cases = {str(n): measure_case(each, (1, 1, 1), labels.classes) for n, each in enumerate((one, one, three))}
    assert summarise("X", cases, labels).classes["lesion"].largest_share == pytest.approx(8 / 12)
    assert summarise("X", {"0": cases["0"]}, labels).classes["lesion"].largest_share == 0


def test_classes_together_are_those_of_their_union():
    label = np.zeros((9, 9, 40), np.uint8)
    label[3:6, 3:6, 1:20], label[3:6, 3:6, 20:39] = 1, 2
    one, two = (measure_case(np.minimum(label, most), (1, 1, 1), {"a": (1,), "b": (2,)}) for most in (1, 2))
    alone = measure_case((label > 0).astype(np.uint8), (1, 1, 1), {"a": (1,)})
    assert one.together == one.classes["a"]
    assert two.together == alone.together == alone.classes["a"]
    assert measure_case(np.zeros((4, 4, 4), np.uint8), (1, 1, 1), {"a": (1,), "b": (2,)}).together is None
    tree = summarise("X", {"x": two}, DatasetLabels({"a": (1,), "b": (2,)}, None, Path()))
    assert is_tree(tree)
    assert not is_tree(replace(tree, spacing_mm=[0.3] * 3))


def test_what_is_said(dataset):
    said = "\n".join(map(str, describe(fingerprint_dataset(dataset))))
    assert "No labelled case shows: never." in said
    assert "Cases without any label: 1 of 3." in said
    assert "Long and thin, median radius: left vein (1 mm), right vein (1 mm)." in said
    assert "In pieces of very different size, most of them between: lesion (3 and 117 mm³)." in said
    assert "Mirror images of each other: left vein and right vein." in said


def test_a_balanced_dataset_has_nothing_to_say(dataset):
    found = fingerprint_dataset(dataset)
    vein = replace(found.classes["left vein"], tubularity=1.0, partner=None)
    balanced = replace(found, classes={"liver": vein}, unlabelled=[], ignored_share=0.0)
    assert describe(balanced) == []


def test_the_file_is_used_until_a_label_map_changes(dataset, tmp_path, monkeypatch):
    out = tmp_path / "fingerprint.json"
    first = fingerprint_dataset(dataset, out=out)
    assert load_fingerprint(out) == first
    with monkeypatch.context() as patch:
        patch.setattr("nnunet_imbal.fingerprint.dataset._measure_file", None)
        assert fingerprint_dataset(dataset, out=out) == first
    write_case(dataset, "b", np.zeros((8, 20, 40)))
    second = fingerprint_dataset(dataset, out=out)
    assert second.classes["lesion"].cases == 0
    assert load_fingerprint(out) == second


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 0}', '{"format": 3, "classes": []}'])
def test_damaged_file(dataset, tmp_path, content):
    out = tmp_path / "fingerprint.json"
    out.write_text(content)
    with pytest.raises(DataError, match="no imbalance fingerprint"):
        load_fingerprint(out)
    assert fingerprint_dataset(dataset, out=out) == load_fingerprint(out)


def test_many_balls_are_no_tube():
    """Nor does a tube become thick by specks beside it."""
    balls, tube = np.zeros((40, 40, 40), np.uint8), np.zeros((40, 40, 40), np.uint8)
    ball = sum((axis - 2) ** 2 for axis in np.indices((5, 5, 5))) <= 5
    for z, y, x in np.ndindex(6, 6, 6):
        balls[6 * z : 6 * z + 5, 6 * y : 6 * y + 5, 6 * x : 6 * x + 5] = ball
    tube[18:21, 18:21, 2:38] = 1
    tube[2:36:6, 5, 5] = 1
    labels = DatasetLabels({"vessel": (1,)}, None, Path())
    cases = {name: measure_case(each, (1, 1, 1), labels.classes) for name, each in (("balls", balls), ("tube", tube))}
    found = {name: summarise("X", {name: case}, labels).classes["vessel"] for name, case in cases.items()}
    assert (found["balls"].components, found["tube"].components) == (216, 7)
    assert found["balls"].tubularity < 1
    assert found["tube"].tubularity == pytest.approx(cases["tube"].classes["vessel"].skeleton_mm / (324 ** (1 / 3) + 6))


def test_undeclared_label(dataset):
    write_case(dataset, "b", np.full((8, 20, 40), 9))
    with pytest.raises(LabelError, match=r"b.nii.gz holds the labels \[9\], dataset.json declares"):
        fingerprint_dataset(dataset)


def test_no_case(dataset):
    for path in (dataset / "labelsTr").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no training case"):
        fingerprint_dataset(dataset)


def test_regions_overlap_and_do_not_touch_what_they_hold(rng):
    labels = rng.integers(0, 4, (5, 6, 7))
    case = measure_case(labels, (1, 1, 1), {"whole": (1, 2, 3), "core": (2, 3), "rim": (1,)})
    assert case.classes["whole"].volume_mm3 == np.count_nonzero(labels)
    assert case.classes["core"].volume_mm3 == np.count_nonzero(labels > 1)
    assert case.touching == [("core", "rim")]


def test_single_slice_has_no_thickness():
    labels = np.zeros((1, 9, 9), np.uint8)
    labels[0, 2:7, 2:7] = 1
    found = measure_case(labels, (1.0, 0.5, 0.5), {"disc": (1,)}).classes["disc"]
    assert found.volume_mm3 == pytest.approx(25 / 4)
    assert max(found.radii_mm) == pytest.approx(1.5)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 60))
def test_chance_of_no_centre_is_a_share_of_all_draws(sizes, kept):
    total = sum(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunet_imbal.fingerprint.case.STORED_VOXELS", kept)
        found = chance_of_no_centre(np.array(sizes))
    drawn = max(min(kept, total), -(-total // 100))
    expected = [comb(total - size, drawn) / comb(total, drawn) for size in sizes]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_stock_loses_small_pieces_beside_a_large_one():
    """One voxel in a class of a million: 1 % are kept, so 99 of 100 such pieces can never be a centre."""
    assert chance_of_no_centre(np.array([1, 999_999]))[0] == pytest.approx(0.99)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 1, 0.5)])
def test_length_of_straight_lines(spacing):
    for axis in range(3):
        line = np.zeros((9, 9, 9), bool)
        line[tuple(slice(2, 7) if each == axis else 4 for each in range(3))] = True
        assert skeleton_length(line, spacing) == pytest.approx(4 * spacing[axis])
    assert skeleton_length(np.zeros((3, 3), bool), spacing[:2]) == 0


def test_default_path(dataset, tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert default_path(dataset) is None
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    assert default_path(dataset) is None
    (tmp_path / dataset.name).mkdir()
    assert default_path(dataset) == tmp_path / dataset.name / "imbalance_fingerprint.json"


def test_command(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(dataset.parent))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    said = CliRunner().invoke(app, ["fingerprint", "42"])
    assert said.exit_code == 0, said.output
    assert "left vein" in said.output
    assert "Not kept: plan the dataset first" in said.output
    out = tmp_path / "kept.json"
    assert f"Written to {out}" in CliRunner().invoke(app, ["fingerprint", "42", "--out", str(out)]).output.replace(
        "\n", ""
    )
    assert load_fingerprint(out).cases == 2
