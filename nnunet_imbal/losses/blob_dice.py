"""blob loss with Dice: each lesion against the background, the other lesions out of sight."""

from torch import Tensor

from nnunet_imbal.losses._instances import (
    BlobLoss,
    Parts,
    check_compat,
    labels_of,
    outside_components,
    region_dice_loss,
    region_weights,
    valid_voxels,
    with_hidden,
)
from nnunet_imbal.losses._reduce import reduce_components
from nnunet_imbal.ops import cell_overlap
from nnunet_imbal.registry import register_loss

__all__ = ["BlobDiceLoss", "blob_dice_loss"]


def blob_dice_loss(
    probs: Tensor,
    target: Tensor,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    connectivity: int | None = None,
    weighting: str = "none",
    compat: str = "paper",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Dice of each lesion with the whole background but without the other lesions, averaged over lesions.

    With components :math:`C_i`, the background :math:`Z` of a class (other classes included) and
    :math:`S_0 = \sum_Z p`: :math:`L = \frac1K \sum_i 1 - \frac{2\sum_{C_i} p + s_n}{\sum_{C_i} p + S_0 + |C_i| + s_d}`.
    One sum per component gives all of it, so the cost does not depend on their number. All lesions share every false
    alarm: when :math:`S_0` is large beside a lesion, its Dice and its gradient go to 0 (`cc_dice_loss` does not).

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        labels: ``(B, C, *S)`` int32 ids 1..K of the components, 0 elsewhere, if they are known already. Computed if
            None.
        mask: ``(B, 1, *S)`` bool, False = ignored. Matters only for the sizes that ``weighting`` needs.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: see `cc_dice_loss`; the region of a component is itself and the background.
        compat: ``"paper"``, or ``"released"`` for what the authors' code computes when it is given logits, as in its
            documented example: it hides other lesions by setting their logits to 0, so that they count as false
            alarms of probability 1/2. For comparisons only.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.
        batch: see `cc_dice_loss`.
        weight: see `cc_dice_loss`.
        reduction: see `cc_dice_loss`.

    Returns:
        Range 0 to 1. 0 with zero gradient if there is no lesion at all.

    Raises:
        ValueError: an unknown ``weighting`` or ``compat``.

    Note:
        Source: Kofler et al. (arXiv 2205.08209) for one class, after their released code; several classes follow the
        abstract of arXiv 2604.24276. The closed form, regions, ignore mask and weighting are ours.

    Example:
        >>> import torch
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.0, 0.1]).reshape(1, 1, 1, 8)
        >>> target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8)
        >>> round(blob_dice_loss(probs, target, smooth_nr=0, smooth_dr=0).item(), 6)
        0.437431
    """
    check_compat(compat)
    target = target > 0
    sums = cell_overlap(probs, target, labels_of(target, labels, connectivity))  # (3, B, C, 1 + K)
    size = sums[2, ..., 1:]
    background = valid_voxels(target, mask) - size.sum(-1, keepdim=True)
    weights = region_weights(weighting, Parts(size, background))
    mass = Parts(sums[0, ..., 1:], with_hidden(outside_components(sums[1]), size, 0.5 if compat == "released" else 0))
    loss = region_dice_loss(mass, size, weights, smooth_nr, smooth_dr)
    reduced = reduce_components(loss, size > 0, batch=batch, weight=weight, reduction=reduction)
    return reduced + 0 * sums[1].sum()  # connected to the graph without a lesion, and a NaN stays visible


@register_loss(
    "blob_dice",
    paper="arXiv 2205.08209; multi-class after arXiv 2604.24276",
    summary="each lesion against the background, other lesions hidden",
)
class BlobDiceLoss(BlobLoss):
    """blob loss with Dice: `blob_dice_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: ``"none"``, ``"balanced"`` or ``"foreground"``.
        compat: ``"paper"`` or ``"released"``.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible connectivity, weighting or compat.

    Example:
        >>> import torch
        >>> labels = torch.zeros(1, 1, 8, 8, 8)
        >>> labels[..., :2, :2, :2] = 1
        >>> 0 < BlobDiceLoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 8, 8, 8), labels).item() < 1
        True
    """

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `blob_dice_loss`; ignored voxels are 0 in both arguments already."""
        return blob_dice_loss(
            probs,
            target,
            mask=mask,
            connectivity=self.connectivity,
            weighting=self.weighting,
            compat=self.compat,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
