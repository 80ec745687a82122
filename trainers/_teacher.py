"""nnU-Net's side of the mean teacher: which patches it sees, whose weights predict, what a checkpoint keeps."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_imbal.config import Semi
from nnunet_imbal.export import OWN_STATE
from nnunet_imbal.labels import LabelSpec
from nnunet_imbal.semi import MeanTeacher, UnlabelledLoss, perturb_intensity, unwrap
from trainers._adapter import Levels, full_resolution

__all__ = ["Teacher", "exchanged_weights", "read_own_state", "write_own_state"]


class Teacher:
    """A mean teacher that looks at the patches with unlabelled voxels, and the loss it gives for them.

    Each training step is `look`, then the step of nnU-Net with the images `look` returned, in which the loss calls
    `judge`, then `update`.

    Args:
        network: to be taught, wrapped or not.
        semi: the settings.
        labels: how the target is encoded, with an ignore label.
        channels: of the network's output.
        image_channels: of its input; what follows them are labels of a previous stage.
        compiles: run the teacher through `torch.compile`.
    """

    def __init__(
        self, network: nn.Module, semi: Semi, labels: LabelSpec, channels: int, image_channels: int, compiles: bool
    ) -> None:
        self.device = next(network.parameters()).device
        self.average = MeanTeacher(network, semi.decay).to(self.device)
        self.loss = UnlabelledLoss(
            channels,
            regions=labels.has_regions,
            consistency=semi.consistency,
            pseudo_labels=semi.pseudo_labels,
            threshold=semi.threshold,
            floor=semi.floor,
        ).to(self.device)
        self.labels, self.image_channels = labels, image_channels
        self._see = torch.compile(self.average) if compiles else self.average
        self._patches, self._unlabelled = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.bool)
        self._logits: Tensor | None = None

    def look(self, images: Tensor, target: Levels) -> Tensor:
        """Let the teacher predict the patches with unlabelled voxels, and return the batch the network shall see.

        Args:
            images: ``(B, C, *S)`` on the device of the network.
            target: nnU-Net's target, where the loader left it.
        """
        unlabelled = self._unlabelled_voxels(target)
        self._patches = unlabelled.flatten(1).any(dim=1).nonzero().flatten().to(self.device)
        self._unlabelled = unlabelled.to(self.device)[self._patches]
        self._logits = None
        if not len(self._patches):
            return images
        originals = images[self._patches]
        with _autocast(self.device):
            self._logits = full_resolution(self._see(originals))
        views = images.clone()
        views[self._patches] = perturb_intensity(originals, channels=self.image_channels)
        return views

    def judge(self, output: Levels) -> Tensor:
        """Loss of what the network said of the batch of the latest `look`; 0 if no voxel of it is unlabelled."""
        logits = full_resolution(output)[self._patches]
        guide = torch.zeros_like(logits) if self._logits is None else self._logits
        loss: Tensor = self.loss(logits, guide, self._unlabelled)
        return loss

    def update(self, network: nn.Module) -> None:
        """Take in the network after a step of its optimiser."""
        self.average.update_parameters(network)
        self._logits = None

    def start(self, network: nn.Module) -> None:
        """Begin with the weights the network has now, unless the teacher has taught before."""
        if not self.average.n_averaged:
            self.average.update_parameters(network)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed training needs."""
        return {"average": self.average.state_dict(), "loss": self.loss.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the teacher of a checkpoint."""
        self.average.load_state_dict(state["average"])
        self.loss.load_state_dict(state["loss"])

    def _unlabelled_voxels(self, target: Levels) -> Tensor:
        _, mask = self.labels.split_target(full_resolution(target))
        if mask is None:
            raise AssertionError("a teacher needs an ignore label; the trainer checks this when it starts")
        return ~mask


@contextmanager
def exchanged_weights(network: nn.Module, teacher: MeanTeacher) -> Iterator[None]:
    """Inside this context the network predicts with the teacher's weights."""
    _exchange(unwrap(network), teacher.module)
    try:
        yield
    finally:
        _exchange(unwrap(network), teacher.module)


@torch.no_grad()
def _exchange(first: nn.Module, second: nn.Module) -> None:
    # Not by state_dict: it names the encoder of nnU-Net's networks twice. In place, because an optimiser and a compiled
    # graph hold on to these very tensors.
    for one, other in zip(_tensors(first), _tensors(second), strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    return chain(network.parameters(), network.buffers())


def write_own_state(
    written: str, filename: str, own: Mapping[str, Any], network_weights: Mapping[str, Any] | None
) -> None:
    """Add our state to a checkpoint nnU-Net has just written, and give the file its name when it is complete.

    Args:
        written: nnU-Net's file; it disappears.
        filename: the checkpoint, replaced in one step.
        own: our state.
        network_weights: put in the place of the network's, for prediction with others; None: nnU-Net's stay.
    """
    checkpoint = torch.load(written, map_location="cpu", weights_only=False)  # our own file of a moment ago
    checkpoint[OWN_STATE] = dict(own)
    if network_weights is not None:
        checkpoint["network_weights"] = network_weights
    torch.save(checkpoint, written)
    os.replace(written, filename)


def read_own_state(filename: str) -> dict[str, Any]:
    """Our state in a checkpoint that nnU-Net has loaded already; empty if there is none."""
    checkpoint = torch.load(filename, map_location="cpu", weights_only=False, mmap=True)
    state: dict[str, Any] = checkpoint.get(OWN_STATE, {})
    return state


def _autocast(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast("cuda") if device.type == "cuda" else nullcontext()
