"""cbDice: clDice that knows how thick each vessel is."""

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions, SegmentationLoss
from nnunet_imbal.losses._vessels import average_classes, check_spacing, merge_classes, present_classes, shortfall
from nnunet_imbal.ops import calibre_sums
from nnunet_imbal.registry import register_loss

__all__ = ["CbDiceLoss", "cbdice_loss"]


def cbdice_loss(
    probs: Tensor,
    target: Tensor,
    *,
    spacing: Sequence[float] | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Dice on centre lines in which a vessel's calibre counts: a gap in a thin vessel weighs more than in a thick one.

    A mask has the distance :math:`D` to its outside, its skeleton the radius :math:`R = D`, with the largest
    :math:`M = \max(1, \max R)`. Let :math:`d = \min(D, M)/M`, :math:`r = R/M`,
    :math:`i = ((M - R + 1)/M)^{n-1}` on the skeleton in :math:`n` dimensions, for the truth (:math:`y`) and for what
    is predicted above one half (:math:`p`). With :math:`a \triangleright b = a` where :math:`b = 0`, else :math:`b`,

    .. math::
        T_p = \frac{\sum i_p p \, d_y + s_n}{\sum i_p p \, (r_p p \triangleright r_y) + s_d}, \quad
        T_s = \frac{\sum i_y \, d_p p + s_n}{\sum i_y \, (r_y \triangleright r_p p) + s_d}, \quad
        L = 1 - \frac{2 T_p T_s}{T_p + T_s}

    for each class, averaged over present classes, then over samples with a class. Skeletons and distances are
    constants for the gradient.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        spacing: mm per voxel in the order of the spatial axes; distances are in units of the smallest. None =
            isotropic.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.
        batch: treat the batch as one sample.
        weight: ``(C,)`` factors of the classes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, 0 for absent classes).

    Returns:
        Range 0 (same vessels) to 1. 0 with zero gradient if there is no vessel at all.

    Note:
        Source: cbDice (arXiv 2407.01517), the linear form of its later code, :math:`s_n = s_d = 10^{-3}` there.
        Published for all classes merged, the batch as one sample, and voxels instead of mm. Radii are relative to the
        largest of the same mask, so a calibre that is wrong by the same factor everywhere costs nothing.

    Example:
        >>> import torch
        >>> target = torch.zeros(1, 1, 5, 9)
        >>> target[..., 1:4, 1:8] = 1
        >>> probs = target.double()
        >>> probs[..., 4] = 0
        >>> round(cbdice_loss(probs, target, smooth_nr=1e-3, smooth_dr=1e-3).item(), 6)
        0.249875
    """
    target = target > 0
    sums = calibre_sums(probs, target, spacing)
    hits, claims, found, wanted = sums.sum(1, keepdim=True) if batch else sums
    loss = shortfall((hits + smooth_nr) / (claims + smooth_dr), (found + smooth_nr) / (wanted + smooth_dr))
    reduced = average_classes(loss, present_classes(target, batch), weight, reduction)
    # Adding nothing, this keeps an empty batch connected to the graph and a NaN visible.
    return reduced + 0 * probs.sum()


@register_loss("cbdice", paper="arXiv 2407.01517; multi-class ours", summary="clDice that knows each vessel's calibre")
class CbDiceLoss(SegmentationLoss):
    """Thin vessels weigh more: `cbdice_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        spacing: mm per voxel in the order of the spatial axes; None = isotropic.
        merge: see all classes as one vessel tree, as published: a wrong class costs nothing.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible spacing, or class weights for merged classes.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 3, 8, 8, 8)
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> labels[..., 2:4, 2:4, :] = 1
        >>> 0 < CbDiceLoss(softmax=True, to_onehot_y=True)(logits, labels).item() <= 1
        True
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = True
    stands_alone = False

    def __init__(
        self, *, spacing: Sequence[float] | None = None, merge: bool = False, **options: Unpack[CommonOptions]
    ) -> None:
        super().__init__(**options)
        if merge and self.weight is not None:
            raise ValueError("weight has no meaning for merged classes; leave out weight or merge")
        self.spacing = check_spacing(spacing)
        self.merge = merge

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `cbdice_loss`; ignored voxels are 0 in both arguments already."""
        if self.merge:
            probs, target = merge_classes(probs, target, exclusive=self.softmax or self.to_onehot_y)
        return cbdice_loss(
            probs,
            target,
            spacing=self.spacing,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
