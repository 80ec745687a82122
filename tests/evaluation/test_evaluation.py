import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK
from rich.console import Console

from nnunet_imbal.errors import ConfigError, DataError, GeometryError, LabelError
from nnunet_imbal.evaluation import (
    EvaluationSettings,
    evaluate_folders,
    load_evaluation,
    print_summary,
    read_dataset_labels,
)
from nnunet_imbal.metrics import dice, hd95, surface_dice


def _row(voxels, value=1, into=None):
    row = np.zeros((1, 1, 16), np.uint8) if into is None else into
    row[..., voxels] = value
    return row


TRUTH, FOUND = _row([1, 2, 3, 4, 9, 12, 13]), _row([1, 2, 3, 6, 13, 14])


@pytest.fixture
def folders(tmp_path, save_nifti):
    """Function (predictions, references, labels) -> folders of a small dataset, each case one array."""

    def make(predictions, references, labels=None, spacing=(1.0, 1.0, 1.0)):
        for folder, arrays in (("pred", predictions), ("raw/labelsTr", references)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for case, array in arrays.items():
                save_nifti(tmp_path / folder / f"{case}.nii.gz", array, spacing)
        if labels is not None:
            (tmp_path / "raw" / "dataset.json").write_text(json.dumps({"labels": labels}))
        return tmp_path / "pred", tmp_path / "raw" / "labelsTr", tmp_path / "out" / "evaluation.json"

    return make


def test_golden_row(folders):
    predicted, reference, out = folders(
        {"a": FOUND}, {"a": TRUTH}, {"background": 0, "lesion": 1}, spacing=(3.0, 0.5, 2.0)
    )
    result = evaluate_folders(predicted, reference, out)
    case, found = result["cases"][0], result["cases"][0]["classes"]["lesion"]
    assert (case["case"], case["shape"], case["spacing_mm"]) == ("a", [1, 1, 16], [3.0, 0.5, 2.0])
    assert found["dice"] == 8 / 13
    assert (found["recall"], found["precision"], found["f1"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (found["volume_reference_mm3"], found["volume_prediction_mm3"]) == (21, 18)
    assert found["lesions"][0] == {
        "id": 1,
        "volume_mm3": 12,
        "voxels": 4,
        "centroid": [0, 0, 2.5],
        "overlap_voxels": 3,
        "detected": True,
        "cc_dice": 0.75,
    }
    assert found["false_positives"] == [{"id": 2, "volume_mm3": 3, "voxels": 1, "centroid": [0, 0, 6]}]
    assert found["false_positive_count"] == 1
    total = result["summary"]["lesion"]
    assert (total["lesions"], total["detected"], total["predicted_components"]) == (3, 2, 3)
    assert total["false_positives_per_case"] == 1
    assert total["dice"] == {"mean": 8 / 13, "median": 8 / 13, "std": 0, "n": 1}
    assert result["mean_foreground_dice"] == 8 / 13


def test_file_holds_what_is_returned(folders):
    predicted, reference, out = folders({"a": FOUND, "b": _row([1])}, {"b": _row([]), "a": TRUTH})
    result = evaluate_folders(predicted, reference, out)
    assert load_evaluation(out) == result
    assert result["schema"] == "nnunet-imbal/evaluation/2"
    assert result["settings"] == {
        "tolerance_mm": 1.0,
        "connectivity": 26,
        "matcher": "greedy",
        "matching_metric": "iou",
        "matching_threshold": 0.5,
        "lesion_rule": None,
        "topology": False,
        "topcow": False,
    }
    assert result["prediction_folder"] == str(predicted.resolve())
    assert [case["case"] for case in result["cases"]] == ["a", "b"]
    assert list(out.parent.iterdir()) == [out]
    evaluate_folders(predicted, reference, out)  # an earlier evaluation may be replaced


def test_values_agree_with_the_metrics(folders, rng):
    pred, ref = (np.zeros((8, 9, 10), np.uint8) for _ in range(2))
    pred[2:6, 2:6, 3:8], ref[3:6, 2:7, 2:8], ref[0, 0, 0] = 2, 2, 1
    predicted, reference, out = folders({"a": pred}, {"a": ref}, spacing=(2.0, 0.5, 0.25))
    settings = EvaluationSettings(tolerance_mm=0.5, connectivity=6)
    found = evaluate_folders(predicted, reference, out, settings=settings)["cases"][0]["classes"]["2"]
    masks, spacing = (pred == 2, ref == 2), (2.0, 0.5, 0.25)
    assert found["dice"] == dice(*masks)
    assert found["surface_dice"] == surface_dice(*masks, spacing, 0.5)
    assert found["hd95_mm"] == pytest.approx(hd95(*masks, spacing))
    assert found["lesions"][0]["centroid"] == [4, 4, 4.5]


def test_golden_row_lesion_by_lesion(folders):
    predicted, reference, out = folders({"a": FOUND}, {"a": TRUTH}, {"background": 0, "lesion": 1})
    result = evaluate_folders(predicted, reference, out)
    found, total = result["cases"][0]["classes"]["lesion"], result["summary"]["lesion"]
    assert [lesion["cc_dice"] for lesion in found["lesions"]] == [0.75, 0, 0.5]
    assert (
        found["cc_dice"] == total["cc_dice"]["mean"] == total["cc_dice_of_lesions"]["mean"] == pytest.approx(1.25 / 3)
    )
    assert found["panoptic"] == {
        "true_positives": 1,
        "false_positives": 2,
        "false_negatives": 2,
        "rq": 1 / 3,
        "sq_iou": 0.75,
        "sq_dsc": 6 / 7,
        "pq": 0.25,
        "pq_dsc": pytest.approx(2 / 7),
    }
    assert (total["panoptic"]["true_positives"], total["panoptic"]["pq"]["mean"]) == (1, 0.25)
    assert found["lesionwise"] is total["lesionwise"] is None


@pytest.mark.parametrize(
    ("rule", "dice_of_row"), [("brats2023-met", (6 / 7 + 0.4) / 3), ("brats2023-gli", 1.0), ("brats-mets2026", None)]
)
def test_rules_of_challenges(folders, rule, dice_of_row):
    big = np.zeros((10, 10, 16), np.uint8)
    big[:3, :3, :3] = 1
    arrays = {"a": np.pad(_row([1, 2, 3, 6, 13, 14]), ((0, 9), (0, 9), (0, 0))), "b": big}
    truths = {"a": np.pad(TRUTH, ((0, 9), (0, 9), (0, 0))), "b": big}
    predicted, reference, out = folders(arrays, truths)
    result = evaluate_folders(predicted, reference, out, settings=EvaluationSettings(lesion_rule=rule))
    a, b = (case["classes"]["1"]["lesionwise"] for case in result["cases"])
    assert a["dice"] == (dice_of_row if dice_of_row is None else pytest.approx(dice_of_row))
    assert b["dice"] == 1
    known = [entry["dice"] for entry in (a, b) if entry["dice"] is not None]
    assert result["summary"]["1"]["lesionwise"]["dice"]["mean"] == pytest.approx(np.mean(known))
    assert result["summary"]["1"]["lesionwise"]["false_positives"] == a["false_positives"]


def test_matching_can_be_chosen(folders):
    predicted, reference, out = folders({"a": FOUND}, {"a": TRUTH})
    settings = EvaluationSettings(matching_metric="dsc", matcher="hungarian")
    quality = evaluate_folders(predicted, reference, out, settings=settings)["cases"][0]["classes"]["1"]["panoptic"]
    assert (quality["true_positives"], quality["pq"]) == (2, pytest.approx(0.361111, abs=1e-6))


def test_undefined_numbers_are_null(folders):
    predicted, reference, out = folders(
        {"a": _row([]), "b": _row([1]), "c": _row([])},
        {"a": _row([]), "b": _row([]), "c": _row([1])},
        {"background": 0, "lesion": 1, "never": 2},
    )
    result = evaluate_folders(predicted, reference, out)
    a, b, c = (case["classes"]["lesion"] for case in result["cases"])
    keys = ("dice", "surface_dice", "hd95_mm", "recall", "precision", "f1", "cc_dice")
    assert [a[key] for key in keys] == [None] * 7
    assert [b[key] for key in keys] == [0, 0, None, None, 0, 0, None]
    assert [c[key] for key in keys] == [0, 0, None, 0, None, 0, 0]
    assert [case["panoptic"]["pq"] for case in (a, b, c)] == [None, 0, 0]
    assert result["summary"]["lesion"]["dice"]["n"] == 2
    never = result["summary"]["never"]
    assert never["dice"] == {"mean": None, "median": None, "std": None, "n": 0}
    assert (never["recall"], never["f1"], never["recall_by_size"]) == (None, None, [])
    assert result["mean_foreground_dice"] == 0  # classes without a value do not count


def test_regions_unite_labels(folders):
    truth, found = _row([5], 2, _row([4, 6])), _row([4, 5, 6], 2)
    predicted, reference, out = folders({"a": found}, {"a": truth}, {"background": 0, "whole": [2, 1], "core": 2})
    result = evaluate_folders(predicted, reference, out)
    assert result["classes"] == {"whole": [1, 2], "core": [2]}
    assert result["summary"]["whole"]["dice"]["mean"] == 1
    assert result["summary"]["whole"]["lesions"] == 1
    assert result["summary"]["core"]["dice"]["mean"] == 0.5


def test_ignored_voxels_count_nowhere(folders):
    truth = _row([0, 1, 2, 3, 8, 9], 3, _row([4, 5, 12]))
    predicted, reference, out = folders(
        {"a": _row([2, 3, 4, 9, 12])},
        {"a": truth},
        {"background": 0, "lesion": 1, "other": 2, "ignore": 3},
    )
    result = evaluate_folders(predicted, reference, out)
    found = result["cases"][0]["classes"]["lesion"]
    assert list(result["classes"]) == ["lesion", "other"]
    assert result["ignore_label"] == 3
    assert found["dice"] == 4 / 5  # {4, 12} against {4, 5, 12}
    assert found["false_positive_count"] == 0  # 9 lies in the ignored part
    assert (found["volume_prediction_mm3"], found["volume_reference_mm3"]) == (2, 3)


def test_without_dataset_json_every_value_is_a_class(folders):
    predicted, reference, out = folders({"a": _row([1], 7)}, {"a": _row([1], 4)})
    result = evaluate_folders(predicted, reference, out)
    assert result["classes"] == {"4": [4], "7": [7]}
    assert result["summary"]["7"]["false_positives_per_case"] == 1


def test_summary_pools_lesions_of_all_cases(folders):
    predicted, reference, out = folders({"a": FOUND, "b": _row([1, 2])}, {"a": TRUTH, "b": _row([2, 3, 8])})
    total = evaluate_folders(predicted, reference, out)["summary"]["1"]
    assert (total["lesions"], total["detected"]) == (5, 3)
    assert (total["recall"], total["precision"]) == (3 / 5, 3 / 4)
    assert total["f1"] == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert sum(b["lesions"] for b in total["recall_by_size"]) == 5
    assert total["dice"]["mean"] == pytest.approx((8 / 13 + 2 / 5) / 2)


def test_pictures_are_measured_in_the_plane(tmp_path):
    picture = np.zeros((12, 12), np.uint8)
    picture[2:9, 2:9] = 1
    grown = np.zeros_like(picture)
    grown[1:10, 1:10] = 1
    for folder, array in (("pred", grown), ("ref", picture)):
        (tmp_path / folder).mkdir()
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / folder / "a.png"))
    result = evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "e.json")
    found = result["cases"][0]["classes"]["1"]
    assert found["hd95_mm"] == pytest.approx(hd95(grown == 1, picture == 1, (1, 1)))
    assert found["hd95_mm"] > 0  # as a volume both would be all border, the inside included
    assert found["lesions"][0]["centroid"] == [0, 5, 5]


def test_missing_predictions_are_listed_before_any_work(folders):
    predicted, reference, out = folders({"a": FOUND}, {"a": TRUTH, "b": TRUTH, "c": TRUTH})
    (reference / "a.nii.gz").write_bytes(b"never read")
    with pytest.raises(DataError, match=r"pred lacks 2 of 3 predictions: b, c;"):
        evaluate_folders(predicted, reference, out)
    assert not out.exists()


def test_extra_predictions_warn(folders):
    predicted, reference, out = folders({"a": FOUND, "b": FOUND}, {"a": TRUTH})
    with pytest.warns(UserWarning, match="1 predictions have no reference: b; left out"):
        result = evaluate_folders(predicted, reference, out)
    assert len(result["cases"]) == 1


def test_empty_folders(folders):
    predicted, reference, out = folders({}, {})
    with pytest.raises(DataError, match="labelsTr holds no label map"):
        evaluate_folders(predicted, reference, out)


@pytest.mark.parametrize("side", ["pred", "raw/labelsTr"])
def test_undeclared_label_names_file_and_value(folders, side):
    odd = _row([3], 5)
    arrays = ({"a": odd}, {"a": TRUTH}) if side == "pred" else ({"a": TRUTH}, {"a": odd})
    predicted, reference, out = folders(*arrays, {"background": 0, "lesion": 1})
    with pytest.raises(LabelError, match=rf"{side}/a\.nii\.gz holds the label 5, but .*dataset\.json declares 0, 1"):
        evaluate_folders(predicted, reference, out)
    assert not out.exists()


def test_different_grids(folders, save_nifti):
    predicted, reference, out = folders({"a": FOUND}, {"a": TRUTH})
    save_nifti(predicted / "a.nii.gz", FOUND, (1.0, 1.0, 1.01))
    with pytest.raises(GeometryError, match=r"pred/a\.nii\.gz and .*labelsTr/a\.nii\.gz .* axis X is 1\.00999"):
        evaluate_folders(predicted, reference, out)


def test_all_empty_without_names(folders):
    predicted, reference, out = folders({"a": _row([])}, {"a": _row([])})
    with pytest.raises(LabelError, match=r"no dataset\.json to name the classes"):
        evaluate_folders(predicted, reference, out)


def test_foreign_file_is_not_overwritten(folders):
    predicted, reference, _ = folders({"a": FOUND}, {"a": TRUTH}, {"background": 0, "lesion": 1})
    precious = reference.parent / "dataset.json"
    before = precious.read_bytes()
    with pytest.raises(DataError, match=r"dataset\.json exists and is no evaluation; it is left as it is"):
        evaluate_folders(predicted, reference, precious)
    assert precious.read_bytes() == before


def test_dataset_json_is_found_and_can_be_given(folders, tmp_path):
    predicted, reference, out = folders({"a": FOUND}, {"a": TRUTH})
    (predicted / "dataset.json").write_text('{"labels": {"background": 0, "from_prediction": 1}}')
    assert list(evaluate_folders(predicted, reference, out)["classes"]) == ["from_prediction"]
    (reference.parent / "dataset.json").write_text('{"labels": {"background": 0, "beside_reference": 1}}')
    assert list(evaluate_folders(predicted, reference, out)["classes"]) == ["beside_reference"]
    given = tmp_path / "mine.json"
    given.write_text('{"labels": {"background": 0, "given": 1}}')
    assert list(evaluate_folders(predicted, reference, out, dataset_json=given)["classes"]) == ["given"]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", DataError, "cannot be read as JSON"),
        ("[]", DataError, "JSON list, expected an object"),
        ("{}", LabelError, 'has no "labels"'),
        ('{"labels": {"background": 0}}', LabelError, "declares no class"),
        ('{"labels": {"0": "background", "1": "lesion"}}', LabelError, "nnU-Net v1 wrote"),
        ('{"labels": {"lesion": 1.5}}', LabelError, "'lesion' is 1.5, expected a number above 0"),
        ('{"labels": {"lesion": []}}', LabelError, r"'lesion' is \[\]"),
        ('{"labels": {"lesion": [0, 1]}}', LabelError, r"'lesion' is \[0, 1\]"),
        (
            '{"labels": {"lesion": 1, "ignore": [2, 3]}}',
            LabelError,
            r"'ignore' is \[2, 3\], expected one number above 0",
        ),
    ],
)
def test_odd_dataset_json(tmp_path, content, error, message):
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(error, match=message):
        read_dataset_labels(path)


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text('{"foreground_mean": 1}')
    with pytest.raises(DataError, match="has the schema None, expected 'nnunet-imbal/evaluation/2'"):
        load_evaluation(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_evaluation(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tolerance_mm": -1.0},
        {"tolerance_mm": float("nan")},
        {"connectivity": 8},
        {"matcher": "best"},
        {"matching_metric": "nsd"},
        {"matching_threshold": 2},
        {"lesion_rule": "brats2024"},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match=r"expected|must be one of"):
        EvaluationSettings(**wrong)


def test_summary_table(folders, capsys):
    predicted, reference, out = folders({"a": FOUND}, {"a": TRUTH}, {"background": 0, "lesion": 1, "never": 2})
    settings = EvaluationSettings(lesion_rule="brats-mets2026")
    print_summary(evaluate_folders(predicted, reference, out, settings=settings), Console(width=80))
    printed = capsys.readouterr().out
    assert "match: greedy, IOU 0.5" in printed
    assert "0.417" in printed  # CC-Dice
    assert "1 cases, mean foreground Dice 0.615" in printed
    assert "2/3" in printed
    assert "never" in printed
    assert "…" not in printed


@pytest.mark.slow
def test_workers_change_nothing_and_carry_errors(folders, save_nifti, rng):
    arrays = [{f"case{i}": rng.integers(0, 3, (6, 7, 8)).astype(np.uint8) for i in range(5)} for _ in range(2)]
    predicted, reference, out = folders(*arrays)
    alone = evaluate_folders(predicted, reference, out)
    assert evaluate_folders(predicted, reference, out, workers=2) == alone
    before = out.read_bytes()
    save_nifti(predicted / "case3.nii.gz", np.zeros((6, 7, 9), np.uint8))
    with pytest.raises(GeometryError, match=r"case3\.nii\.gz .* axis X is 9 and 8"):
        evaluate_folders(predicted, reference, out, workers=2)
    assert out.read_bytes() == before


@pytest.mark.slow
def test_command_line(folders):
    predicted, reference, out = folders({"a": FOUND}, {"a": TRUTH})
    command = [sys.executable, "-c", "from nnunet_imbal.cli import main; main()", "evaluate", predicted, reference]
    done = subprocess.run([*command, "--json", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2/3" in done.stdout
    assert load_evaluation(out)["summary"]["1"]["lesions"] == 3
    failed = subprocess.run([*command, "--json", predicted / "a.nii.gz"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("DataError: ")
    assert "Traceback" not in failed.stderr
