"""``nnunet-imbal predict`` beside nnU-Net's own command, and the operating point from training to label map."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_imbal.errors import ConfigError, DataError, ImbalError
from nnunet_imbal.operating_point import (
    FILE_NAME,
    ClassChoice,
    ClassPoint,
    Criterion,
    OperatingPoint,
    Scores,
    decide,
    load_operating_point,
    read_channels,
)
from trainers import _prediction
from trainers._prediction import OperatingPointPredictor, main

TRAINER = "ImbalTrainerSmoke"
QUICK = ("-device", "cpu", "-npp", "1", "-nps", "1", "-f", "0", "--disable_tta", "--disable_progress_bar")


def _point(points, labels=None):
    none = Scores(None, None, None, 0.0, None)
    classes = {
        name: ClassChoice((labels or {}).get(name, (number,)), point, none, none, none, "by hand")
        for number, (name, point) in enumerate(points.items(), start=1)
    }
    return OperatingPoint(classes, Criterion(), 0, {}, "")


# ---------------------------------------------------------------------------------------------- without a network


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A results folder without networks, and what main() would tell nnU-Net's predictor."""
    folder, calls = tmp_path / "model", []
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "lesion": 1}}))
    for file in ("plans.json", "fold_0/checkpoint_final.pth", "fold_all/checkpoint_final.pth"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()

    class Recorder:
        def __init__(self, **options):
            calls.append(options)

        def initialize_from_trained_model_folder(self, *words):
            calls.append(words)

        def predict_from_files(self, *words, **options):
            calls.append((words, options))

        def predict_from_files_sequential(self, *words, **options):
            calls.append(("one by one", words, options))

    monkeypatch.setattr(_prediction, "nnUNetPredictor", Recorder)
    threads = torch.get_num_threads()
    yield SimpleNamespace(
        folder=folder, calls=calls, words=["-i", "in", "-o", str(tmp_path / "out"), "-m", str(folder)]
    )
    torch.set_num_threads(threads)


def test_options_reach_nnunet(model):
    main([*model.words, "-f", "0", "all", "-device", "cpu", "--disable_tta", "-step_size", "0.7", "-nps", "2"])
    options, loaded, (words, more) = model.calls
    assert (options["use_mirroring"], options["tile_step_size"], options["device"].type) == (False, 0.7, "cpu")
    assert loaded == (str(model.folder), [0, "all"], "checkpoint_final.pth")
    assert words == ("in", model.words[3])
    assert (more["num_processes_preprocessing"], more["num_processes_segmentation_export"]) == (3, 2)
    assert (more["overwrite"], more["save_probabilities"], more["num_parts"], more["part_id"]) == (True, False, 1, 0)
    assert torch.get_num_threads() == multiprocessing.cpu_count()


def test_no_processes_as_nnunet(model):
    main([*model.words, "-f", "0", "-npp", "0", "-nps", "0", "--device", "cpu"])
    assert model.calls[-1][0] == "one by one"


def test_a_stock_point_changes_nothing(model, capsys):
    _point({"lesion": ClassPoint()}).save(model.folder / FILE_NAME)
    record = Path(model.words[3]) / "applied_operating_point.json"
    record.parent.mkdir()
    record.write_text("of an earlier prediction")
    main([*model.words, "-f", "0", "-device", "cpu", "--operating-point", "on"])
    assert "stock nnU-Net's decision is best" in capsys.readouterr().out
    assert not record.exists()


def test_what_main_refuses(model):
    _point({"lesion": ClassPoint(0.3)}).save(model.folder / FILE_NAME)
    with pytest.raises(ConfigError, match="-npp 1 -nps 1"):
        main([*model.words, "-f", "0", "-nps", "0"])
    _point({"tumour": ClassPoint(0.3)}).save(model.folder / FILE_NAME)
    with pytest.raises(DataError, match="is for the classes tumour"):
        main([*model.words, "-f", "0"])
    (model.folder / FILE_NAME).unlink()
    with pytest.raises(DataError, match="choose it with: nnunet-imbal operating-point"):
        main([*model.words, "-f", "0", "--operating-point", "on"])
    with pytest.raises(DataError, match=r"lacks fold_1/checkpoint_final.pth, .* as in -f 0 1"):
        main(model.words)
    for words in (["-d", "4"], ["-m", "x", "-d", "4"], ["-m", "x", "-d", "4", "-c", "2d"], []):
        with pytest.raises(ConfigError, match="name the model either by -m"):
            main(["-i", "in", "-o", "out", *words])
    assert not model.calls


def test_a_picture_is_one_millimetre_thick():
    assert _prediction._true_spacing([999, 1, 1], (1, 5, 5)) == (1, 1, 1)
    assert _prediction._true_spacing([999 * 0.7, 0.5, 0.7], (1, 5, 5)) == (1, 0.5, 0.7)
    assert _prediction._true_spacing([5, 0.5, 0.7], (1, 5, 5)) == (5, 0.5, 0.7)
    assert _prediction._true_spacing([999, 1, 1], (2, 5, 5)) == (999, 1, 1)


class _Killer:
    def write(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_is_told():
    predictor = object.__new__(OperatingPointPredictor)
    predictor.device, predictor.writer = torch.device("cpu"), _Killer()
    predictor.predict_logits_from_preprocessed_data = lambda data: data
    case = {"data": torch.zeros(1), "ofile": "case", "data_properties": {}}
    with pytest.raises(ImbalError, match="want of memory"):
        predictor.predict_from_data_iterator([case] * 9, num_processes_segmentation_export=1)


# ------------------------------------------------------------------------------------------------ with a network


def _train(workspace):
    words = (workspace.dataset[7:10], "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu", "--npz")
    model = workspace.folder / "results" / workspace.dataset / f"{TRAINER}__nnUNetPlans__3d_fullres"
    if not list(model.glob("fold_0/validation/*.npz")):
        workspace.run("nnUNetv2_train", *words)
    return model


@pytest.mark.slow
@pytest.mark.e2e
def test_without_a_point_the_files_are_nnunets(workspaces, tmp_path):
    workspace = workspaces("labels")
    _train(workspace)
    images = workspace.folder / "raw" / workspace.dataset / "imagesTs"
    name = ("-d", workspace.dataset[7:10], "-c", "3d_fullres", "-tr", TRAINER)
    workspace.run("nnUNetv2_predict", "-i", images, "-o", tmp_path / "theirs", *name, *QUICK)
    words = ("-i", images, "-o", tmp_path / "ours", *name, *QUICK, "--operating-point", "off")
    workspace.run("nnunet-imbal", "predict", *words)
    for file in ("test0.nii.gz", "plans.json", "dataset.json"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("mode", ["labels", "regions"])
def test_from_training_to_label_map(workspaces, mode, tmp_path):
    workspace = workspaces(mode)
    model, images = _train(workspace), workspace.folder / "raw" / workspace.dataset / "imagesTs"
    chosen = workspace.run("nnunet-imbal", "operating-point", model, "--folds", "0")
    assert "validation cases. Wanted: highest lesion F1" in chosen.stdout
    assert set(load_operating_point(model / FILE_NAME).checkpoints) == {"0"}

    channels = read_channels(model / "dataset.json")
    points = {each: ClassPoint(0.35, 30.0) for each in channels.members}
    _point(points, channels.members).save(model / FILE_NAME)
    words = ("-i", images, "-o", tmp_path, "-m", model, *QUICK, "--save_probabilities")
    done = workspace.run("nnunet-imbal", "predict", *words)
    (model / FILE_NAME).unlink()
    assert "above 0.35, from 30 mm³ on" in done.stdout
    assert load_operating_point(tmp_path / "applied_operating_point.json").points == points
    image, labels = (sitk.ReadImage(str(path)) for path in (images / "test0_0000.nii.gz", tmp_path / "test0.nii.gz"))
    probs = np.load(tmp_path / "test0.npz")["probabilities"]
    expected = decide(probs, channels, points, image.GetSpacing()[::-1])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), expected)
    for words in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(labels, words)(), getattr(image, words)(), atol=1e-6)
