"""CC-CE: cross-entropy in the cell of each lesion, averaged over lesions."""

from collections.abc import Sequence

from torch import Tensor

from nnunet_imbal.losses._instances import (
    CellLoss,
    Parts,
    cells_of,
    parts_in_cells,
    region_cross_entropy,
    region_weights,
    voxels_in_cells,
)
from nnunet_imbal.losses._reduce import reduce_components
from nnunet_imbal.ops import cell_overlap
from nnunet_imbal.registry import register_loss

__all__ = ["CCCELoss", "cc_ce_loss"]


def cc_ce_loss(
    errors: Tensor,
    target: Tensor,
    *,
    cells: Tensor | None = None,
    mask: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    connectivity: int | None = None,
    weighting: str = "none",
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy averaged inside the cell of each lesion, then over lesions: crowded regions do not drown others.

    With cells :math:`V_i` as in `cc_dice_loss` and the two-class cross-entropy :math:`e` of one class against the rest,
    :math:`L = \frac1K \sum_i \frac{1}{|V_i|} \sum_{V_i} e`.

    Args:
        errors: ``(B, C, *S)`` float32 or float64, cross-entropy of each class against the rest in each voxel, 0 where
            ignored, background left out: `nnunet_imbal.ops.one_vs_rest_cross_entropy` of softmax logits, torch's
            ``binary_cross_entropy_with_logits`` of sigmoid logits.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        cells: see `cc_dice_loss`.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        spacing: mm per voxel in the order of the spatial axes; None = isotropic.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: see `cc_dice_loss`; the mean over a cell becomes a weighted mean.
        batch: see `cc_dice_loss`.
        weight: see `cc_dice_loss`.
        reduction: see `cc_dice_loss`.

    Returns:
        At least 0, in nats; ln 2 where the network knows nothing. 0 with zero gradient if there is no lesion at all.

    Raises:
        ValueError: an unknown weighting.

    Note:
        Source: the cross-entropy part of CC-DiceCE (arXiv 2511.17146) for one class; several classes and the weighting
        are our reconstruction, as in `cc_dice_loss`. The published code cuts the logarithm off at 1e-7, we do not.

    Example:
        >>> import torch
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.01, 0.1]).reshape(1, 1, 1, 8)
        >>> target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8)
        >>> errors = -torch.where(target > 0, probs, 1 - probs).log()
        >>> round(cc_ce_loss(errors, target).item(), 4)
        0.2725
    """
    target = target.bool()
    cells = cells_of(target, cells, mask, spacing, connectivity)
    sums = cell_overlap(errors, target, cells)  # (3, B, C, 1 + K)
    size = sums[2, ..., 1:]
    voxels = Parts(size, voxels_in_cells(cells, errors.dtype) - size)
    loss = region_cross_entropy(parts_in_cells(sums), voxels, region_weights(weighting, voxels))
    reduced = reduce_components(loss, size > 0, batch=batch, weight=weight, reduction=reduction)
    return reduced + 0 * sums[1].sum()  # connected to the graph without a lesion, and a NaN stays visible


@register_loss(
    "cc_ce",
    paper="arXiv 2511.17146; multi-class after arXiv 2604.24276",
    summary="cross-entropy, every lesion's surroundings count the same",
)
class CCCELoss(CellLoss):
    """Cross-entropy in the cell of each lesion: `cc_ce_loss` as a module, with the words of `SegmentationLoss`.

    Args:
        spacing: mm per voxel in the order of the spatial axes; None = isotropic.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: ``"none"``, ``"balanced"`` or ``"foreground"``.
        options: see `SegmentationLoss`. Probabilities without an activation are taken as at least 1e-7.

    Raises:
        ValueError: an impossible spacing, connectivity or weighting.

    Example:
        >>> import torch
        >>> labels = torch.zeros(1, 1, 8, 8, 8)
        >>> labels[..., :2, :2, :2] = 1
        >>> round(CCCELoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 8, 8, 8), labels).item(), 4)
        0.6931
    """

    takes_errors = True

    def compute(self, errors: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `cc_ce_loss`."""
        return cc_ce_loss(
            errors,
            target,
            mask=mask,
            spacing=self.spacing,
            connectivity=self.connectivity,
            weighting=self.weighting,
            **self.averaging,
        )
