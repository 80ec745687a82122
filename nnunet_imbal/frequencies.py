"""How frequent each class is in what training really draws, and class weights made of it."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.labels import LabelSpec, check_labels, plain_tensor

__all__ = ["count_voxels", "effective_number_weights", "measure_prior"]


def measure_prior(targets: Iterable[Tensor], num_channels: int, labels: LabelSpec | None = None) -> list[float]:
    """Share of the voxels of each class in patches as the training loader draws them.

    Not that of the dataset: oversampling of foreground may multiply the share of a rare class. In distributed training
    all ranks must call it, and get the same numbers.

    Args:
        targets: label maps ``(B, 1, *S)`` or, with regions, ``(B, R, *S)`` as the loss sees them, of any dtype; batch
            after batch, for example ``(batch["label"] for batch in loader)``.
        num_channels: of the network: classes with background, or regions.
        labels: how the targets are encoded; None = exclusive classes, nothing to ignore.

    Returns:
        One number per channel, from 0 to 1; those of exclusive classes sum to 1. What is ignored does not count.

    Raises:
        DataError: no voxel is labelled.
        ValueError: a label map holds an impossible value.

    Example:
        >>> measure_prior([torch.tensor([[[[0, 0, 0, 1]]]]), torch.tensor([[[[0, 2, 0, 0]]]])], 3)
        [0.75, 0.125, 0.125]
    """
    counts = torch.zeros(num_channels + 1, dtype=torch.int64)
    for target in targets:
        counts = counts.to(target.device) + count_voxels(target, num_channels, labels)
    if dist.is_initialized():
        dist.all_reduce(counts)
    *voxels, total = counts.tolist()
    if not total:
        raise DataError("no voxel of the given batches is labelled; give batches of labelled cases")
    return [count / total for count in voxels]


def count_voxels(target: Tensor, num_channels: int, labels: LabelSpec | None = None) -> Tensor:
    """Voxels of each channel, and as the last number all voxels that are labelled: ``(num_channels + 1,)`` int64.

    Args:
        target: see `measure_prior`.
        num_channels: see `measure_prior`.
        labels: see `measure_prior`.

    Example:
        >>> regions = torch.tensor([[[[1, 1, 0, 0]], [[0, 1, 0, 0]]]])
        >>> count_voxels(regions, 2, LabelSpec(has_regions=True))
        tensor([2, 1, 4])
    """
    labels = labels or LabelSpec()
    truth, mask = labels.split_target(plain_tensor(target))
    counts = torch.ones_like(truth[:, :1], dtype=torch.bool) if mask is None else mask
    total = counts.sum().reshape(1)
    if labels.has_regions:
        inside = ((truth > 0) & counts).transpose(0, 1).flatten(1).sum(1)
    else:
        check_labels(truth, num_channels)
        inside = torch.bincount(truth[counts].long(), minlength=num_channels)
    return torch.cat([inside, total])


def effective_number_weights(
    counts: ArrayLike, beta: float | None = None, *, cap: float | None = 10.0
) -> NDArray[np.float64]:
    r"""Weights for a loss per class, for example ``DiceCELoss(weight=...)`` of MONAI: rare classes weigh more.

    Of :math:`n_c` samples each makes the next ones a little less new, so that only
    :math:`E_c = \frac{1 - \beta^{n_c}}{1 - \beta}` count, and :math:`w_c \propto 1 / E_c`.

    **Choose what to count.** :math:`E` ends at :math:`1 / (1 - \beta)`: with voxels and the published values of
    :math:`\beta` all weights come out the same. Count cases or lesions, or leave :math:`\beta` out.

    Args:
        counts: ``(C,)`` voxels, lesions or cases of each class; classes without any are taken as 1.
        beta: at least 0 and below 1; published 0.99 to 0.9999. None = :math:`1 - 1/n` with the median :math:`n` of the
            counts (at least 2), so that half of the classes are spread out by it and half are not.
        cap: no class weighs more than so many times the median; None = no limit.

    Returns:
        ``(C,)`` weights above 0 that sum to C.

    Raises:
        ConfigError: counts are negative, not finite or all 0, or ``beta`` or ``cap`` is out of range.

    Note:
        Source: Cui et al. (arXiv 1901.05555); the default of ``beta`` and the cap are ours.

    Example:
        >>> effective_number_weights([9e5, 9e4, 1e4], 0.9999).round(3)
        array([0.838, 0.838, 1.325])
        >>> effective_number_weights([9e5, 9e4, 1e4]).round(3)
        array([0.248, 0.393, 2.359])
    """
    numbers = np.asarray(counts, dtype=np.float64)
    if numbers.ndim != 1 or not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.any()):
        raise ConfigError(f"counts must be numbers of at least 0, not all 0; got {counts!r}")
    beta = 1 - 1 / max(float(np.median(numbers)), 2) if beta is None else beta
    if not 0 <= beta < 1 or (cap is not None and not cap >= 1):
        raise ConfigError(f"beta must be from 0 to below 1 and cap at least 1, got {beta!r} and {cap!r}")
    decay = np.log(beta) if beta else -np.inf
    weights = -1 / np.expm1(np.maximum(numbers, 1) * decay)  # expm1 keeps digits where β is close to 1
    if cap is not None:
        weights = np.minimum(weights, cap * np.median(weights))
    return np.asarray(weights * len(weights) / weights.sum())
