"""Cross-entropy weighted by inverse component size over the whole patch."""

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

__all__ = ["InverseSizeCELoss", "inverse_size_ce_loss"]


def inverse_size_ce_loss(
    errors: Tensor,
    target: Tensor,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    connectivity: int | None = None,
    clip: tuple[float, float] | None = (1.0, 2e5),
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy in which a voxel weighs the more, the smaller its lesion is.

    With :math:`N` voxels, :math:`K` components :math:`C_1 \dots C_K` and the background as :math:`C_0`,
    :math:`L = \frac1N \sum_i w_i \sum_{C_i} e` and :math:`w_i = N / ((K+1)|C_i|)`, clipped.

    **For comparison.** A lesion of one voxel in a patch of two million weighs a million times a background voxel, and
    rare and common classes get very unequal weights; arXiv 2604.24276 reports that this destabilises training and that
    weights inside each lesion's own region do not (``weighting`` of `cc_dice_loss`).

    Args:
        errors: as in `cc_ce_loss`.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        labels: see `blob_dice_loss`.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        clip: lowest and highest weight of a voxel, published as 1 and 2e5; None = no limits.
        batch: average over all pairs of a sample and a class instead of sample by sample.
        weight: see `cc_dice_loss`.
        reduction: see `cc_dice_loss`.

    Returns:
        At least 0. 0 with zero gradient if there is no lesion at all.

    Note:
        Source: Shirokikh et al. (arXiv 2007.10033) for one class, as in their code; one-vs-rest, the mean over present
        classes and the ignore mask are ours. Published weights come from the patch, as here, not from the whole image.

    Example:
        >>> import torch
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4]).reshape(1, 1, 1, 5)
        >>> target = torch.tensor([1, 1, 0, 0, 1]).reshape(1, 1, 1, 5)
        >>> errors = -torch.where(target > 0, probs, 1 - probs).log()
        >>> round(inverse_size_ce_loss(errors, target, clip=None).item(), 4)
        0.4594
    """
    target = target > 0
    sums = cell_overlap(errors, target, labels_of(target, labels, connectivity))  # (3, B, C, 1 + K)
    voxels = valid_voxels(target, mask)
    weights, exists = inverse_size_weights(sums[2, ..., 1:], voxels, clip)
    loss = (weights * sums[1]).sum(-1, keepdim=True) / voxels  # (B, C, 1)
    reduced = reduce_components(loss, exists, batch=batch, weight=weight, reduction=reduction)
    return reduced + 0 * sums[1].sum()  # connected to the graph without a lesion, and a NaN stays visible


@register_loss(
    "inverse_size_ce",
    paper="arXiv 2007.10033",
    summary="cross-entropy, small lesions weigh more (unstable, for comparison)",
)
class InverseSizeCELoss(InstanceLoss):
    """Cross-entropy weighted by inverse component size: `inverse_size_ce_loss` as a module.

    Args:
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        clip: lowest and highest weight of a voxel; None = no limits.
        options: see `SegmentationLoss`. Probabilities without an activation are taken as at least 1e-7.

    Raises:
        ValueError: an impossible connectivity or clip.

    Example:
        >>> import torch
        >>> labels = torch.zeros(1, 1, 8, 8, 8)
        >>> labels[..., :2, :2, :2] = 1
        >>> loss = InverseSizeCELoss(softmax=True, to_onehot_y=True, clip=None)
        >>> round(loss(torch.zeros(1, 2, 8, 8, 8), labels).item(), 4)
        0.6931
    """

    takes_errors = True

    def __init__(
        self,
        *,
        connectivity: int | None = None,
        clip: tuple[float, float] | None = (1.0, 2e5),
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(connectivity=connectivity, **options)
        self.clip = check_clip(clip)

    def compute(self, errors: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `inverse_size_ce_loss`."""
        return inverse_size_ce_loss(
            errors, target, mask=mask, connectivity=self.connectivity, clip=self.clip, **self.averaging
        )
