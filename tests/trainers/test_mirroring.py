"""Flips keep left left, in training and at test time."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from nnunet_imbal.errors import LabelError
from trainers._mirroring import LabelSwapMirrorTransform, choose_mirroring, direction_of, use_label_swap

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
    assert np.array_equal(direction_of(itk), SAGITTAL)
    assert direction_of({"sitk_stuff": {"direction": (1.0, 0.0, 0.0, 1.0)}}) is None
    assert np.array_equal(direction_of({"nibabel_stuff": {"original_affine": np.eye(4)}}), np.eye(3))
    assert direction_of({"spacing": [1, 1, 1]}) is None


def test_only_the_flip_is_replaced():
    noise = object()
    transforms = ComposeTransforms([noise, MirrorTransform(AXES)])
    use_label_swap(transforms, choose())
    assert transforms.transforms[0] is noise
    assert isinstance(transforms.transforms[1], LabelSwapMirrorTransform)
    stock = ComposeTransforms([MirrorTransform(AXES)])
    assert type(use_label_swap(stock, choose("stock")).transforms[0]) is MirrorTransform
