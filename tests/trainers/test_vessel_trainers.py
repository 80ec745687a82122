"""The trainers for vessels name losses that exist, with options that they take, on their published schedule."""

import pytest
import torch

import trainers
from nnunet_imbal.config import ImbalConfig
from nnunet_imbal.labels import LabelSpec
from trainers._adapter import ImbalLoss, build_terms

NAMES = ("ImbalTrainerAGTAL", "ImbalTrainerCbDice", "ImbalTrainerClDice", "ImbalTrainerSkeletonRecall")


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


def test_topology_of_agtal_waits_for_epoch_31():
    terms = ImbalConfig.from_dict(trainers.ImbalTrainerAGTAL.imbal).terms
    assert [(term.loss, term.from_epoch) for term in terms] == [("radius_dice", 0), ("agtal", 31)]
    assert terms[1].kwargs == {"radius_dice": 0.0}
