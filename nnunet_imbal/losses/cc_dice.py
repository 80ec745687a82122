"""CC-Dice: every lesion counts the same, whatever its size."""

from collections.abc import Sequence

from torch import Tensor

from nnunet_imbal.losses._instances import (
    CellLoss,
    Parts,
    cells_of,
    parts_in_cells,
    region_dice_loss,
    region_weights,
    voxels_in_cells,
)
from nnunet_imbal.losses._reduce import reduce_components
from nnunet_imbal.ops import cell_overlap
from nnunet_imbal.registry import register_loss

__all__ = ["CCDiceLoss", "cc_dice_loss"]


def cc_dice_loss(
    probs: Tensor,
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
    r"""Dice loss inside the cell of each lesion, averaged over lesions, so that a small one costs as much as a big one.

    Each voxel belongs to the cell :math:`V_i` of its nearest component :math:`C_i` (one-vs-rest in every class). With
    :math:`K` components, :math:`L = \frac1K \sum_i 1 - \frac{2\sum_{C_i} p + s_n}{\sum_{V_i} p + |C_i| + s_d}`.
    The mean goes over components, then over the classes present in a sample, then over samples with a component.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        cells: ``(B, C, *S)`` int32 ids 1..K of the nearest component, if they are known already (for example from
            labels without an ignored part, so that a lesion cut by it stays one lesion). Computed if None.
        mask: ``(B, 1, *S)`` bool, False = ignored. Matters only for the sizes that ``weighting`` needs.
        spacing: mm per voxel in the order of the spatial axes; None = isotropic.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: weights of voxels inside each cell. ``"none"``: 1. ``"balanced"``: the component weighs as much as
            the rest of its cell, :math:`|V_i|/2|C_i|` against :math:`|V_i|/2(|V_i|-|C_i|)`. With the mean probability
            :math:`r` inside and :math:`f` outside, Dice is then :math:`2r/(1+r+f)`: size is gone, and a false alarm as
            big as the lesion costs next to nothing. ``"foreground"``: :math:`|V_i|/|C_i|` against 1, nearly the same.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.
        batch: average over the lesions of the whole batch instead of sample by sample.
        weight: ``(C,)`` factors of the classes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, 0 for absent classes).

    Returns:
        Range 0 (every lesion exact, nothing else) to 1. 0 with zero gradient if there is no lesion at all, so use it
        beside a loss that punishes false alarms in empty patches.

    Raises:
        ValueError: an unknown weighting.

    Note:
        Source: CC-DiceCE (arXiv 2511.17146) for one class, weights and reduction as its published code;
        the multi-class form and the weighting follow the abstract of arXiv 2604.24276 and are our reconstruction.
        A voxel at the same distance from two components goes to the one `numba_kernels.nearest_component` documents.

    Example:
        >>> import torch
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.0, 0.1]).reshape(1, 1, 1, 8)
        >>> target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8)
        >>> round(cc_dice_loss(probs, target, smooth_nr=0, smooth_dr=0).item(), 6)
        0.367521
    """
    target = target.bool()
    cells = cells_of(target, cells, mask, spacing, connectivity)
    sums = cell_overlap(probs, target, cells)  # (3, B, C, 1 + K)
    size = sums[2, ..., 1:]
    rest = size if weighting == "none" else voxels_in_cells(cells, probs.dtype) - size
    weights = region_weights(weighting, Parts(size, rest))
    loss = region_dice_loss(parts_in_cells(sums), size, weights, smooth_nr, smooth_dr)
    reduced = reduce_components(loss, size > 0, batch=batch, weight=weight, reduction=reduction)
    # Adding nothing, this keeps an empty batch connected to the graph and a NaN visible.
    return reduced + 0 * sums[1].sum()


@register_loss(
    "cc_dice",
    paper="arXiv 2511.17146; multi-class after arXiv 2604.24276",
    summary="every lesion counts the same",
)
class CCDiceLoss(CellLoss):
    """Every lesion counts the same: `cc_dice_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        spacing: mm per voxel in the order of the spatial axes; None = isotropic.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: ``"none"``, ``"balanced"`` or ``"foreground"``.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible spacing, connectivity or weighting.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 3, 8, 8, 8)
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> labels[..., :2, :2, :2] = 1
        >>> 0 < CCDiceLoss(softmax=True, to_onehot_y=True)(logits, labels).item() < 1
        True
    """

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `cc_dice_loss`; ignored voxels are 0 in both arguments already."""
        return cc_dice_loss(
            probs,
            target,
            mask=mask,
            spacing=self.spacing,
            connectivity=self.connectivity,
            weighting=self.weighting,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
