"""clDice: the centre line of the prediction lies in the truth, and that of the truth in the prediction."""

from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions, SegmentationLoss
from nnunet_imbal.losses._vessels import average_classes, merge_classes, present_classes, shortfall, total
from nnunet_imbal.ops import erosion_depth, soft_skeleton
from nnunet_imbal.registry import register_loss

__all__ = ["ClDiceLoss", "cldice_loss"]


def cldice_loss(
    probs: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    iterations: int | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Dice on centre lines beside Dice on volumes: a vessel that is cut costs more than a vessel that is thin.

    With the soft skeleton :math:`S(\cdot)`, precision :math:`T_p = \frac{\sum S(p)\,y + s_n}{\sum S(p) + s_d}` and
    sensitivity :math:`T_s = \frac{\sum S(y)\,p + s_n}{\sum S(y) + s_d}`,
    :math:`L = (1-\alpha)\,(1 - \text{Dice}) + \alpha\,(1 - \frac{2 T_p T_s}{T_p + T_s})`
    for each class, averaged over present classes, then over samples with a class. The gradient goes through
    :math:`S(p)`.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        alpha: share of clDice; 1 leaves out the Dice of volumes, for use beside a loss that has one.
        iterations: erosions of the soft skeleton. None = as many as empty what is true or predicted (above one half),
            channel by channel, so that no vessel is too thick to have a skeleton.
        smooth_nr: :math:`s_n`, in voxels.
        smooth_dr: :math:`s_d`, in voxels.
        batch: treat the batch as one sample.
        weight: ``(C,)`` factors of the classes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, 0 for absent classes).

    Returns:
        Range 0 (same centre lines and volumes) to 1. 0 with zero gradient if there is no vessel at all.

    Note:
        Source: clDice (arXiv 2003.07311) for one class, with a fixed number of iterations and :math:`s_n = s_d = 1`
        (large for a vessel of few voxels). The number of iterations, the mean over present classes, regions and
        ignored voxels are ours.

    Example:
        >>> import torch
        >>> target = torch.zeros(1, 1, 5, 9)
        >>> target[..., 1:4, 1:8] = 1
        >>> probs = target.double()
        >>> probs[..., 4] = 0
        >>> round(cldice_loss(probs, target, alpha=1, smooth_nr=1, smooth_dr=1).item(), 6)
        0.090909
    """
    target = target > 0
    steps: int | Tensor = erosion_depth(target | (probs.detach() > 0.5)) if iterations is None else iterations
    lines = soft_skeleton(target.float(), steps) > 0
    ridges = soft_skeleton(probs, steps)
    precision = (total(ridges * target, batch) + smooth_nr) / (total(ridges, batch) + smooth_dr)
    sensitivity = (total(lines * probs, batch) + smooth_nr) / (total(lines, batch) + smooth_dr)
    mass = total(probs, batch)
    dice = (2 * total(probs * target, batch) + smooth_nr) / (mass + total(target, batch) + smooth_dr)
    loss = alpha * shortfall(precision, sensitivity) + (1 - alpha) * (1 - dice)
    reduced = average_classes(loss, present_classes(target, batch), weight, reduction)
    # Adding nothing, this keeps an empty batch connected to the graph and a NaN visible.
    return reduced + 0 * mass.sum()


@register_loss("cldice", paper="arXiv 2003.07311; multi-class ours", summary="a vessel that is cut costs more")
class ClDiceLoss(SegmentationLoss):
    """A vessel that is cut costs more: `cldice_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        alpha: share of clDice, 0 to 1; 1 leaves out the Dice of volumes.
        iterations: erosions of the soft skeleton; None = as many as the data need.
        merge: see all classes as one vessel tree: one skeleton, and a wrong class costs nothing.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: ``alpha`` or ``iterations`` out of range, or class weights for merged classes.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 3, 8, 8, 8)
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> labels[..., 2:4, 2:4, :] = 1
        >>> 0 < ClDiceLoss(softmax=True, to_onehot_y=True)(logits, labels).item() < 1
        True
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = False

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        iterations: int | None = None,
        merge: bool = False,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**options)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
        if iterations is not None and iterations < 0:
            raise ValueError(f"iterations must be None, 0 or more, got {iterations}")
        if merge and self.weight is not None:
            raise ValueError("weight has no meaning for merged classes; leave out weight or merge")
        self.alpha = alpha
        self.iterations = iterations
        self.merge = merge

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `cldice_loss`; ignored voxels are 0 in both arguments already."""
        if self.merge:
            probs, target = merge_classes(probs, target, exclusive=self.softmax or self.to_onehot_y)
        return cldice_loss(
            probs,
            target,
            alpha=self.alpha,
            iterations=self.iterations,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
