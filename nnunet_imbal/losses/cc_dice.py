"""CC-Dice: every lesion counts the same, whatever its size."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.labels import plain_tensor
from nnunet_imbal.losses._base import CommonOptions, SegmentationLoss
from nnunet_imbal.losses._reduce import reduce_components
from nnunet_imbal.ops import cell_overlap, component_cells
from nnunet_imbal.registry import register_loss

__all__ = ["CCDiceLoss", "cc_dice_loss"]

_CONNECTIVITIES = {2: (4, 8), 3: (6, 18, 26)}


def cc_dice_loss(
    probs: Tensor,
    target: Tensor,
    *,
    cells: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    connectivity: int | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Dice loss inside the cell of each lesion, averaged over lesions, so that a small one costs as much as a big one.

    Each voxel belongs to the cell :math:`V_i` of its nearest component :math:`C_i` (one-vs-rest in every class). With
    :math:`K` components, :math:`L = \frac1K \sum_i 1 - \frac{2\sum_{C_i} p + s_n}{\sum_{V_i} p + |C_i| + s_d}`.
    The mean goes over components, then over the classes present in a sample, then over samples with a component.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        cells: ``(B, C, *S)`` int32 ids 1..K of the nearest component, if they are known already (for example from
            labels without an ignored part, so that a lesion cut by it stays one lesion). Computed if None.
        spacing: mm per voxel in the order of the spatial axes; None = isotropic.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.
        batch: average over the lesions of the whole batch instead of sample by sample.
        weight: ``(C,)`` factors of the classes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, 0 for absent classes).

    Returns:
        Range 0 (every lesion exact, nothing else) to 1. 0 with zero gradient if there is no lesion at all, so use it
        beside a loss that punishes false alarms in empty patches.

    Note:
        Source: CC-DiceCE (arXiv 2511.17146) for one class, weights and reduction as its published code;
        the multi-class form follows the abstract of arXiv 2604.24276 and is our reconstruction.
        A voxel at the same distance from two components goes to the one `numba_kernels.nearest_component` documents.

    Example:
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.0, 0.1]).reshape(1, 1, 1, 8)
        >>> target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8)
        >>> round(cc_dice_loss(probs, target, smooth_nr=0, smooth_dr=0).item(), 6)
        0.367521
    """
    target = target > 0
    if cells is None:
        cells = component_cells(target, spacing, connectivity)
    overlap = cell_overlap(probs, target, plain_tensor(cells))  # (3, B, C, 1 + K)
    hit, predicted, true = overlap[..., 1:]
    exists = true > 0
    # The guard keeps unused ids from dividing 0 by 0 when both smoothing terms are 0.
    denominator = torch.where(exists, predicted + true + smooth_dr, 1)
    loss = 1 - (2 * hit + smooth_nr) / denominator
    reduced = reduce_components(loss, exists, batch=batch, weight=weight, reduction=reduction)
    # Adding nothing, this keeps an empty batch connected to the graph and a NaN visible.
    return reduced + 0 * overlap[1].sum()


@register_loss(
    "cc_dice",
    paper="arXiv 2511.17146; multi-class after arXiv 2604.24276",
    summary="every lesion counts the same",
)
class CCDiceLoss(SegmentationLoss):
    """Every lesion counts the same: `cc_dice_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        spacing: mm per voxel in the order of the spatial axes; None = isotropic.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible spacing or connectivity.

    Example:
        >>> logits = torch.zeros(1, 3, 8, 8, 8)
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> labels[..., :2, :2, :2] = 1
        >>> 0 < CCDiceLoss(softmax=True, to_onehot_y=True)(logits, labels).item() < 1
        True
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = True

    def __init__(
        self,
        *,
        spacing: Sequence[float] | None = None,
        connectivity: int | None = None,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**options)
        if spacing is not None and not (len(spacing) in _CONNECTIVITIES and all(mm > 0 for mm in spacing)):
            raise ValueError(f"spacing must be 2 or 3 positive numbers of mm, got {spacing!r}")
        known = sum(_CONNECTIVITIES.values(), ()) if spacing is None else _CONNECTIVITIES[len(spacing)]
        if connectivity is not None and connectivity not in known:
            raise ValueError(f"connectivity must be one of {known} or None, got {connectivity!r}")
        self.spacing = None if spacing is None else tuple(float(mm) for mm in spacing)
        self.connectivity = connectivity

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `cc_dice_loss`; ignored voxels are 0 in both arguments already."""
        return cc_dice_loss(
            probs,
            target,
            spacing=self.spacing,
            connectivity=self.connectivity,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            batch=self.batch,
            weight=self.weight,
            reduction=self.reduction,
        )
