"""cbDice: worked values of the published form, calibre, spacing, several classes."""

import numpy as np
import pytest
import torch

from nnunet_imbal.losses import CbDiceLoss, cbdice_loss
from nnunet_imbal.ops import distance, erosion_depth, soft_skeleton

PUBLISHED = {"smooth_nr": 1e-3, "smooth_dr": 1e-3}


def bar():
    """A bar of 3 x 7 pixels, the same with its middle column missing, and a soft version of that."""
    target = torch.zeros(1, 1, 5, 9, dtype=torch.bool)
    target[..., 1:4, 1:8] = True
    cut = target.double()
    cut[..., 4] = 0
    soft = torch.where(target, 0.9, 0.1).double()
    soft[..., 1:4, 4] = 0.3
    return target, cut, soft


def thick_and_thin():
    """A thick tube that feeds a tube of one voxel, and a prediction with one voxel of the thin one missing."""
    target = torch.zeros(1, 1, 5, 5, 10, dtype=torch.bool)
    target[..., 1:4, 1:4, 1:5] = target[..., 2, 2, 5:9] = True
    probs = target.double()
    probs[..., 2, 2, 6] = 0
    return target, probs


def test_R05_published_values():
    target, cut, soft = bar()
    assert cbdice_loss(cut, target, **PUBLISHED).item() == pytest.approx(1 - 0.7501249, abs=1e-7)
    assert cbdice_loss(soft, target, **PUBLISHED).item() == pytest.approx(1 - 0.7201493, abs=1e-7)
    target, probs = thick_and_thin()
    assert cbdice_loss(probs, target, **PUBLISHED).item() == pytest.approx(1 - 0.8861330, abs=1e-7)


def naive_calibre(mask):
    line = soft_skeleton(mask[None, None].float(), erosion_depth(mask[None, None]))[0, 0] > 0
    depth = distance(mask[None, None])[0, 0].numpy()
    radius = np.where(line, depth, 0)
    largest, smallest = max(radius.max(), 1), max(radius.min(), 1)
    slim = np.zeros(mask.shape)
    for voxel in np.argwhere(line.numpy()):
        slim[tuple(voxel)] = ((largest - radius[tuple(voxel)] + smallest) / largest) ** (mask.ndim - 1)
    return line.numpy(), np.minimum(depth, largest) / largest, radius / largest, slim


def naive_ratio(voxels, counted, here, there, share):
    """Sum of ``share * counted`` over that of ``share * there``, or ``share * here`` where there is nothing."""
    above = below = 1e-3
    for v in voxels:
        above += share[v] * counted[v]
        below += share[v] * (here[v] if here[v] != 0 and there[v] == 0 else there[v])
    return above / below


@pytest.mark.parametrize("shape", [(7, 8, 9), (11, 12)])
def test_R04_equals_obvious_loops(rng, shape):
    target = torch.zeros(shape, dtype=torch.bool)
    target[(slice(1, 6),) * len(shape)] = True
    probs = torch.from_numpy(np.clip(target.numpy() * 0.6 + rng.random(shape) * 0.5 - 0.1, 0, 1))
    p = probs.numpy()
    _, depth_true, radius_true, slim_true = naive_calibre(target)
    line, depth_guess, radius_guess, slim_guess = naive_calibre(probs > 0.5)
    assert line.any()
    voxels = list(np.ndindex(shape))
    precision = naive_ratio(voxels, depth_true, radius_guess * p, radius_true, slim_guess * p)
    sensitivity = naive_ratio(voxels, depth_guess * p, radius_true, radius_guess * p, slim_true)
    expected = 1 - 2 * precision * sensitivity / (precision + sensitivity)
    found = cbdice_loss(probs[None, None], target[None, None], **PUBLISHED)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_R03_module_equals_function(label_maps):
    labels = label_maps()
    logits = torch.randn(2, 3, 12, 12, 12)
    target = torch.cat([labels == 1, labels == 2], 1)
    module = CbDiceLoss(softmax=True, to_onehot_y=True, spacing=(3, 1, 1), weight=[1, 3])(logits, labels)
    function = cbdice_loss(logits.softmax(1)[:, 1:], target, spacing=(3, 1, 1), weight=torch.tensor([1.0, 3.0]))
    assert module.item() == pytest.approx(function.item(), rel=1e-6)


def test_a_thin_vessel_weighs_more_than_a_thick_one():
    target = torch.zeros(1, 1, 15, 15, 40, dtype=torch.bool)
    target[..., 2:9, 2:9, :], target[..., 12, 12, :] = True, True
    probs = target.double()

    def gap(rows, columns):
        cut = probs.clone()
        cut[..., rows, columns, 18:22] = 0
        return cbdice_loss(cut, target).item()

    assert gap(slice(12, 13), slice(12, 13)) > 2 * gap(slice(2, 9), slice(2, 9)) > 0


def test_a_calibre_that_is_wrong_everywhere_goes_unnoticed():
    """Each mask is measured by its own largest radius: a property of the published form that its users should know."""
    target = torch.zeros(1, 1, 13, 13, 30, dtype=torch.bool)
    target[..., 3:10, 3:10, :] = True
    thin = torch.zeros(target.shape, dtype=torch.float64)
    thin[..., 5:8, 5:8, :] = 1
    assert cbdice_loss(thin, target).item() == pytest.approx(0, abs=1e-6)


def test_only_ratios_of_spacing_matter():
    target = torch.zeros(1, 1, 9, 9, 12, dtype=torch.bool)
    target[..., 1:8, 3:6, 1:7] = target[..., 4, 4, 7:11] = True
    probs = target.double()
    probs[..., 8] = 0
    plain = cbdice_loss(probs, target).item()
    assert cbdice_loss(probs, target, spacing=(0.5, 0.5, 0.5)).item() == pytest.approx(plain, rel=1e-6)
    assert cbdice_loss(probs, target, spacing=(1, 3, 1)).item() != pytest.approx(plain, rel=1e-2)


def test_a_swap_of_classes_costs_unless_they_are_merged():
    labels = torch.zeros(1, 1, 7, 7, 12, dtype=torch.long)
    labels[..., 2:5, 2:5, :6], labels[..., 3, 3, 6:] = 1, 2
    swapped = torch.where(labels > 0, 3 - labels, 0)
    logits = torch.nn.functional.one_hot(swapped[:, 0], 3).movedim(-1, 1).float() * 30
    words = {"softmax": True, "to_onehot_y": True}
    assert CbDiceLoss(merge=True, **words)(logits, labels).item() == pytest.approx(0, abs=1e-5)
    assert CbDiceLoss(**words)(logits, labels).item() > 0.9


def test_ignored_voxels_are_no_vessel():
    """In the published code an ignore label, the largest of all, turns into foreground."""
    target, cut, _ = bar()
    labels = target.long().masked_fill(cut.bool() ^ target, 2)
    mask = labels != 2
    logits = torch.cat([1 - cut, cut], 1) * 40
    words = {"softmax": True, "to_onehot_y": True}
    loss = CbDiceLoss(**words)(logits, labels.clamp(max=1), mask).item()
    assert loss == CbDiceLoss(**words)(logits, cut.long(), mask).item()
    assert loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("wrong", [{"spacing": (1, 0)}, {"spacing": (1,)}, {"weight": [1, 2], "merge": True}])
def test_impossible_options(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CbDiceLoss(**wrong)
