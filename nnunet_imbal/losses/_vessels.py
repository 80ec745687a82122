"""What losses for vessels share: sums over voxels, precision against sensitivity, all classes as one tree."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_imbal.losses._reduce import reduce_components

__all__ = [
    "average_classes",
    "box_mean",
    "check_range",
    "check_spacing",
    "merge_classes",
    "present_classes",
    "shortfall",
    "total",
]


def total(values: Tensor, batch: bool) -> Tensor:
    """Sum over voxels: ``(B, C, *S)`` -> ``(B, C)``, or ``(1, C)`` with the batch as one sample."""
    sums = values.flatten(2).sum(2)
    return sums.sum(0, keepdim=True) if batch else sums


def present_classes(target: Tensor, batch: bool) -> Tensor:
    """Which classes hold a voxel: bool ``(B, C)``, or ``(1, C)`` with the batch as one sample."""
    present = target.flatten(2).any(2)
    return present.any(0, keepdim=True) if batch else present


def shortfall(precision: Tensor, sensitivity: Tensor) -> Tensor:
    """What the harmonic mean of precision and sensitivity lacks to 1; all of it where both are 0."""
    both = precision + sensitivity
    return 1 - 2 * precision * sensitivity / torch.where(both > 0, both, 1)


def average_classes(loss: Tensor, present: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Mean over the classes present in a sample, then over samples with a class; ``(B, C)`` with ``"none"``."""
    return reduce_components(loss.unsqueeze(2), present.unsqueeze(2), weight=weight, reduction=reduction)


def merge_classes(probs: Tensor, target: Tensor, exclusive: bool) -> tuple[Tensor, Tensor]:
    """All classes as one vessel tree, ``(B, 1, *S)`` each.

    For exclusive classes the probability is that of the strongest class against background, ``p / (p + p_0)``, which
    is above one half exactly where the network would not say background; for overlapping regions it is the largest.

    Args:
        probs: ``(B, C, *S)`` probabilities without background.
        target: ``(B, C, *S)`` bool.
        exclusive: the probabilities are a softmax without its channel 0.

    Example:
        >>> probs = torch.tensor([0.4, 0.2]).reshape(1, 2, 1, 1)
        >>> round(merge_classes(probs, probs > 0.3, exclusive=True)[0].item(), 6)
        0.5
    """
    merged = probs.amax(1, keepdim=True)
    if exclusive:
        background = (1 - probs.sum(1, keepdim=True)).clamp(min=0)
        merged = merged / (merged + background)
    return merged, target.any(1, keepdim=True)


def check_spacing(spacing: Sequence[float] | None) -> tuple[float, ...] | None:
    """Voxel size as a tuple of 2 or 3 positive numbers of mm, or None.

    Raises:
        ValueError: anything else.
    """
    if spacing is not None and not (len(spacing) in (2, 3) and all(0 < mm < float("inf") for mm in spacing)):
        raise ValueError(f"spacing must be 2 or 3 positive numbers of mm, got {spacing!r}")
    return None if spacing is None else tuple(float(mm) for mm in spacing)


def check_range(radius_range: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest radius in mm as a pair.

    Raises:
        ValueError: not two finite numbers of which the first is smaller.
    """
    if len(radius_range) != 2 or not 0 <= radius_range[0] < radius_range[1] < float("inf"):
        raise ValueError(f"radius_range must be a smallest and a larger radius in mm, got {radius_range!r}")
    return float(radius_range[0]), float(radius_range[1])


def box_mean(values: Tensor) -> Tensor:
    """Mean over the 3 x 3 (x 3) voxels around each voxel, channel by channel, 0 beyond the edge."""
    means: Tensor = _BoxMean.apply(values)
    return means


class _BoxMean(torch.autograd.Function):
    """Axis by axis: on a CPU half the time of a pooling. The mean is symmetric, so it is its own way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        for axis in range(2, values.ndim):
            size, sums = values.shape[axis], values.clone()
            sums.narrow(axis, 1, size - 1).add_(values.narrow(axis, 0, size - 1))
            sums.narrow(axis, 0, size - 1).add_(values.narrow(axis, 1, size - 1))
            values = sums
        return values / 3 ** (values.ndim - 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return box_mean(gradients[0])
