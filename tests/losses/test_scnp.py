"""SCNP: the published example, and what obvious loops find."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.losses import SCNPLoss, same_class_neighbor_penalty, scnp_loss

ROW = torch.tensor([[2.0, -1, 3, -2, -3], [-2, 1, -3, 2, 3]]).reshape(1, 2, 1, 5)
LABELS = torch.tensor([1, 1, 1, 0, 0]).reshape(1, 1, 1, 5)


def channels(labels, count):
    return F.one_hot(labels[:, 0], count).movedim(-1, 1).bool()


def naive_penalty(logits, target, size, mask):
    out, reach = logits.clone(), size // 2
    for b, c in np.ndindex(logits.shape[:2]):
        z, y, counts = logits[b, c], target[b, c], mask[b, 0]
        for v in np.ndindex(z.shape):
            box = itertools.product(
                *(range(max(i - reach, 0), min(i + reach + 1, n)) for i, n in zip(v, z.shape, strict=True))
            )
            same = [z[u].item() for u in box if counts[u] and y[u] == y[v]]
            if counts[v]:
                out[b, c][v] = min(same) if y[v] else max(same)
    return out


def test_R05_published_row():
    worst = same_class_neighbor_penalty(ROW, channels(LABELS, 2))
    assert worst[0, :, 0].tolist() == [[2, 3, 3, -3, -3], [-2, -3, -3, 3, 3]]
    assert F.cross_entropy(ROW, LABELS[:, 0]).item() == pytest.approx(4.0336358, abs=1e-6)
    assert F.cross_entropy(worst, LABELS[:, 0]).item() == pytest.approx(5.6056105, abs=1e-6)


def test_R05_loss_is_dice_and_cross_entropy_of_the_penalised_row():
    probs = torch.tensor([[2, 3, 3, -3, -3], [-2.0, -3, -3, 3, 3]]).softmax(0)[1]
    dice = 2 * probs[:3].sum() / (probs.sum() + 3)
    loss = SCNPLoss(softmax=True, to_onehot_y=True)(ROW, LABELS)
    assert loss.item() == pytest.approx(1 - dice.item() + 5.6056105, abs=1e-5)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6), (1, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_equals_obvious_loops(size, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *shape, generator=generator).to(dtype)
    target = torch.rand(2, 3, *shape, generator=generator) > 0.6  # overlapping
    target[1, 2] = False
    mask = torch.rand(2, 1, *shape, generator=generator) > 0.2
    found = same_class_neighbor_penalty(logits, target, size, mask)
    assert found.dtype == dtype
    assert torch.equal(found, naive_penalty(logits, target, size, mask))


def test_largest_half_precision_logits_stay_finite():
    logits = torch.full((1, 2, 4, 4), 65504.0, dtype=torch.float16)
    target = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    assert torch.equal(same_class_neighbor_penalty(logits, target), logits)
    assert torch.equal(same_class_neighbor_penalty(-logits, ~target), -logits)


def test_gradient_goes_to_the_worst_voxel():
    logits = ROW.clone().requires_grad_()
    same_class_neighbor_penalty(logits, channels(LABELS, 2))[0, 1].sum().backward()
    assert logits.grad[0, 1, 0].tolist() == [1, 0, 2, 0, 2]


@pytest.mark.parametrize("words", [{}, {"exclusive": False}, {"batch": True}, {"include_background": True}])
def test_gradcheck(words):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (2, 1, 4, 5, 3), generator=generator)
    mask = torch.rand(2, 1, 4, 5, 3, generator=generator) > 0.2
    logits = torch.randn(2, 3, 4, 5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    target = channels(labels, 3) & mask
    assert torch.autograd.gradcheck(lambda z: scnp_loss(z, target, mask=mask, **words), (logits,))


def test_absent_classes_do_not_count():
    target = channels(LABELS, 3)
    logits = torch.cat([ROW, torch.full((1, 1, 1, 5), -40.0)], 1)
    two = scnp_loss(ROW, target[:, :2])
    assert scnp_loss(logits, target).item() == pytest.approx(two.item(), abs=1e-6)
    assert scnp_loss(logits, target, reduction="none")[0, 1] == 0


@pytest.mark.parametrize("size", [0, 2, -1])
def test_size_must_be_odd(size):
    with pytest.raises(ConfigError, match=f"odd number of voxels, got {size}"):
        SCNPLoss(size=size)
    with pytest.raises(ConfigError, match=f"odd number of voxels, got {size}"):
        same_class_neighbor_penalty(ROW, ROW > 0, size)


def test_shapes_must_agree():
    with pytest.raises(ConfigError, match=r"\(1, 2, 1, 5\) and \(1, 1, 1, 5\)"):
        same_class_neighbor_penalty(ROW, LABELS)


def test_other_activations_are_refused():
    with pytest.raises(ValueError, match="other_act"):
        SCNPLoss(other_act=torch.tanh)
