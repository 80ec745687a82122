"""CC-DiceCE: Dice and cross-entropy in the cell of each lesion, averaged over lesions."""

from collections.abc import Sequence

from torch import Tensor

from nnunet_imbal.losses._instances import (
    CellLoss,
    Parts,
    cells_of,
    parts_in_cells,
    region_cross_entropy,
    region_dice_loss,
    region_weights,
    voxels_in_cells,
)
from nnunet_imbal.losses._reduce import reduce_components
from nnunet_imbal.ops import cell_error_overlap
from nnunet_imbal.registry import register_loss

__all__ = ["CCDiceCELoss", "cc_dice_ce_loss"]


def cc_dice_ce_loss(
    errors: Tensor,
    target: Tensor,
    *,
    cells: Tensor | None = None,
    mask: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    connectivity: int | None = None,
    weighting: str = "none",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sum of `cc_dice_loss` and `cc_ce_loss`, with the cells found once: CC-DiceCE without its global part.

    Args:
        errors: as in `cc_ce_loss`; the probabilities follow from them.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        cells: see `cc_dice_loss`.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        spacing: mm per voxel in the order of the spatial axes; None = isotropic.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: see `cc_dice_loss`; holds for both parts.
        smooth_nr: see `cc_dice_loss`.
        smooth_dr: see `cc_dice_loss`.
        batch: see `cc_dice_loss`.
        weight: see `cc_dice_loss`.
        reduction: see `cc_dice_loss`.

    Returns:
        At least 0. 0 with zero gradient if there is no lesion at all.

    Raises:
        ValueError: an unknown weighting.

    Note:
        Source: arXiv 2511.17146 for one class. Its code trains on this plus the same Dice + CE of the whole image, and
        takes a patch without a lesion as one cell; with us nnU-Net's own Dice + CE does both.

    Example:
        >>> import torch
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.01, 0.1]).reshape(1, 1, 1, 8)
        >>> target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8)
        >>> errors = -torch.where(target > 0, probs, 1 - probs).log()
        >>> round(cc_dice_ce_loss(errors, target).item(), 3)
        0.641
    """
    target = target.bool()
    cells = cells_of(target, cells, mask, spacing, connectivity)
    sums, wrong = cell_error_overlap(errors, target, cells)  # of probabilities and errors, (3, B, C, 1 + K)
    size = sums[2, ..., 1:]
    voxels = Parts(size, voxels_in_cells(cells, errors.dtype) - size)
    weights = region_weights(weighting, voxels)
    loss = region_dice_loss(parts_in_cells(sums), size, weights, smooth_nr, smooth_dr)
    loss = loss + region_cross_entropy(parts_in_cells(wrong), voxels, weights)
    reduced = reduce_components(loss, size > 0, batch=batch, weight=weight, reduction=reduction)
    return reduced + 0 * wrong[1].sum()  # connected to the graph without a lesion, and a NaN stays visible


@register_loss(
    "cc_dice_ce",
    paper="arXiv 2511.17146; multi-class after arXiv 2604.24276",
    summary="Dice and cross-entropy, every lesion counts the same",
)
class CCDiceCELoss(CellLoss):
    """Dice and cross-entropy in the cell of each lesion: `cc_dice_ce_loss` as a module.

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
        >>> 1 < CCDiceCELoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 8, 8, 8), labels).item() < 2
        True
    """

    takes_errors = True

    def compute(self, errors: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `cc_dice_ce_loss`."""
        return cc_dice_ce_loss(
            errors,
            target,
            mask=mask,
            spacing=self.spacing,
            connectivity=self.connectivity,
            weighting=self.weighting,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
