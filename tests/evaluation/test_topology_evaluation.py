"""`nnunet-imbal evaluate --topology`: the numbers of the metrics, in the file and on the terminal."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from nnunet_imbal.cli import app
from nnunet_imbal.evaluation import EvaluationSettings, evaluate_folders, load_evaluation, print_summary
from nnunet_imbal.metrics import betti_errors, cldice, match_contacts

TOPOLOGY = EvaluationSettings(topology=True)
LABELS = {"background": 0, "trunk": 1, "branch": 2, "never": 3}


def vessel():
    """A thick trunk that goes on as a thin branch."""
    labels = np.zeros((5, 5, 10), np.uint8)
    labels[1:4, 1:4, 1:5], labels[2, 2, 5:9] = 1, 2
    return labels


@pytest.fixture
def dataset(tmp_path, save_nifti):
    """Function (predictions, references) -> both folders and the file to write."""

    def make(predictions, references):
        for folder, arrays in (("pred", predictions), ("raw/labelsTr", references)):
            for number, array in enumerate(arrays):
                save_nifti(tmp_path / folder / f"case{number}.nii.gz", array)
        (tmp_path / "raw" / "dataset.json").write_text(json.dumps({"labels": LABELS}), encoding="utf-8")
        return tmp_path / "pred", tmp_path / "raw" / "labelsTr", tmp_path / "evaluation.json"

    return make


def broken():
    found = vessel()
    found[2, 2, 6] = 0
    return found


def test_broken_branch(dataset):
    predicted, reference, out = dataset([broken(), vessel()], [vessel(), vessel()])
    result = evaluate_folders(predicted, reference, out, settings=TOPOLOGY)
    worse, same = (case["classes"]["branch"]["topology"] for case in result["cases"])
    assert (worse["cldice_precision"], worse["cldice_sensitivity"], worse["b0_error"]) == (1, 0.75, 1)
    assert (same["cldice"], same["b0_error"], same["b1_error"], same["b2_error"]) == (1, 0, 0, 0)
    assert result["summary"]["branch"]["topology"]["b0_error"]["mean"] == 0.5
    together = result["cases"][0]["topology"]
    assert together["cldice"] == pytest.approx(12 / 13)
    assert (together["b0_error"], together["contact_f1"]) == (1, 1)
    assert result["topology"]["b0_error"] == {"mean": 0.5, "median": 0.5, "std": 0.5, "n": 2}


def test_absent_class_leaves_the_means(dataset):
    predicted, reference, out = dataset([vessel(), vessel() * 0], [vessel(), vessel()])
    result = evaluate_folders(predicted, reference, out, settings=TOPOLOGY)
    assert set(result["cases"][0]["classes"]["never"]["topology"].values()) == {None}
    assert result["summary"]["never"]["topology"]["b0_error"]["n"] == 0
    missed = result["cases"][1]["classes"]["branch"]["topology"]
    assert (missed["cldice"], missed["cldice_precision"], missed["cldice_sensitivity"]) == (0, None, 0)
    assert (missed["b0_error"], result["cases"][1]["topology"]["contact_recall"]) == (1, 0)


def test_values_are_those_of_the_metrics(dataset):
    rng = np.random.default_rng(0)
    truth, found = (rng.choice(np.array([0, 0, 0, 1, 2], np.uint8), (6, 7, 8)) for _ in range(2))
    predicted, reference, out = dataset([found], [truth])
    case = evaluate_folders(predicted, reference, out, settings=TOPOLOGY)["cases"][0]
    for name, label in (("trunk", 1), ("branch", 2)):
        measured, pair = case["classes"][name]["topology"], (found == label, truth == label)
        assert measured["cldice"] == cldice(*pair).score
        assert [measured[f"b{k}_error"] for k in range(3)] == list(betti_errors(*pair))
    assert case["topology"]["contact_f1"] == match_contacts(found, truth).f1
    assert case["topology"]["b0_error"] == betti_errors(found > 0, truth > 0).b0


def test_plate_in_a_volume_and_picture(dataset):
    """A class in one slice of a volume stays in the volume; a file of one slice is a picture."""
    plate = np.zeros((3, 7, 9), np.uint8)
    plate[1, 1:6, 1:8] = 1
    moved = np.roll(plate, 2, axis=2)
    predicted, reference, out = dataset([moved, moved[1:2]], [plate, plate[1:2]])
    cases = evaluate_folders(predicted, reference, out, settings=TOPOLOGY)["cases"]
    for case, pair in zip(cases, ((moved == 1, plate == 1), (moved[1] == 1, plate[1] == 1)), strict=True):
        assert case["classes"]["trunk"]["topology"]["cldice"] == cldice(*pair).score


def test_without_the_option_nothing_is_added(dataset):
    result = evaluate_folders(*dataset([broken()], [vessel()]))
    assert result["topology"] is result["cases"][0]["topology"] is result["summary"]["branch"]["topology"] is None


def test_command_line_and_table(dataset):
    predicted, reference, out = dataset([broken()], [vessel()])
    done = CliRunner().invoke(app, ["evaluate", str(predicted), str(reference), "--json", str(out), "--topology"])
    assert done.exit_code == 0, done.output
    result = load_evaluation(out)
    assert result["settings"]["topology"] is True
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(result, console)
    printed = console.export_text()
    assert "classes that touch: F1 1.000" in printed
    assert "all as one" in printed
    assert "…" not in printed
