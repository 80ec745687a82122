"""Lesion MIL: one confident voxel per lesion is enough."""

import torch
from torch import Tensor

from nnunet_imbal.losses._instances import InstanceLoss, labels_of
from nnunet_imbal.losses._reduce import reduce_components
from nnunet_imbal.ops import component_max
from nnunet_imbal.registry import register_loss

__all__ = ["LesionMILLoss", "lesion_mil_loss"]

# The least probability whose logarithm counts, the same for every dtype: that of float32.
_LEAST = torch.finfo(torch.float32).tiny


def lesion_mil_loss(
    probs: Tensor,
    target: Tensor,
    *,
    labels: Tensor | None = None,
    connectivity: int | None = None,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Ask that at least one voxel of each lesion is found: lesions are the bags of multiple-instance learning.

    With components :math:`C_i`, :math:`L = \frac1K \sum_i -\log \max_{C_i} p`. Gradient reaches one voxel per lesion.

    **Never alone.** Nothing stops a network that calls every voxel a lesion, and outlines do not matter; recall goes up
    and precision down. Use it with a small weight beside a loss of voxels.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        labels: see `blob_dice_loss`.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8 (published: 6).
        batch: see `cc_dice_loss`.
        weight: see `cc_dice_loss`.
        reduction: see `cc_dice_loss`.

    Returns:
        0 to 87.3 nats (a lesion of probability 0, which gets no gradient). 0 with zero gradient without a lesion.

    Note:
        Source: the MIL part of CATMIL (arXiv 2604.08015, abstract) with the formula of its published code, where it is
        added to nnU-Net's loss with a weight of 0.2. Of equal voxels the first in memory order gets the gradient.

    Example:
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.0, 0.1]).reshape(1, 1, 1, 8)
        >>> target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8)
        >>> round(lesion_mil_loss(probs, target).item(), 6)
        0.510826
    """
    target = target > 0
    highest = component_max(probs, labels_of(target, labels, connectivity))[..., 1:]
    exists = highest != -torch.inf
    loss = -torch.where(exists, highest, 1).clamp(min=_LEAST).log()
    reduced = reduce_components(loss, exists, batch=batch, weight=weight, reduction=reduction)
    return reduced + 0 * probs.sum()  # connected to the graph without a lesion, and a NaN stays visible


@register_loss(
    "lesion_mil", paper="arXiv 2604.08015", summary="one sure voxel per lesion is enough; only beside others"
)
class LesionMILLoss(InstanceLoss):
    """One confident voxel per lesion: `lesion_mil_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible connectivity.

    Example:
        >>> labels = torch.zeros(1, 1, 8, 8, 8)
        >>> labels[..., :2, :2, :2] = 1
        >>> round(LesionMILLoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 8, 8, 8), labels).item(), 4)
        0.6931
    """

    stands_alone = False

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `lesion_mil_loss`; ignored voxels are 0 in both arguments already."""
        return lesion_mil_loss(probs, target, connectivity=self.connectivity, **self.averaging)
