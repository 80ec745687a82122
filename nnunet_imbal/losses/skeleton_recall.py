"""Skeleton Recall: no centre line may be missed."""

from torch import Tensor

from nnunet_imbal.losses._base import SegmentationLoss
from nnunet_imbal.losses._vessels import average_classes, present_classes, total
from nnunet_imbal.ops import skeletonize, tube
from nnunet_imbal.registry import register_loss

__all__ = ["SkeletonRecallLoss", "skeleton_recall_loss", "skeleton_tubes"]


def skeleton_tubes(target: Tensor) -> Tensor:
    """Tube around the centre line of each vessel, cut to the vessel: what Skeleton Recall asks a network to find.

    Centre lines are taken twice, of each class alone and of all classes together: where a small branch lies against a
    big vessel, the line of the whole may run through the big one only, and a class alone may lack the junction.

    Args:
        target: ``(B, C, *S)`` bool, 2-D or 3-D.

    Returns:
        bool of the same shape: at most 2 voxels (steps along the axes) from a line, inside its class.

    Example:
        >>> import torch
        >>> vessel = torch.ones(1, 1, 9, 5, dtype=torch.bool)
        >>> skeleton_tubes(vessel)[0, 0].sum(0)
        tensor([5, 7, 9, 7, 5])
    """
    merged = target.any(1, keepdim=True)
    return target & (tube(skeletonize(target)) | tube(skeletonize(merged)))


def skeleton_recall_loss(
    probs: Tensor,
    target: Tensor,
    *,
    tubes: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Share of the vessels' centre lines that was missed: thin vessels count by length, not by volume.

    With the tubes :math:`T_c` of `skeleton_tubes`,
    :math:`L_c = 1 - \frac{\sum_{T_c} p_c + s_n}{|T_c| + s_d}`, averaged over present classes, then over samples with a
    class. Nothing limits over-segmentation: use it beside Dice or cross-entropy.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        tubes: ``(B, C, *S)`` bool, if they are known already. Computed if None.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.
        batch: treat the batch as one sample.
        weight: ``(C,)`` factors of the classes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, 0 for absent classes).

    Returns:
        Range 0 (every centre line found) to 1. 0 with zero gradient if there is no vessel at all.

    Note:
        Source: Skeleton Recall (arXiv 2404.03010), published for lines of all classes together and a thinning that
        can lose objects of even thickness. Lines per class beside them, a thinning that keeps every object, regions
        and the mean over present classes are ours.

    Example:
        >>> import torch
        >>> target = torch.zeros(1, 1, 5, 12, dtype=torch.bool)
        >>> target[..., 1:4, 1:11] = True
        >>> probs = target.double()
        >>> probs[..., 4:6] = 0
        >>> round(skeleton_recall_loss(probs, target).item(), 2)
        0.2
    """
    target = target > 0
    tubes = skeleton_tubes(target) if tubes is None else tubes > 0
    found, length = total(probs * tubes, batch), total(tubes.to(probs.dtype), batch)
    loss = 1 - (found + smooth_nr) / (length + smooth_dr)
    reduced = average_classes(loss, present_classes(target, batch), weight, reduction)
    # Adding nothing, this keeps an empty batch connected to the graph and a NaN visible.
    return reduced + 0 * probs.sum()


@register_loss(
    "skeleton_recall", paper="arXiv 2404.03010; per-class lines ours", summary="no centre line may be missed"
)
class SkeletonRecallLoss(SegmentationLoss):
    """No centre line may be missed: `skeleton_recall_loss` as a module. Accepts the words of `SegmentationLoss`.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 3, 8, 8, 8)
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> labels[..., 2:4, 2:4, :] = 1
        >>> round(SkeletonRecallLoss(softmax=True, to_onehot_y=True)(logits, labels).item(), 4)
        0.6667
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = False

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `skeleton_recall_loss`; ignored voxels are 0 in both arguments already."""
        return skeleton_recall_loss(
            probs,
            target,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
