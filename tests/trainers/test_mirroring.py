"""Flips keep left left, in training and at test time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_imbal.errors import LabelError
from trainers import ImbalTrainer
from trainers._adapter import difference
from trainers._mirroring import LabelSwapMirrorTransform, _direction, choose_mirroring, use_label_swap

KIDNEYS = {"background": 0, "kidney_left": 1, "kidney_right": 2, "liver": 3}
STRAIGHT = [np.eye(3)] * 2
SAGITTAL = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=float)
AXES = (0, 1, 2)


def choose(mode="auto", labels=KIDNEYS, directions=STRAIGHT, transpose=AXES, axes=AXES):
    return choose_mirroring(mode, axes, labels, directions, transpose)


def test_a_flip_exchanges_the_labels():
    swap = LabelSwapMirrorTransform((2,), 2, [0, 2, 1, 3, 4])
    seg = torch.tensor([[-1, 0, 1, 2, 3, 4]], dtype=torch.int16).reshape(1, 1, 1, 6)
    image = torch.arange(6.0).reshape(1, 1, 1, 6)
    flipped = swap.apply({"image": image, "segmentation": seg}, axes=[2])
    assert flipped["segmentation"].flatten().tolist() == [4, 3, 1, 2, 0, -1]
    assert flipped["segmentation"].dtype == torch.int16
    assert flipped["image"].flatten().tolist() == [5, 4, 3, 2, 1, 0]


def test_flips_along_other_axes_do_not():
    swap = LabelSwapMirrorTransform((0, 1), 2, [0, 2, 1])
    seg = torch.tensor([[1, 2]], dtype=torch.int16).reshape(1, 1, 2, 1)
    for axes, expected in (([], [1, 2]), ([1], [2, 1]), ([0], [1, 2])):
        assert swap.apply({"segmentation": seg}, axes=axes)["segmentation"].flatten().tolist() == expected


def test_pairs_are_swapped_in_training_and_not_mirrored_at_test_time():
    mirroring = choose()
    assert mirroring.axes == AXES
    assert mirroring.test_axes == (0, 1)
    assert mirroring.lateral_axis == 2
    assert mirroring.table == (0, 2, 1, 3, 4)  # 4: the ignore label of such a dataset
    assert "kidney_left and kidney_right" in mirroring.reason


@pytest.mark.parametrize("mode", ["auto", "off", "swap", "stock"])
def test_without_sides_everything_is_stock(mode):
    mirroring = choose(mode, {"background": 0, "lesion": 1})
    assert (mirroring.axes, mirroring.test_axes, mirroring.reason) == (AXES, AXES, "")


def test_a_missing_partner_switches_the_axis_off():
    labels = {**KIDNEYS, "lung_middle_lobe_right": 4}
    mirroring = choose(labels=labels)
    assert mirroring.axes == mirroring.test_axes == (0, 1)
    assert "lung_middle_lobe_right" in mirroring.reason
    with pytest.raises(LabelError, match="lung_middle_lobe_right"):
        choose("swap", labels)


def test_off_leaves_the_lateral_axis_alone():
    assert choose("off").axes == (0, 1)
    assert choose("off", directions=[SAGITTAL]).axes == (1, 2)
    assert choose("stock").test_axes == AXES


def test_mixed_and_unknown_orientations_are_not_mirrored():
    mixed = choose(directions=[np.eye(3), SAGITTAL])
    assert mixed.axes == mixed.test_axes == (1,)
    assert choose(directions=[np.eye(3), None]).axes == ()


@pytest.mark.parametrize(
    ("directions", "transpose", "axes", "lateral"),
    [
        (STRAIGHT, (2, 0, 1), AXES, 0),  # plans that put the axis of thick slices first
        ([SAGITTAL], (0, 1, 2), AXES, 0),
        (STRAIGHT, (0, 1, 2), (0, 1), 1),  # 2-D: patches are slices (y, x)
        (STRAIGHT, (1, 0, 2), (0, 1), 1),
    ],
)
def test_the_axis_of_the_patch(directions, transpose, axes, lateral):
    mirroring = choose(directions=directions, transpose=transpose, axes=axes)
    assert mirroring.lateral_axis == lateral
    assert lateral not in mirroring.test_axes


def test_sagittal_slices_have_both_axes_free():
    assert choose(directions=[SAGITTAL], axes=(0, 1)).reason == ""


def test_orientation_as_the_readers_note_it():
    itk = {"sitk_stuff": {"direction": tuple(SAGITTAL.ravel())}}
    assert np.array_equal(_direction(itk), SAGITTAL)
    assert _direction({"sitk_stuff": {"direction": (1.0, 0.0, 0.0, 1.0)}}) is None
    assert np.array_equal(_direction({"nibabel_stuff": {"original_affine": np.eye(4)}}), np.eye(3))
    assert _direction({"spacing": [1, 1, 1]}) is None


def test_only_the_flip_is_replaced():
    noise = object()
    transforms = ComposeTransforms([noise, MirrorTransform(AXES)])
    use_label_swap(transforms, choose())
    assert transforms.transforms[0] is noise
    assert isinstance(transforms.transforms[1], LabelSwapMirrorTransform)
    stock = ComposeTransforms([MirrorTransform(AXES)])
    assert type(use_label_swap(stock, choose("stock")).transforms[0]) is MirrorTransform


def test_an_older_checkpoint_is_not_another_configuration():
    stored = {"base": "nnunet", "terms": []}
    assert difference(stored, {**stored, "sampling": None, "mirroring": "stock"}) == []
    assert difference(stored, {**stored, "mirroring": "auto"})


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # nnU-Net's own
class TestTrainer:
    @pytest.fixture
    def make(self, in_process, tmp_path, monkeypatch):
        """Function (names, mode) -> trainer on the tiny dataset with these names of classes, with its loaders."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))

        def make(names, mode):
            files = ("nnUNetPlans.json", "dataset.json")
            plans, dataset = (json.loads((in_process.preprocessed / name).read_text()) for name in files)
            plans["continue_training"] = False
            plans["configurations"]["3d_fullres"]["imbal"] = {"terms": [], "mirroring": mode}
            dataset["labels"] = {"background": 0, names[0]: 1, names[1]: 2}
            trainer = ImbalTrainer(plans, "3d_fullres", 0, dataset, torch.device("cpu"))
            trainer.initialize()
            return trainer, trainer.get_dataloaders()[0].data_loader.transforms.transforms

        return make

    def test_pairs(self, make):
        trainer, transforms = make(["kidney_left", "kidney_right"], "auto")
        flips = [transform for transform in transforms if isinstance(transform, MirrorTransform)]
        assert [type(flip) for flip in flips] == [LabelSwapMirrorTransform]
        assert trainer.inference_allowed_mirroring_axes == (0, 1)
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint.pth"))
        stored = torch.load(Path(trainer.output_folder) / "checkpoint.pth", weights_only=False)
        assert stored["inference_allowed_mirroring_axes"] == (0, 1)
        assert "flips exchange kidney_left and kidney_right" in Path(trainer.log_file).read_text()

    def test_one_sided(self, make):
        trainer, transforms = make(["liver", "middle_lobe_right"], "auto")
        assert [flip.allowed_axes for flip in transforms if isinstance(flip, MirrorTransform)] == [(0, 1)]
        assert trainer.inference_allowed_mirroring_axes == (0, 1)

    @pytest.mark.parametrize(("names", "mode"), [(["organ", "lesion"], "auto"), (["left a", "right a"], "stock")])
    def test_stock(self, make, names, mode):
        trainer, transforms = make(names, mode)
        assert [type(flip) for flip in transforms if isinstance(flip, MirrorTransform)] == [MirrorTransform]
        assert trainer.inference_allowed_mirroring_axes == AXES
