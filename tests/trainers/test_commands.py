"""Real nnU-Net commands in the four labelling modes: plan, preprocess, train, validate, predict."""

import json
import re

import numpy as np
import pytest
import SimpleITK as sitk
import torch

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
TRAINER = "ImbalTrainerSmoke"


@pytest.mark.parametrize("mode", ["labels", "regions", "ignore", "regions_ignore"])
def test_R40_train_validate_predict(workspaces, mode, tmp_path):
    workspace = workspaces(mode)
    number = workspace.dataset[7:10]
    trained = workspace.run("nnUNetv2_train", number, "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu")
    assert re.search(r"Loss: nnU-Net's own loss \+ 1 x cc_dice", trained.stdout)
    losses = [float(value) for value in re.findall(r"(?:train|val)_loss (\S+)", trained.stdout)]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    results = workspace.folder / "results" / workspace.dataset / f"{TRAINER}__nnUNetPlans__3d_fullres"
    assert (results / "fold_0" / "validation" / "summary.json").exists()
    stored = json.loads((results / "plans.json").read_text())["configurations"]["3d_fullres"]["imbal"]
    assert [term["loss"] for term in stored["terms"]] == ["cc_dice"]

    images = workspace.folder / "raw" / workspace.dataset / "imagesTs"
    workspace.run(
        "nnUNetv2_predict",
        *("-i", images, "-o", tmp_path, "-d", number, "-c", "3d_fullres", "-f", "0", "-tr", TRAINER),
        *("-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta", "--disable_progress_bar"),
    )
    image, mask = (sitk.ReadImage(str(path)) for path in (images / "test0_0000.nii.gz", tmp_path / "test0.nii.gz"))
    assert mask.GetSize() == image.GetSize()
    for words in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, words)(), getattr(image, words)(), atol=1e-6)
    assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}


def test_R43_a_typing_error_in_the_plans_stops_at_once(workspaces):
    workspace = workspaces("labels")
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    imbal = {"terms": [{"loss": "cc_dise"}]}
    plans["configurations"]["3d_wrong"] = {"inherits_from": "3d_fullres", "imbal": imbal}
    plans["plans_name"] = "WrongPlans"
    (workspace.preprocessed / "WrongPlans.json").write_text(json.dumps(plans))
    words = (workspace.dataset[7:10], "3d_wrong", "0", "-tr", TRAINER, "-p", "WrongPlans", "-device", "cpu")
    done = workspace.run("nnUNetv2_train", *words, check=False)
    assert done.returncode != 0
    assert "did you mean 'cc_dice'" in done.stderr
    assert "Epoch 0" not in done.stdout


def test_R48_an_exported_model_needs_no_plugin(workspaces, tmp_path):
    workspace = workspaces("labels")
    model = workspace.folder / "results" / workspace.dataset / f"{TRAINER}__nnUNetPlans__3d_fullres"
    if not (model / "fold_0" / "checkpoint_final.pth").exists():
        workspace.run("nnUNetv2_train", workspace.dataset[7:10], "3d_fullres", "0", "-tr", TRAINER, "-device", "cpu")
    exported = tmp_path / "exported"
    workspace.run("nnunet-imbal", "export", model, exported)
    checkpoint = torch.load(exported / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    images = workspace.folder / "raw" / workspace.dataset / "imagesTs"
    masks = []
    for folder, environment in ((model, {}), (exported, {"nnUNet_extTrainer": "", "NNUNET_IMBAL_AUTOREGISTER": "0"})):
        out = tmp_path / f"out_{folder.name[:4]}"
        words = ("-i", images, "-o", out, "-m", folder, "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1")
        workspace.run(
            "nnUNetv2_predict_from_modelfolder", *words, "--disable_tta", "--disable_progress_bar", **environment
        )
        masks.append(sitk.GetArrayFromImage(sitk.ReadImage(str(out / "test0.nii.gz"))))
    np.testing.assert_array_equal(*masks)
