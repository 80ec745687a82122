"""How much of a training patch each class fills: measured on the patches that training draws, as a range to expect."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from nnunet_imbal.errors import DataError
from nnunet_imbal.labels import LabelSpec, plain_tensor, to_one_hot

__all__ = ["collect_proportions", "patch_proportions", "proportion_bounds"]

_LOOKS = 10  # patches to look at for each one wanted, before we say that there are none


def patch_proportions(target: Tensor, labels: LabelSpec, channels: int) -> Tensor:
    """Share of the voxels of each class in each patch. Patches with voxels that nobody labelled are left out.

    Args:
        target: of a training batch, ``(B, 1, *S)``, or with regions ``(B, channels [+ 1], *S)``; see `LabelSpec`.
        labels: how the target is encoded.
        channels: of the network, background included.

    Returns:
        ``(N, channels)`` float64, N of B patches. Classes add up to 1, regions need not.

    Example:
        >>> target = torch.tensor([[[[0, 0, 0, 2]]], [[[0, 9, 1, 1]]]])
        >>> patch_proportions(target, LabelSpec(ignore_label=9), 3)
        tensor([[0.7500, 0.0000, 0.2500]], dtype=torch.float64)
    """
    classes, mask = labels.split_target(plain_tensor(target))
    complete = slice(None) if mask is None else mask.flatten(1).all(1)
    classes = classes[complete]
    members = classes > 0 if labels.has_regions else to_one_hot(classes, channels)
    return members.flatten(2).double().mean(2)


def collect_proportions(targets: Iterable[Tensor], labels: LabelSpec, channels: int, patches: int = 2000) -> Tensor:
    """Draw labelled patches, and keep what `patch_proportions` finds.

    Draw them as the unlabelled ones are drawn: patches that are forced to show foreground promise too much of it. In
    distributed training every process draws its part and gets the parts of all.

    Args:
        targets: batches at full resolution, as `patch_proportions` takes them; may be endless.
        labels: how they are encoded.
        channels: of the network, background included.
        patches: to keep, all processes together; fewer if ``targets`` ends before.

    Returns:
        ``(N, channels)`` float64 on the CPU.

    Raises:
        DataError: no patch is labelled completely.

    Example:
        >>> collect_proportions([torch.tensor([[[[0, 0, 1, 1]]]])] * 5, LabelSpec(), 2, patches=3).tolist()
        [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    wanted, seen = -(-patches // world), 0
    rows = [torch.zeros(0, channels, dtype=torch.float64)]
    for target in targets:
        rows.append(patch_proportions(target, labels, channels).cpu())
        seen += len(target)
        if sum(map(len, rows)) >= wanted or seen >= _LOOKS * wanted:
            break
    parts = [torch.cat(rows)[:wanted]] * world
    if world > 1:
        dist.all_gather_object(parts, parts[0])
    bank = torch.cat(parts)
    if not len(bank):
        raise DataError(
            "no training patch is labelled completely, so nobody knows how much of a patch each class fills; "
            "leave out the proportion term, or add cases without ignored voxels"
        )
    return bank


def proportion_bounds(
    bank: Tensor, patches: int, *, tail: float = 0.05, draws: int = 1000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Range in which the mean proportion of a few patches is to be expected, for 1, 2, ... patches.

    Quantiles of the means of patches drawn from the bank (bootstrap): the lower bound over all draws, the upper one
    over draws in which the class occurs, because otherwise a class in few patches would be forbidden altogether.

    Args:
        bank: ``(N, C)`` from `collect_proportions`.
        patches: largest number of patches.
        tail: share of draws below the lower and above the upper bound.
        draws: of patches.
        seed: of the draws.

    Returns:
        Lower and upper bounds, each ``(patches, C)`` float64; both are 0 for a class that does not occur.

    Note:
        Our reconstruction, after the hypergeometric draws of the proportion loss (arXiv 2603.02957).

    Example:
        >>> lower, upper = proportion_bounds(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), 8)
        >>> lower[0].tolist(), upper[0].tolist(), upper[7, 1].item() < 0.45
        ([0.5, 0.0], [1.0, 0.5], True)
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(bank), (patches, draws), generator=generator)
    counts = torch.arange(1, patches + 1, dtype=torch.float64).view(-1, 1, 1)
    means = bank.double()[chosen].cumsum(0) / counts  # (patches, draws, C)
    occurring = means.masked_fill(means == 0, torch.nan)
    return means.quantile(tail, dim=1), occurring.nanquantile(1 - tail, dim=1).nan_to_num(0.0)
