"""The mean teacher: a running average of the network that is being trained, and how its say grows."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from nnunet_imbal.errors import ConfigError

__all__ = ["MeanTeacher", "ramp_up", "unwrap"]


class MeanTeacher(AveragedModel):
    r"""Steadier twin of a network: its weights are a running average of the network's, and nothing else trains them.

    After training step :math:`k = 0, 1, \dots` the weights become :math:`d_k\,\theta_{teacher} + (1 - d_k)\,\theta`
    with :math:`d_k = \min(1 - 1/(k+1), decay)`, so the first steps are a plain mean. Buffers are copied. The teacher
    is always in evaluation mode, has no gradient, and keeps its weights and step count in its ``state_dict``.

    Args:
        network: to copy; wrappers of `torch.compile` and of distributed training are taken off. Copied with the hooks
            it has, so make the teacher first and register hooks later.
        decay: at least 0, below 1; 0.99 looks back about 100 steps.

    Raises:
        ConfigError: ``decay`` is out of range.

    Note:
        Source: mean teacher (arXiv 1703.01780); 0.99 is the usual choice for volumes (arXiv 1907.07034).

    Example:
        >>> network = nn.Linear(1, 1, bias=False)
        >>> teacher = MeanTeacher(network, decay=0.75)
        >>> for weight in (4.0, 8.0):
        ...     _ = nn.init.constant_(network.weight, weight)
        ...     teacher.update_parameters(network)
        >>> teacher(torch.ones(1, 1)).item()
        6.0
    """

    def __init__(self, network: nn.Module, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"decay of the teacher must be at least 0 and below 1, got {decay}")
        super().__init__(unwrap(network), multi_avg_fn=self._average)
        self.decay = decay
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "MeanTeacher":
        """Stay in evaluation mode: a teacher with dropout would teach noise."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the averaged network says; no gradient."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of the network, once after each step of its optimiser."""
        super().update_parameters(unwrap(model))

    def _average(self, own: Any, new: Any, count: Tensor | int) -> None:
        keep = min(1 - 1 / (float(count) + 1), self.decay)
        torch._foreach_lerp_(own, new, 1 - keep)


def ramp_up(step: float, steps: float) -> float:
    r"""Share of the full weight that predictions of an immature teacher deserve.

    :math:`\exp(-5 (1 - t)^2)` with :math:`t = \min(step / steps, 1)`: 0.007 at the beginning, 0.29 half-way, then 1.

    Args:
        step: steps or epochs done, at least 0.
        steps: after how many the weight is full; 0: at once.

    Note:
        Source: arXiv 1610.02242.

    Example:
        >>> [round(ramp_up(step, 4), 3) for step in (0, 2, 4, 9)]
        [0.007, 0.287, 1.0, 1.0]
    """
    progress = min(step / steps, 1.0) if steps > 0 else 1.0
    return math.exp(-5 * (1 - progress) ** 2)


def unwrap(network: nn.Module) -> nn.Module:
    """The network itself, without what `torch.compile` and distributed training put around it.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> unwrap(nn.DataParallel(layer)) is layer
        True
    """
    if isinstance(network, DataParallel | DistributedDataParallel):
        return unwrap(network.module)
    inner = getattr(network, "_orig_mod", network)
    return inner if inner is network else unwrap(inner)
