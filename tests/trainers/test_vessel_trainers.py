"""The trainers for vessels name losses that exist, with options that they take, on their published schedule."""

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from torch.nn.functional import cross_entropy

import trainers
from nnunet_imbal.config import ImbalConfig
from nnunet_imbal.labels import LabelSpec
from trainers._adapter import ImbalLoss, build_terms

NAMES = (
    "ImbalTrainerAGTAL",
    "ImbalTrainerCbDice",
    "ImbalTrainerClDice",
    "ImbalTrainerSCNP",
    "ImbalTrainerSkeletonRecall",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_terms_train_on_a_batch(name, ndim):
    config = ImbalConfig.from_dict(getattr(trainers, name).imbal)
    loss = ImbalLoss(None, build_terms(config, LabelSpec(ignore_label=3), [0.7] * ndim, {}), LabelSpec(ignore_label=3))
    labels = torch.zeros(1, 1, *[12] * ndim)
    labels[:, :, 3:6, 2:9], labels[:, :, 6:8, 2:9], labels[:, :, 10] = 1, 2, 3
    logits = torch.randn(1, 3, *[12] * ndim, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for epoch in (0, 31):
        loss.epoch = epoch
        loss(logits, labels).backward()
        assert logits.grad.isfinite().all()
    assert logits.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_every_resolution_is_trained(name):
    """Maps that the loader adds for a loss, but not for lower resolutions, have been seen to cut nnU-Net's list short.

    Then only the highest head learned, and its loss counted by its share of the weights alone.
    """
    shares = (4 / 7, 2 / 7, 1 / 7)
    host = DeepSupervisionWrapper(RobustCrossEntropyLoss(), shares)
    config = ImbalConfig.from_dict(getattr(trainers, name).imbal)
    loss = ImbalLoss(host, build_terms(config, LabelSpec(), [1.0] * 3, {}), LabelSpec())
    labels = torch.zeros(1, 1, 16, 16, 16)
    labels[..., 4:8, 4:8, :], labels[..., 8:10, 4:8, :] = 1, 2
    generator = torch.Generator().manual_seed(0)
    targets = [labels[..., ::step, ::step, ::step] for step in (1, 2, 4)]
    heads = [torch.randn(1, 3, *t.shape[2:], generator=generator).requires_grad_() for t in targets]
    loss.epoch = 31
    value = loss(heads, targets)
    value.backward()
    assert all(head.grad.abs().sum() > 0 for head in heads)
    terms = sum(term.weight * term.loss(heads[0], *loss.labels.split_target(targets[0])) for term in loss.terms)
    levels = [
        share * cross_entropy(head, target[:, 0].long())
        for share, head, target in zip(shares, heads, targets, strict=True)
    ]
    assert value.item() == pytest.approx((sum(levels) + terms).item(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_short_variant(name):
    short = getattr(trainers, f"{name}_5epochs")
    assert issubclass(short, getattr(trainers, name))
    assert short.epochs == 5


def test_topology_of_agtal_waits_for_epoch_31():
    terms = ImbalConfig.from_dict(trainers.ImbalTrainerAGTAL.imbal).terms
    assert [(term.loss, term.from_epoch) for term in terms] == [("radius_dice", 0), ("agtal", 31)]
    assert terms[1].kwargs == {"radius_dice": 0.0}
