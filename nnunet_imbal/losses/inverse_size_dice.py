"""Dice weighted by inverse component size over the whole patch."""

from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions
from nnunet_imbal.losses._instances import (
    InstanceLoss,
    check_clip,
    inverse_size_weights,
    labels_of,
    valid_voxels,
)
from nnunet_imbal.losses._reduce import reduce_components
from nnunet_imbal.ops import cell_overlap
from nnunet_imbal.registry import register_loss

__all__ = ["InverseSizeDiceLoss", "inverse_size_dice_loss"]


def inverse_size_dice_loss(
    probs: Tensor,
    target: Tensor,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    connectivity: int | None = None,
    clip: tuple[float, float] | None = (1.0, 2e5),
    squared_pred: bool = True,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""One Dice of the whole patch in which a voxel weighs the more, the smaller its lesion is.

    With the weights :math:`w` of `inverse_size_ce_loss` and the truth :math:`y`,
    :math:`L = 1 - \frac{2\sum w p y + s_n}{\sum w p^2 + \sum w y + s_d}`. **For comparison**, as explained there.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        labels: see `blob_dice_loss`.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        clip: see `inverse_size_ce_loss`.
        squared_pred: square the probabilities in the denominator, as published.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.
        batch: average over all pairs of a sample and a class instead of sample by sample.
        weight: see `cc_dice_loss`.
        reduction: see `cc_dice_loss`.

    Returns:
        Range 0 to 1. 0 with zero gradient if there is no lesion at all.

    Note:
        Source: Shirokikh et al. (arXiv 2007.10033) for one class, as in their code; the rest as `inverse_size_ce_loss`.

    Example:
        >>> import torch
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.0, 0.1]).reshape(1, 1, 1, 8)
        >>> target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8)
        >>> round(inverse_size_dice_loss(probs, target, clip=None).item(), 4)
        0.1549
    """
    target = target > 0
    labels = labels_of(target, labels, connectivity)
    sums = cell_overlap(probs, target, labels)  # (3, B, C, 1 + K)
    size = sums[2, ..., 1:]
    weights, exists = inverse_size_weights(size, valid_voxels(target, mask), clip)
    mass = cell_overlap(probs * probs, target, labels)[1] if squared_pred else sums[1]
    hit, true = ((weights[..., 1:] * part).sum(-1, keepdim=True) for part in (sums[0, ..., 1:], size))
    denominator = (weights * mass).sum(-1, keepdim=True) + true + smooth_dr
    loss = 1 - (2 * hit + smooth_nr) / denominator.where(exists, 1)
    reduced = reduce_components(loss, exists, batch=batch, weight=weight, reduction=reduction)
    return reduced + 0 * sums[1].sum()  # connected to the graph without a lesion, and a NaN stays visible


@register_loss(
    "inverse_size_dice",
    paper="arXiv 2007.10033",
    summary="Dice, small lesions weigh more (unstable, for comparison)",
)
class InverseSizeDiceLoss(InstanceLoss):
    """Dice weighted by inverse component size: `inverse_size_dice_loss` as a module.

    Args:
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        clip: lowest and highest weight of a voxel; None = no limits.
        squared_pred: square the probabilities in the denominator, as published.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible connectivity or clip.

    Example:
        >>> import torch
        >>> labels = torch.zeros(1, 1, 8, 8, 8)
        >>> labels[..., :2, :2, :2] = 1
        >>> 0 < InverseSizeDiceLoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 8, 8, 8), labels).item() < 1
        True
    """

    def __init__(
        self,
        *,
        connectivity: int | None = None,
        clip: tuple[float, float] | None = (1.0, 2e5),
        squared_pred: bool = True,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(connectivity=connectivity, **options)
        self.clip = check_clip(clip)
        self.squared_pred = squared_pred

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `inverse_size_dice_loss`; ignored voxels are 0 in both arguments already."""
        return inverse_size_dice_loss(
            probs,
            target,
            mask=mask,
            connectivity=self.connectivity,
            clip=self.clip,
            squared_pred=self.squared_pred,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
