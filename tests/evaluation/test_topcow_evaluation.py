"""`nnunet-imbal evaluate --topcow`: the challenge's numbers under the dataset's names, wherever the patient lies."""

import io
import json
import pickle

import nibabel
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from nnunet_imbal.cli import app
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.evaluation import EvaluationSettings, evaluate_folders, load_evaluation, print_summary
from nnunet_imbal.metrics import CowVessel, topcow_scores, topcow_summary
from nnunet_imbal.report import write_report

TOPCOW = EvaluationSettings(topcow=True)
LABELS = {"background": 0, "R-ICA": 1, "L_ICA": 2, "rACA": 3, "L-ACA": 4, "Acom": 5, "3rd-A2": 6}
VESSELS = ("R_ICA", "L_ICA", "R_ACA", "L_ACA", "ACOM", "THIRD_A2")
SPACING = (0.5, 0.4, 0.3)


def front():
    """Carotids and anterior arteries of both sides, joined in the middle; X grows towards the patient's left."""
    labels = np.zeros((5, 6, 15), np.uint8)
    labels[:3, 2, 2], labels[3:, 2, 2] = 1, 3
    labels[:3, 2, 12], labels[3:, 2, 12] = 2, 4
    labels[4, 2, 3:12] = 5
    return labels


def gap():
    found = front()
    found[4, 2, 7], found[3, 3, 12] = 0, 6
    return found


def lps(spacing=SPACING):
    """NIfTI affine of a grid whose X, Y, Z grow towards left, back and head."""
    return np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])


def as_topcow(labels):
    """The numbers of the challenge in place of ours."""
    return np.array([0, *(CowVessel[name] for name in VESSELS)], np.uint8)[labels]


@pytest.fixture
def dataset(tmp_path, save_nifti):
    """Function (pairs of maps, labels, change of an image) -> both folders and the file to write."""

    def make(pairs, labels=LABELS, change=lambda image: image):
        for number, pair in enumerate(pairs):
            for folder, array in zip(("pred", "raw/labelsTr"), pair, strict=True):
                path = save_nifti(tmp_path / folder / f"case{number}.nii.gz", array, affine=lps())
                nibabel.save(change(nibabel.load(path)), path)
        if labels is not None:
            (tmp_path / "raw" / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
        return tmp_path / "pred", tmp_path / "raw" / "labelsTr", tmp_path / "evaluation.json"

    return make


PAIRS = [(gap(), front()), (front(), front()), (front() * 0, front())]


def test_values_are_those_of_the_metric(dataset):
    result = evaluate_folders(*dataset(PAIRS), settings=TOPCOW)
    patients = [topcow_scores(as_topcow(found), as_topcow(truth), SPACING) for found, truth in PAIRS]
    for case, scores in zip(result["cases"], patients, strict=True):
        entry = case["topcow"]
        for name in ("dice", "cldice", "b0_error", "hd95_mm"):
            expected = getattr(scores, name)
            assert list(entry[name]["vessels"].values()) == pytest.approx(list(expected.vessels.values()), rel=1e-6)
            assert (entry[name]["mean"], entry[name]["merged"]) == pytest.approx((expected.mean, expected.merged))
        assert list(entry["detection"].values()) == list(scores.detection.values())
        assert entry["anterior"]["topology_matches"] == scores.anterior.topology_matches
        assert tuple(entry["posterior"]["reference"]) == scores.posterior.reference
    summary, ranking = topcow_summary(patients), result["topcow"]["ranking"]
    assert ranking["hd95_mm"] == pytest.approx(summary.hd95_mm)
    assert (ranking["dice"], ranking["cldice"], ranking["b0_error"]) == pytest.approx(
        (summary.dice, summary.cldice, summary.b0_error)
    )
    assert ranking["detection_f1"] == summary.mean_detection_f1
    assert ranking["anterior_variant_accuracy"] == summary.anterior.variant_accuracy
    assert ranking["anterior_topology_match"] == summary.anterior.topology_match
    assert ranking["posterior_topology_match"] == summary.posterior.topology_match


def test_vessels_have_the_names_of_the_dataset(dataset):
    folders = dataset(PAIRS)
    result = evaluate_folders(*folders, settings=TOPCOW)
    assert load_evaluation(folders[-1]) == result
    first, topcow = result["cases"][0]["topcow"], result["topcow"]
    assert list(first["dice"]["vessels"]) == ["R-ICA", "L_ICA", "Acom", "rACA", "L-ACA", "3rd-A2"]
    assert first["detection"] == {"R-Pcom": "TN", "L-Pcom": "TN", "Acom": "TP", "3rd-A2": "FP"}
    assert (first["b0_error"]["vessels"]["Acom"], first["hd95_mm"]["vessels"]["3rd-A2"]) == (1, 90)
    assert first["anterior"]["reference"] == [True, True, False, True]
    assert first["anterior"]["prediction"] == [True, True, True, True]
    assert first["anterior"]["variant_matches"] is False
    assert topcow["detection_f1"] == pytest.approx({"R-Pcom": 0, "L-Pcom": 0, "Acom": 0.8, "3rd-A2": 0})
    assert topcow["vessels"]["3rd-A2"] == {"dice": 0, "cldice": 0, "b0_error": 1, "hd95_mm": 90, "patients": 1}
    assert topcow["vessels"]["Acom"]["patients"] == 3
    assert topcow["vessels"]["R-Pcom"]["dice"] is None


@pytest.mark.parametrize("axes", ["LPS", "RAS", "RPS", "SLP", "AIR"])
def test_the_header_tells_left_from_right(dataset, axes):
    def store(image):
        to = nibabel.orientations.axcodes2ornt(axes)
        return image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), to))

    result = evaluate_folders(*dataset(PAIRS[:2], change=store), settings=TOPCOW)
    expected = topcow_scores(*map(as_topcow, PAIRS[0]), SPACING)
    first, second = (case["topcow"] for case in result["cases"])
    assert second["anterior"]["topology_matches"] is True
    assert first["hd95_mm"]["mean"] == pytest.approx(expected.hd95_mm.mean, rel=1e-6)
    assert first["cldice"]["merged"] == pytest.approx(expected.cldice.merged)


def test_swapped_sides_are_noticed(dataset):
    mirrored = front()[:, :, ::-1]
    (case,) = evaluate_folders(*dataset([(mirrored, mirrored)]), settings=TOPCOW)["cases"]
    assert case["topcow"]["anterior"]["topology_matches"] is False


def test_numbers_stand_for_topcows_vessels_where_nothing_is_named(dataset):
    pairs = [tuple(map(as_topcow, pair)) for pair in PAIRS]
    result = evaluate_folders(*dataset(pairs, labels=None), settings=TOPCOW)
    assert result["topcow"]["detection_f1"]["10"] == pytest.approx(0.8)
    assert result["topcow"]["vessels"]["15"]["patients"] == 1


def test_ignored_voxels_do_not_count(dataset):
    truth, found = front(), gap()
    truth[found != truth] = 9
    result = evaluate_folders(*dataset([(found, truth)], labels={**LABELS, "ignore": 9}), settings=TOPCOW)
    assert result["topcow"]["ranking"]["dice"] == 1


def test_scores_travel_between_processes():
    scores = topcow_scores(*map(as_topcow, PAIRS[0]), SPACING)
    assert pickle.loads(pickle.dumps(scores)) == scores


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        ({"background": 0, "aorta": 1}, "'aorta'.*R-Pcom"),
        ({"background": 0, "BA": 1, "b.a.": 2}, "BA, b.a., two are the same"),
        ({"background": 0, "BA": [1, 2], "R-PCA": [2]}, "share a label"),
    ],
)
def test_other_classes_are_refused_before_anything_is_measured(dataset, labels, hint, monkeypatch):
    monkeypatch.setattr("nnunet_imbal.evaluation._evaluate_case", None)
    with pytest.raises(ConfigError, match=hint):
        evaluate_folders(*dataset(PAIRS, labels=labels), settings=TOPCOW)


def test_without_the_option_nothing_is_added(dataset):
    result = evaluate_folders(*dataset(PAIRS))
    assert result["topcow"] is result["cases"][0]["topcow"] is None


def test_command_line_table_and_report(dataset, tmp_path):
    predicted, reference, out = dataset(PAIRS)
    done = CliRunner().invoke(app, ["evaluate", str(predicted), str(reference), "--json", str(out), "--topcow"])
    assert done.exit_code == 0, done.output
    result = load_evaluation(out)
    assert result["settings"]["topcow"] is True
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(result, console)
    printed = console.export_text()
    assert "as ranked" in printed
    assert "R-Pcom" not in printed
    assert "…" not in printed
    page = write_report(out, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What would the TopCoW challenge say?" in page
    assert f"<td>{result['topcow']['ranking']['hd95_mm']:.1f}</td>" in page


def test_report_of_an_incomplete_or_older_file(dataset, tmp_path):
    out = dataset(PAIRS)[2]
    result = evaluate_folders(*dataset(PAIRS), settings=TOPCOW)
    del result["topcow"]["ranking"]
    out.write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(DataError, match="topcow: ranking"):
        write_report(out, tmp_path / "report.html")
    del result["topcow"]
    out.write_text(json.dumps(result), encoding="utf-8")
    assert "TopCoW" not in write_report(out, tmp_path / "report.html").read_text(encoding="utf-8")
    print_summary(load_evaluation(out), Console(file=io.StringIO()))
