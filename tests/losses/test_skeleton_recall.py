"""Skeleton Recall: worked values, and objects and junctions that other readings of the method lose."""

import pytest
import torch

import numba_kernels
from nnunet_imbal.losses import SkeletonRecallLoss, skeleton_recall_loss, skeleton_tubes


def bar_cut_in_two():
    """A bar of 3 x 7 pixels, a prediction that lacks its middle column, and the tube of the published thinning."""
    target = torch.zeros(1, 1, 5, 9, dtype=torch.bool)
    target[..., 1:4, 1:8] = True
    probs = target.double()
    probs[..., 4] = 0
    tubes = target.clone()
    tubes[..., 3, 7] = False
    return probs, target, tubes


def thick_and_thin():
    """A thick tube (class 1) that feeds a tube of one voxel (class 2)."""
    target = torch.zeros(1, 2, 5, 5, 10, dtype=torch.bool)
    target[0, 0, 1:4, 1:4, 1:5] = True
    target[0, 1, 2, 2, 5:9] = True
    return target


def test_R05_bar():
    probs, target, tubes = bar_cut_in_two()
    assert tubes.sum() == 20
    assert skeleton_recall_loss(probs, target, tubes=tubes).item() == pytest.approx(1 - 0.8500001, abs=1e-7)


def test_R05_volume():
    target = thick_and_thin()
    tubes = skeleton_tubes(target)
    assert tubes.sum((2, 3, 4)).tolist() == [[32, 4]]
    probs = target.double()
    assert skeleton_recall_loss(probs, target).item() == pytest.approx(0, abs=1e-12)
    probs[0, 1, 2, 2, 6] = 0
    per_class = 1 - skeleton_recall_loss(probs, target, reduction="none")
    torch.testing.assert_close(per_class, torch.tensor([[1, 0.75]], dtype=torch.float64), rtol=0, atol=1e-6)
    assert skeleton_recall_loss(probs, target).item() == pytest.approx(1 - 0.8750003, abs=1e-7)
    half = torch.full_like(probs, 0.5)
    assert skeleton_recall_loss(half, target).item() == pytest.approx(1 - 0.5000007, abs=1e-7)
    flood = torch.zeros_like(probs)
    flood[:, 1] = 1
    assert skeleton_recall_loss(flood, target).item() == pytest.approx(1 - 0.5000002, abs=1e-7)


def test_R04_equals_obvious_loops(rng, label_maps):
    labels = label_maps()
    target = torch.cat([labels == 1, labels == 2], 1)
    probs = torch.from_numpy(rng.random(target.shape))
    samples = []
    for b in range(2):
        merged = numba_kernels.tube(numba_kernels.skeletonize(target[b].any(0).numpy()))
        classes = []
        for c in range(2):
            own = numba_kernels.tube(numba_kernels.skeletonize(target[b, c].numpy()))
            asked = [v for v in torch.argwhere(target[b, c]).tolist() if merged[tuple(v)] or own[tuple(v)]]
            found = sum(probs[(b, c, *voxel)].item() for voxel in asked)
            classes.append(1 - (found + 1e-5) / (len(asked) + 1e-5))
        samples.append(sum(classes) / 2)
    assert skeleton_recall_loss(probs, target).item() == pytest.approx(sum(samples) / 2, rel=1e-9)


def test_R03_module_equals_function(label_maps):
    labels = label_maps()
    logits = torch.randn(2, 3, 12, 12, 12)
    target = torch.cat([labels == 1, labels == 2], 1)
    module = SkeletonRecallLoss(softmax=True, to_onehot_y=True, weight=[1, 3])(logits, labels)
    function = skeleton_recall_loss(logits.softmax(1)[:, 1:], target, weight=torch.tensor([1.0, 3.0]))
    assert module.item() == pytest.approx(function.item(), rel=1e-6)


def test_a_small_branch_along_a_big_vessel_keeps_its_own_line():
    """The line of all classes together runs through the big vessel only, and the branch would be asked for nothing."""
    target = torch.zeros(1, 2, 13, 13, 20, dtype=torch.bool)
    target[0, 0, 1:12, 1:10, :] = True
    target[0, 1, 6, 10:13, 5:15] = True
    merged_only = numba_kernels.tube(numba_kernels.skeletonize(target[0].any(0).numpy()))
    assert merged_only[target[0, 1].numpy()].sum() < 30
    assert skeleton_tubes(target)[0, 1].sum() == 30


def test_boxes_of_even_thickness_are_asked_for():
    """The thinning of scikit-image 0.26 deletes them, and with them the reason to find them."""
    target = torch.zeros(1, 1, 12, 12, 12, dtype=torch.bool)
    target[..., 1:3, 1:3, 1:3] = target[..., 5:9, 5:9, 5:9] = True
    assert not numba_kernels.skeletonize(target[0, 0].numpy(), compat="skimage-0.26").any()
    tubes = skeleton_tubes(target)
    assert tubes[..., 1:3, 1:3, 1:3].any()
    assert tubes[..., 5:9, 5:9, 5:9].any()


def test_gradient_is_the_same_on_the_whole_tube_and_nowhere_else():
    target = thick_and_thin()
    probs = torch.rand(target.shape, dtype=torch.float64, requires_grad=True)
    skeleton_recall_loss(probs, target, smooth_nr=0, smooth_dr=0).backward()
    expected = skeleton_tubes(target) * torch.tensor([-1 / 32, -1 / 4], dtype=torch.float64).view(1, 2, 1, 1, 1) / 2
    torch.testing.assert_close(probs.grad, expected)


def test_batch_adds_up_before_it_divides():
    target = torch.zeros(2, 1, 5, 9, dtype=torch.bool)
    target[0, 0, 2, 1:3] = target[1, 0, 2, 1:7] = True
    probs = torch.zeros(target.shape, dtype=torch.float64)
    probs[0, 0, 2, 1:3] = 1
    assert skeleton_recall_loss(probs, target).item() == pytest.approx(0.5, abs=1e-5)
    assert skeleton_recall_loss(probs, target, batch=True).item() == pytest.approx(0.75, abs=1e-5)
