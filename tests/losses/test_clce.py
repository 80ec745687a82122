"""clCE: worked values, and classes that the released code does not look at."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from nnunet_imbal.losses import ClCELoss, clce_loss
from nnunet_imbal.ops import soft_skeleton


def soft_bar():
    """A bar of 3 x 7 pixels, and 0.9 in it, 0.1 outside and 0.3 in its middle column."""
    target = torch.zeros(1, 1, 5, 9, dtype=torch.bool)
    target[..., 1:4, 1:8] = True
    probs = torch.where(target, 0.9, 0.1).double()
    probs[..., 1:4, 4] = 0.3
    return target, probs


def test_R05_bar():
    target, probs = soft_bar()
    errors = binary_cross_entropy(probs, target.double(), reduction="none")
    truth, guess = ((errors * soft_skeleton(s, 3)).mean().item() for s in (target.double(), probs))
    assert (truth, guess) == pytest.approx((0.0361203, 0.0100337), abs=1e-7)
    assert clce_loss(errors, target, iterations=3).item() == pytest.approx(0.0461540, abs=1e-7)
    two_channels = torch.cat([1 - probs, probs], 1).log()
    module = ClCELoss(softmax=True, to_onehot_y=True, iterations=3)
    assert module(two_channels, target.long()).item() == pytest.approx(0.0461540, abs=1e-6)


def test_every_class_counts():
    """Released: the second channel is the only one that counts."""
    labels = torch.zeros(1, 1, 7, 7, 12, dtype=torch.long)
    labels[..., 1, 1:3, :], labels[..., 5, 5, :] = 1, 2
    logits = (torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1) - 0.5).float() * 20
    logits[:, :, 5, 5, 4:8] = torch.tensor([10.0, -10, -10])[:, None]
    per_class = ClCELoss(softmax=True, to_onehot_y=True, reduction="none")(logits, labels)
    assert per_class[0, 1] > 0.005
    assert per_class[0, 0] < 1e-4


def test_confident_mistakes_keep_their_gradient():
    target, _ = soft_bar()
    logits = torch.where(target, -60.0, -90.0).requires_grad_()
    ClCELoss(sigmoid=True)(logits, target).backward()
    assert (logits.grad[..., 2, 3:6] < -0.02).all()


def test_negative_iterations_are_refused():
    with pytest.raises(ValueError, match="iterations"):
        ClCELoss(iterations=-1)
