"""What losses per lesion share: whose voxels are whose, sums inside and outside, weights by size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.labels import plain_tensor
from nnunet_imbal.losses._base import CommonOptions, SegmentationLoss
from nnunet_imbal.losses._vessels import check_spacing
from nnunet_imbal.ops import cell_voxels, component_cells, component_labels
from nnunet_imbal.ops._checks import CONNECTIVITIES, valid_connectivity

__all__ = [
    "BlobLoss",
    "CellLoss",
    "InstanceLoss",
    "Parts",
    "cells_of",
    "check_clip",
    "check_compat",
    "inverse_size_weights",
    "labels_of",
    "outside_components",
    "parts_in_cells",
    "region_cross_entropy",
    "region_dice_loss",
    "region_weights",
    "valid_voxels",
    "voxels_in_cells",
    "with_hidden",
]

_WEIGHTINGS = ("none", "balanced", "foreground")


class Parts(NamedTuple):
    """Two numbers per component, ``(B, C, K)`` or broadcastable: of the component and of the rest of its region."""

    inside: Tensor
    outside: Tensor


def cells_of(
    target: Tensor,
    cells: Tensor | None,
    mask: Tensor | None,
    spacing: Sequence[float] | None,
    connectivity: int | None,
) -> Tensor:
    """Id of the nearest component of each voxel that counts, 0 elsewhere; computed unless given."""
    cells = component_cells(target, spacing, connectivity) if cells is None else plain_tensor(cells)
    return cells if mask is None else cells.masked_fill(~mask, 0)


def labels_of(target: Tensor, labels: Tensor | None, connectivity: int | None) -> Tensor:
    """Id of each component voxel, 0 elsewhere; computed unless given."""
    if labels is None:
        return component_labels(target, connectivity)
    return plain_tensor(labels).masked_fill(~target, 0)


def valid_voxels(target: Tensor, mask: Tensor | None) -> Tensor | int:
    """Voxels of a sample that count, ``(B, 1, 1)`` or one number for all; at least 1, so that it can divide."""
    if mask is None:
        return max(target.shape[2:].numel(), 1)
    return mask.flatten(2).sum(2, keepdim=True).clamp(min=1)


def voxels_in_cells(cells: Tensor, dtype: torch.dtype) -> Tensor:
    """Voxels of each cell, ``(B, C, K)``."""
    return cell_voxels(cells)[..., 1:].to(dtype)


def parts_in_cells(sums: Tensor) -> Parts:
    """Split what `cell_overlap` added up in each cell at the border of its component."""
    overlap, total = sums[0, ..., 1:], sums[1, ..., 1:]
    return Parts(overlap, total - overlap)


def region_weights(weighting: str, voxels: Parts) -> Parts:
    r"""Inverse-size weights of voxels inside one region of :math:`|D|` voxels with a component of :math:`n`.

    ``"none"``: 1 and 1. ``"balanced"``: :math:`|D|/2n` and :math:`|D|/2(|D|-n)`, so that both parts weigh half.
    ``"foreground"``: :math:`|D|/n` and 1.

    Raises:
        ValueError: an unknown weighting.
    """
    check_weighting(weighting)
    if weighting == "none":
        one = torch.ones_like(voxels.inside)
        return Parts(one, one)
    region = voxels.inside + voxels.outside
    if weighting == "balanced":
        return Parts(region / (2 * voxels.inside).clamp(min=1), region / (2 * voxels.outside).clamp(min=1))
    return Parts(region / voxels.inside.clamp(min=1), torch.ones_like(region))


def outside_components(sums: Tensor) -> Tensor:
    """Column of id 0 of ``(B, C, 1 + K)``, as ``(B, C, 1)``."""
    # torch.compile, which does not know K, stumbles over [..., :1] and over [..., 0].
    return sums.index_select(-1, sums.new_zeros(1, dtype=torch.long))


def with_hidden(background: Tensor, size: Tensor, each: float) -> Tensor:
    """Background ``(B, C, 1)`` plus ``each`` for every voxel of the other components, see ``compat`` of blob loss."""
    return background + each * (size.sum(-1, keepdim=True) - size)


def inverse_size_weights(size: Tensor, voxels: Tensor | int, clip: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """Weight of a voxel of the background and of each component, so that all of them weigh the same as a whole.

    Args:
        size: ``(B, C, K)`` voxels of each component.
        voxels: see `valid_voxels`.
        clip: lowest and highest weight, None = no limits.

    Returns:
        Weights ``(B, C, 1 + K)``, 0 for unused ids, and whether there is a component, ``(B, C, 1)``.
    """
    components = (size > 0).sum(-1, keepdim=True)
    sizes = torch.cat([voxels - size.sum(-1, keepdim=True), size], dim=-1)
    weights = voxels / ((components + 1) * sizes.clamp(min=1))
    if clip is not None:
        weights = weights.clamp(*clip)
    return torch.where(sizes > 0, weights, 0), components > 0


def region_dice_loss(mass: Parts, size: Tensor, weights: Parts, smooth_nr: float, smooth_dr: float) -> Tensor:
    """1 - Dice of each region, from probability mass and true size, ``(B, C, K)``."""
    hit, false = weights.inside * mass.inside, weights.outside * mass.outside
    # The guard keeps unused ids from dividing 0 by 0 when both smoothing terms are 0.
    denominator = torch.where(size > 0, hit + false + weights.inside * size + smooth_dr, 1)
    return 1 - (2 * hit + smooth_nr) / denominator


def region_cross_entropy(errors: Parts, voxels: Parts, weights: Parts) -> Tensor:
    """Weighted mean cross-entropy of each region, ``(B, C, K)``."""
    total = weights.inside * errors.inside + weights.outside * errors.outside
    count = weights.inside * voxels.inside + weights.outside * voxels.outside
    return total / torch.where(voxels.inside > 0, count, 1)


class InstanceLoss(SegmentationLoss):
    """Base of losses that look at connected components.

    Args:
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible connectivity.
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = False

    def __init__(self, *, connectivity: int | None = None, **options: Unpack[CommonOptions]) -> None:
        super().__init__(**options)
        known = sum(CONNECTIVITIES.values(), ())
        if connectivity is not None and connectivity not in known:
            raise ValueError(f"connectivity must be one of {known} or None, got {connectivity!r}")
        self.connectivity = connectivity


class CellLoss(InstanceLoss):
    """Base of losses inside the cells of the nearest component.

    Args:
        spacing: mm per voxel in the order of the spatial axes; None = isotropic.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: ``"none"``, ``"balanced"`` or ``"foreground"``, see `cc_dice_loss`.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible spacing, connectivity or weighting.
    """

    uses_spacing = True

    def __init__(
        self,
        *,
        spacing: Sequence[float] | None = None,
        connectivity: int | None = None,
        weighting: str = "none",
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(connectivity=connectivity, **options)
        check_weighting(weighting)
        self.spacing = check_spacing(spacing)
        if self.spacing is not None:
            valid_connectivity(connectivity, len(self.spacing))
        self.weighting = weighting


class BlobLoss(InstanceLoss):
    """Base of losses that see one component and the background at a time.

    Args:
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: ``"none"``, ``"balanced"`` or ``"foreground"``, see `cc_dice_loss`.
        compat: ``"paper"`` or ``"released"``, see `blob_dice_loss`.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible connectivity, weighting or compat.
    """

    def __init__(
        self,
        *,
        connectivity: int | None = None,
        weighting: str = "none",
        compat: str = "paper",
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(connectivity=connectivity, **options)
        check_weighting(weighting)
        check_compat(compat)
        self.weighting = weighting
        self.compat = compat


def check_weighting(weighting: str) -> None:
    """Refuse an unknown weighting."""
    if weighting not in _WEIGHTINGS:
        raise ValueError(f"weighting must be one of {_WEIGHTINGS}, got {weighting!r}")


def check_compat(compat: str) -> None:
    """Refuse anything but the two readings of blob loss."""
    if compat not in ("paper", "released"):
        raise ValueError(f'compat must be "paper" or "released", got {compat!r}')


def check_clip(clip: Sequence[float] | None) -> tuple[float, float] | None:
    """Limits of a weight as a pair (plans hold them as a list), or None."""
    if clip is None:
        return None
    if len(clip) != 2 or not 0 <= clip[0] <= clip[1]:
        raise ValueError(f"clip must be a lowest and a highest weight of at least 0, or None, got {clip!r}")
    return float(clip[0]), float(clip[1])
