"""A model of nnU-Net gives in MONAI the labels that nnU-Net itself writes, voxel for voxel."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, SaveImaged
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from monai_ext.nnunet_bridge import NNUNetModel, load_nnunet_model
from nnunet_imbal.errors import ConfigError, DataError

# What nnU-Net and MONAI warn about is theirs; what our modules cause stays an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings(r"error:::(monai_ext|nnunet_imbal)\..*"),
]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "monai.md"
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
CONFIGURATION = {
    "preprocessor_name": "DefaultPreprocessor",
    "data_identifier": "tiny",
    "batch_size": 2,
    "patch_size": [16, 16, 16],
    "median_image_size_in_voxels": [20, 20, 20],
    "spacing": [1.5, 1.0, 1.25],
    "normalization_schemes": ["ZScoreNormalization"] * 2,
    "use_mask_for_norm": [False] * 2,
    "batch_dice": False,
    **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
    **{f"resampling_fn_{what}_kwargs": RESAMPLING for what in ("data", "probabilities")},
    "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True},
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 2,
            "strides": [[1, 1, 1], [2, 2, 2]],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
}
PLANS = {
    "dataset_name": "Dataset501_Tiny",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [1.5, 1.0, 1.25],
    "original_median_shape_after_transp": [20, 20, 20],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [2, 0, 1],
    "transpose_backward": [1, 2, 0],
    "configurations": {"3d_fullres": CONFIGURATION},
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": {}, "1": {}},
}
CLASSES = {"background": 0, "organ": 1, "lesion": 2}
REGIONS = {"background": 0, "whole": [1, 2], "lesion": 2}


def write_model(folder, reader="SimpleITKIO", labels=CLASSES, trainer="ImbalTrainer", folds=(0,)):
    """A results folder as nnU-Net leaves it, with the weights of chance."""
    plans = {**copy.deepcopy(PLANS), "image_reader_writer": reader}
    dataset = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nii.gz"}
    if labels is REGIONS:
        dataset["regions_class_order"] = [1, 2]
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    manager = PlansManager(plans)
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    for fold in folds:
        torch.manual_seed(7 + fold)
        network = nnUNetTrainer.build_network_architecture(
            manager, manager.get_configuration("3d_fullres"), 2, heads, enable_deep_supervision=True
        )
        last = network.decoder.seg_layers[-1]
        last.weight.data = (torch.eye(4) - torch.eye(4).roll(1, 1))[:heads].reshape(last.weight.shape)  # no class wins
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": trainer,
            "init_args": {"configuration": "3d_fullres", "fold": fold},
            "inference_allowed_mirroring_axes": (0, 1, 2),
            "_best_ema": np.float64(0.5),  # nnU-Net's checkpoints hold such numbers
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def write_images(folder, shape=(14, 18, 12)):
    """A case of two channels whose axes are neither in order nor pointing the usual way, at an odd spacing."""
    rng = np.random.default_rng(3)
    affine = np.array([[0, 0, -1.2, 5], [-0.9, 0, 0, 7], [0, 1.7, 0, -11], [0, 0, 0, 1]])
    folder.mkdir()
    for channel in range(2):
        noise = rng.normal(100, 30, shape).astype(np.float32)
        nib.save(nib.Nifti1Image(noise, affine), folder / f"case_{channel:04d}.nii.gz")
    return folder


def load(folder):
    files = sorted(map(str, folder.glob("*.nii.gz")))
    chain = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])
    return chain({"image": files})["image"]


def predict_as_nnunet(model, images, out, folds=(0,), mirror=True):
    out.mkdir()
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=mirror, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    predictor.predict_from_files_sequential(str(images), str(out))
    return nib.load(out / "case.nii.gz")


@pytest.mark.parametrize(
    ("reader", "labels"),
    [
        ("SimpleITKIO", CLASSES),
        ("SimpleITKIO", REGIONS),
        ("NibabelIO", CLASSES),
        ("NibabelIOWithReorient", CLASSES),
        ("SimpleITKIOWithReorient", CLASSES),
    ],
)
def test_labels_are_those_of_nnunet(tmp_path, reader, labels):
    model, images = write_model(tmp_path / "model", reader, labels), write_images(tmp_path / "images")
    expected = predict_as_nnunet(model, images, tmp_path / "out", mirror=False)
    image = load(images)
    found = load_nnunet_model(model, use_mirroring=False)(image[None])
    assert found.dtype == torch.uint8
    assert found.shape == (1, 1, *image.shape[1:])
    np.testing.assert_array_equal(found[0, 0].numpy(), np.asarray(expected.dataobj))
    np.testing.assert_allclose(found.affine.numpy(), expected.affine, atol=1e-5)
    assert len(np.unique(found.numpy())) == 3  # the comparison saw every class


@pytest.mark.slow
def test_folds_and_mirrored_images_are_averaged(tmp_path):
    model, images = write_model(tmp_path / "model", folds=(0, 1)), write_images(tmp_path / "images")
    expected = predict_as_nnunet(model, images, tmp_path / "out", folds=(0, 1))
    image = load(images)[None]
    both = load_nnunet_model(model)(image)[0, 0].numpy()
    np.testing.assert_array_equal(both, np.asarray(expected.dataobj))
    assert (both != load_nnunet_model(model, 1)(image)[0, 0].numpy()).any()
    assert (both != load_nnunet_model(model, use_mirroring=False)(image)[0, 0].numpy()).any()


def test_a_collated_batch_keeps_the_place_of_each_image(tmp_path):
    model = load_nnunet_model(write_model(tmp_path / "model"), use_mirroring=False)
    image = load(write_images(tmp_path / "images"))
    wide = MetaTensor(
        image.as_tensor().clone(), affine=image.affine @ torch.diag(torch.tensor([1.0, 1, 2, 1])).double()
    )
    batch = next(iter(DataLoader(Dataset([{"image": image}, {"image": wide}]), batch_size=2)))["image"]
    found = model(batch)
    for number, single in enumerate((image, wide)):
        np.testing.assert_array_equal(found[number].numpy(), model(single[None])[0].numpy())
        torch.testing.assert_close(found.affine[number], single.affine)
    assert (found[0] != found[1]).any()


def test_it_serves_an_evaluator_of_monai(tmp_path):
    from monai.engines import SupervisedEvaluator

    image = load(write_images(tmp_path / "images"))
    model = load_nnunet_model(write_model(tmp_path / "model"), use_mirroring=False)
    save = SaveImaged("pred", output_dir=tmp_path / "out", output_postfix="", separate_folder=False)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": image}]), batch_size=1),
        network=model,
        postprocessing=Compose([save]),
    )
    evaluator.run()
    written = nib.load(tmp_path / "out" / "case_0000.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), model(image[None])[0, 0].numpy())
    np.testing.assert_allclose(written.affine, image.affine.numpy(), atol=1e-5)


def test_the_documented_lines_run(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    write_model(tmp_path / "nnUNet_results" / "Dataset004_X" / "ImbalTrainer__nnUNetPlans__3d_fullres")
    write_images(tmp_path / "imagesTs")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {})  # noqa: S102
    written = nib.load(tmp_path / "predictions" / "case_0000.nii.gz")
    assert len(np.unique(np.asarray(written.dataobj))) == 3


def test_it_is_a_module_like_others(tmp_path):
    model = load_nnunet_model(write_model(tmp_path / "model"))
    assert isinstance(model, NNUNetModel)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in model.network.parameters())
    assert model.labels == CLASSES
    assert model.network(torch.zeros(1, 2, 16, 16, 16)).shape == (1, 3, 16, 16, 16)


def test_wrong_images_are_refused(tmp_path):
    model = load_nnunet_model(write_model(tmp_path / "model"))
    with pytest.raises(DataError, match=r"a Tensor without affine; LoadImage gives"):
        model(torch.zeros(1, 2, 8, 8, 8))
    for shape in ((2, 8, 8, 8), (1, 1, 8, 8, 8)):
        with pytest.raises(DataError, match=r"expected \(B, 2, X, Y, Z\)"):
            model(MetaTensor(torch.zeros(shape)))


def test_models_that_need_more_are_refused(tmp_path):
    predictor = load_nnunet_model(write_model(tmp_path / "model")).predictor
    predictor.configuration_manager.configuration["previous_stage"] = "3d_lowres"
    with pytest.raises(ConfigError, match="second stage of a cascade"):
        NNUNetModel(predictor)
    predictor.plans_manager.plans["image_reader_writer"] = "NaturalImage2DIO"
    with pytest.raises(ConfigError, match="reads its images by NaturalImage2DIO"):
        NNUNetModel(predictor)


def test_weights_of_another_network_are_refused(tmp_path):
    folder = write_model(tmp_path / "model")
    wider = (folder / "plans.json").read_text().replace('"features_per_stage": [4, 8]', '"features_per_stage": [8, 8]')
    (folder / "plans.json").write_text(wider)
    with pytest.raises(DataError, match=r"do not fit the network of its plans.json"):
        load_nnunet_model(folder)


def test_an_unknown_trainer_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no trainer FromElsewhere.*nnUNet_extTrainer"):
        load_nnunet_model(write_model(tmp_path / "model", trainer="FromElsewhere"))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere lacks plans.json"):
        load_nnunet_model(tmp_path / "nowhere")
    folder = write_model(tmp_path / "model")
    with pytest.raises(DataError, match=r"checkpoint_final.pth for the folds 0, asked for 3"):
        load_nnunet_model(folder, 3)
    with pytest.raises(DataError, match=r"checkpoint_best.pth for the folds none, asked for any"):
        load_nnunet_model(folder, checkpoint="checkpoint_best.pth")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_no_code_of_a_checkpoint_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_model(tmp_path / "model")
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    torch.save({**checkpoint, "logging": Trap()}, path, pickle_module=pickle)
    with pytest.raises(DataError, match="could run code hidden in it"):
        load_nnunet_model(folder)
    assert not Path("trapped").exists()


@pytest.mark.slow
@pytest.mark.e2e
def test_labels_are_those_of_the_command(tmp_path):
    model, images = write_model(tmp_path / "model"), write_images(tmp_path / "images")
    command = Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder"
    words = ("-i", images, "-o", tmp_path / "out", "-m", model, "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1")
    subprocess.run([command, *map(str, words)], check=True, capture_output=True, timeout=600)
    expected = np.asarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj)
    found = load_nnunet_model(model)(load(images)[None])
    np.testing.assert_array_equal(found[0, 0].numpy(), expected)
