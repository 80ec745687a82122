"""clDice: worked values, thick vessels, absent classes, memory."""

import numpy as np
import pytest
import torch
from monai.losses import SoftclDiceLoss

from nnunet_imbal.losses import ClCELoss, ClDiceLoss, cldice_loss

ONE = {"smooth_nr": 1.0, "smooth_dr": 1.0}


def bar():
    """A bar of 3 x 7 pixels, the same with its middle column missing, and a soft version of that."""
    target = torch.zeros(1, 1, 5, 9, dtype=torch.bool)
    target[..., 1:4, 1:8] = True
    cut = target.double()
    cut[..., 4] = 0
    soft = torch.where(target, 0.9, 0.1).double()
    soft[..., 1:4, 4] = 0.3
    return target, cut, soft


@pytest.mark.parametrize("iterations", [None, 1, 3, 10])
def test_R05_bar_cut_in_two(iterations):
    target, cut, _ = bar()
    loss = cldice_loss(cut, target, alpha=1, iterations=iterations, **ONE)
    assert loss.item() == pytest.approx(1 / 11, abs=1e-9)
    dice_loss = 1 - (2 * 18 + 1) / (18 + 21 + 1)
    assert dice_loss == pytest.approx(0.075)
    for alpha in (0, 0.3):
        both = cldice_loss(cut, target, alpha=alpha, iterations=iterations, **ONE).item()
        assert both == pytest.approx(alpha / 11 + (1 - alpha) * dice_loss)


def test_R05_soft_bar():
    target, _, soft = bar()
    soft = soft.requires_grad_()
    loss = cldice_loss(soft, target, alpha=1, iterations=3, **ONE)
    assert loss.item() == pytest.approx(0.1009174, abs=1e-7)
    loss.backward()
    expected = torch.zeros_like(soft)
    expected[..., 2, 2:7] = -0.1010016
    torch.testing.assert_close(soft.grad, expected, rtol=0, atol=1e-6)


def test_agrees_with_monai():
    """MONAI adds 1e-4 to the denominator of the harmonic mean."""
    target, _, soft = bar()
    monai = SoftclDiceLoss(iter_=3)(soft, target.double()).item()
    assert monai == pytest.approx(0.1009669, abs=1e-6)
    assert cldice_loss(soft, target, alpha=1, iterations=3, **ONE).item() == pytest.approx(monai, abs=1e-4)


def naive_skeleton(volume, iterations):
    """Soft skeleton of a 3-D array by looking at each voxel's neighbours; outside the array there is nothing."""

    def around(voxel, cross):
        for step in np.ndindex(3, 3, 3):
            other = tuple(np.array(voxel) + step - 1)
            inside = all(0 <= o < n for o, n in zip(other, volume.shape, strict=True))
            if inside and (not cross or np.abs(np.array(step) - 1).sum() <= 1):
                yield other

    skeleton = np.zeros(volume.shape)
    for _ in range(iterations + 1):
        eroded, opened = np.empty(volume.shape), np.empty(volume.shape)
        for voxel in np.ndindex(volume.shape):
            eroded[voxel] = min(volume[other] for other in around(voxel, cross=True))
        for voxel in np.ndindex(volume.shape):
            opened[voxel] = max(eroded[other] for other in around(voxel, cross=False))
        ridge = np.maximum(volume - opened, 0)
        skeleton = skeleton + np.maximum(ridge - skeleton * ridge, 0)
        volume = eroded
    return skeleton


def test_R04_equals_obvious_loops(rng):
    target = np.zeros((2, 5, 6, 6), bool)
    target[0, 1:4, 1:4, :], target[1, 2, 4:, 1:5] = True, True
    probs = rng.random(target.shape)
    values = []
    for p, y in zip(probs, target, strict=True):
        ridges, line = naive_skeleton(p, 2), naive_skeleton(y.astype(float), 2)
        precision = (ridges[y].sum() + 1e-5) / (ridges.sum() + 1e-5)
        sensitivity = ((line * p).sum() + 1e-5) / (line.sum() + 1e-5)
        dice = (2 * p[y].sum() + 1e-5) / (p.sum() + y.sum() + 1e-5)
        values.append(0.4 * (1 - 2 / (1 / precision + 1 / sensitivity)) + 0.6 * (1 - dice))
    found = cldice_loss(
        torch.from_numpy(probs[None]), torch.from_numpy(target[None]), alpha=0.4, iterations=2, reduction="none"
    )
    np.testing.assert_allclose(found[0], values, rtol=1e-6)


@pytest.mark.parametrize("radius", [1, 2, 4, 6, 8])
def test_no_vessel_is_too_thick(radius):
    """With three iterations a tube thicker than six voxels has no skeleton and may be cut without cost."""
    y, x = torch.meshgrid(torch.arange(21), torch.arange(21), indexing="ij")
    target = ((y - 10) ** 2 + (x - 10) ** 2 <= radius**2).expand(1, 1, 24, 21, 21).clone()
    cut = target.double()
    cut[:, :, 10:14] = 0
    assert cldice_loss(cut, target, alpha=1).item() > 0.05
    if radius >= 4:
        assert cldice_loss(cut, target, alpha=1, iterations=3, **ONE).item() == pytest.approx(0, abs=1e-6)


def test_a_prediction_too_thick_has_a_skeleton_as_well():
    target = torch.zeros(1, 1, 17, 17, 30, dtype=torch.bool)
    target[..., 8, 8, :] = True
    fat = torch.zeros(target.shape, dtype=torch.float64)
    fat[..., 2:15, 2:15, :] = 1
    shifted = fat.roll(4, 2)
    assert cldice_loss(shifted, target, alpha=1).item() > 0.9


def test_class_missed_beside_a_big_one_costs_half():
    """Pooled over classes, as in some implementations, the big one would hide it."""
    target = torch.zeros(1, 2, 7, 7, 40, dtype=torch.bool)
    target[0, 0, 2:5, 2:5, :30] = target[0, 1, 3, 3, 32:36] = True
    probs = target.double()
    probs[0, 1] = 0
    assert cldice_loss(probs, target).item() == pytest.approx(0.5, abs=1e-3)


def test_absent_class_is_skipped_and_does_not_explode():
    """Scored like a present one, it has a gradient of 1e4 where a trace of it is predicted."""
    target = torch.zeros(1, 2, 5, 5, 8, dtype=torch.bool)
    target[0, 0, 2, 2, :] = True
    probs = target.double() * 0.8
    probs[0, 1, 1, 1, 1] = 1e-5
    probs.requires_grad_()
    cldice_loss(probs, target).backward()
    assert not probs.grad[0, 1].any()
    assert probs.grad.abs().max() < 10


@pytest.mark.parametrize("loss", [ClDiceLoss, ClCELoss])
def test_several_classes_are_seen_as_probabilities(rng, loss):
    """A multi-class clDice is in use that multiplies skeletons by raw logits: any number added to all changes it."""
    logits = torch.from_numpy(rng.normal(0, 3, (2, 4, 12, 12)))
    labels = logits.roll(1, -1).argmax(1, keepdim=True)
    criterion = loss(softmax=True, to_onehot_y=True)
    assert criterion(logits + 7, labels).item() == pytest.approx(criterion(logits, labels).item(), rel=1e-9)
    if loss is ClDiceLoss:
        target = torch.cat([labels == number for number in (1, 2, 3)], 1)
        expected = cldice_loss(logits.softmax(1)[:, 1:], target).item()
        assert criterion(logits, labels).item() == pytest.approx(expected, rel=1e-9)


def test_merged_classes_are_one_tree():
    labels = torch.zeros(1, 1, 7, 7, 12, dtype=torch.long)
    labels[..., 2:5, 2:5, :6], labels[..., 3, 3, 6:] = 1, 2
    swapped = torch.where(labels > 0, 3 - labels, 0)
    logits = torch.nn.functional.one_hot(swapped[:, 0], 3).movedim(-1, 1).float() * 30
    words = {"softmax": True, "to_onehot_y": True}
    assert ClDiceLoss(merge=True, **words)(logits, labels).item() == pytest.approx(0, abs=1e-5)
    assert ClDiceLoss(**words)(logits, labels).item() > 0.9
    cut = logits.clone()
    cut[:, :, 3, 3, 8] = torch.tensor([30.0, 0, 0])
    assert ClDiceLoss(merge=True, **words)(cut, labels).item() > 0.01


def test_merged_regions_are_their_union():
    target = torch.zeros(1, 2, 5, 9, dtype=torch.bool)
    target[0, 0, 1:4, 1:8] = target[0, 1, 2, 1:4] = True
    logits = (target.float() - 0.5) * 40
    logits[0, 1] = -20
    assert ClDiceLoss(merge=True, sigmoid=True)(logits, target).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 1.1}, {"alpha": -0.1}, {"iterations": -1}, {"weight": [1, 2], "merge": True}]
)
def test_impossible_options(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClDiceLoss(**wrong)


def saved_bytes(shape, classes):
    """Bytes that autograd keeps from the loss for the way back, per voxel."""
    labels = torch.zeros(1, 1, *shape, dtype=torch.long)
    for label in range(1, classes + 1):
        labels[..., label::16, label::16, :] = label
    logits = torch.rand(1, classes + 1, *shape, requires_grad=True)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        ClDiceLoss(softmax=True, to_onehot_y=True)(logits, labels)
    return sum(kept.values()) / labels.numel()


def test_thirteen_classes_fit_into_eight_gigabytes():
    """Chained poolings would keep 86 GB at ten iterations in a batch of two patches of 80 x 192 x 160."""
    per_voxel = saved_bytes((16, 24, 24), 13)
    assert per_voxel * 2 * 80 * 192 * 160 < 4e9
    assert per_voxel < 0.1 * 13 * (64 + 128 * 10)  # an order of magnitude below the chain
