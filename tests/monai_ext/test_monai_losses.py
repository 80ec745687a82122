"""MONAI users find every loss under monai_ext.losses, in code and in bundle configurations."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import UNet
from monai.utils import set_determinism

import monai_ext.losses
from nnunet_imbal.registry import get_loss, list_losses

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "monai.md").read_text(encoding="utf-8")
WORDS = {"softmax": True, "to_onehot_y": True}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def batch(label_maps):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 12, 12, 12, generator=generator), label_maps()


def test_catalogue_is_complete():
    classes = {get_loss(name) for name in list_losses()}
    assert {getattr(monai_ext.losses, cls.__name__, None) for cls in classes} == classes
    assert {"DeepSupervision", "WeightedSum"} < set(monai_ext.losses.__all__)


@pytest.mark.parametrize("name", list_losses())
def test_bundle_target_resolves(name, batch):
    cls = get_loss(name)
    target = {"_target_": f"monai_ext.losses.{cls.__name__}", **WORDS}
    loss = ConfigParser({"loss": target}).get_parsed_content("loss")
    assert type(loss) is cls
    assert torch.equal(loss(*batch), cls(**WORDS)(*batch))


def test_bundle_targets_nest(batch):
    logits, labels = batch
    inner = {"_target_": "monai_ext.losses.CCDiceLoss", **WORDS}
    config = {
        "theirs": {"_target_": "monai.losses.DeepSupervisionLoss", "loss": inner},
        "ours": {"_target_": "monai_ext.losses.WeightedSum", "losses": [inner, inner], "weights": [0.25, 0.5]},
    }
    parser = ConfigParser(config)
    value = monai_ext.losses.CCDiceLoss(**WORDS)(logits, labels)
    assert torch.equal(parser.get_parsed_content("theirs")(logits, labels), value)
    torch.testing.assert_close(parser.get_parsed_content("ours")(logits, labels), 0.75 * value)


@pytest.mark.parametrize("text", blocks("json"))
def test_documented_bundle_adds_the_losses(text, batch):
    loss = ConfigParser(json.loads(text)).get_parsed_content("loss")
    expected = DiceCELoss(**WORDS)(*batch) + monai_ext.losses.CCDiceLoss(**WORDS)(*batch)
    torch.testing.assert_close(loss(*batch), expected)


def test_deep_supervision_of_monai_takes_our_loss(batch):
    logits, labels = batch[0].requires_grad_(), batch[1].float()
    ours = monai_ext.losses.CCDiceLoss(**WORDS)
    loss = DeepSupervisionLoss(ours)([logits, logits[..., ::2, ::2, ::2]], labels)
    # Half resolution by "nearest-exact" takes the upper of two voxels.
    coarse = ours(logits[..., ::2, ::2, ::2], labels[..., 1::2, 1::2, 1::2])
    torch.testing.assert_close(loss, ours(logits, labels) + 0.5 * coarse)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_meta_tensor_in_plain_tensor_out(batch):
    logits, labels = batch
    loss = monai_ext.losses.CCDiceLoss(**WORDS)
    value = loss(MetaTensor(logits), MetaTensor(labels))
    assert type(value) is torch.Tensor
    assert torch.equal(value, loss(logits, labels))


@pytest.mark.slow
def test_training_loop_learns():
    set_determinism(0)
    labels = torch.zeros(1, 1, 16, 16, 16)
    labels[..., 2:9, 2:9, 2:9] = labels[..., 12:14, 12:14, 12:14] = 1
    images = MetaTensor(labels + 0.1 * torch.randn_like(labels))
    net = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), norm="batch")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    terms = [DiceCELoss(**WORDS), monai_ext.losses.CCDiceLoss(**WORDS)]
    history = []
    for _ in range(10):
        optimizer.zero_grad()
        losses = torch.stack([term(net(images), MetaTensor(labels)) for term in terms])
        losses.sum().backward()
        optimizer.step()
        history.append(losses.detach())
    set_determinism(None)
    first, last = history[0], history[-1]
    assert last.sum() < 0.8 * first.sum()
    assert (last < first).all()


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_documented_example_runs(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"^# (.*)", code, re.MULTILINE)
