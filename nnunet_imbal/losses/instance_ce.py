"""Instance cross-entropy: one vote per lesion, whatever its size."""

import torch
from torch import Tensor

from nnunet_imbal.losses._instances import InstanceLoss, labels_of, outside_components, valid_voxels
from nnunet_imbal.losses._reduce import reduce_components
from nnunet_imbal.ops import cell_overlap
from nnunet_imbal.registry import register_loss

__all__ = ["InstanceCELoss", "instance_ce_loss"]


def instance_ce_loss(
    errors: Tensor,
    target: Tensor,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    connectivity: int | None = None,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy in which every lesion has one vote, and all lesions together as much weight as the background.

    With components :math:`C_i`, background :math:`Z` and the two-class cross-entropy :math:`e` of one class against the
    rest, :math:`L = \frac{1}{2K} \sum_i \frac{1}{|C_i|} \sum_{C_i} e + \frac{1}{2|Z|} \sum_Z e`.

    Args:
        errors: as in `cc_ce_loss`.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        labels: see `blob_dice_loss`.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        batch: see `cc_dice_loss`.
        weight: see `cc_dice_loss`.
        reduction: see `cc_dice_loss`.

    Returns:
        At least 0, in nats; ln 2 where the network knows nothing. 0 with zero gradient if there is no lesion at all.

    Note:
        Our own definition, not published. It is `inverse_size_ce_loss` without clipping, except that there the
        background is one component among :math:`K + 1`, so that its share shrinks with the number of lesions.

    Example:
        >>> import torch
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4]).reshape(1, 1, 1, 5)
        >>> target = torch.tensor([1, 1, 0, 0, 1]).reshape(1, 1, 1, 5)
        >>> errors = -torch.where(target > 0, probs, 1 - probs).log()
        >>> round(instance_ce_loss(errors, target).item(), 4)
        0.4023
    """
    target = target > 0
    sums = cell_overlap(errors, target, labels_of(target, labels, connectivity))  # (3, B, C, 1 + K)
    size = sums[2, ..., 1:]
    rest = valid_voxels(target, mask) - size.sum(-1, keepdim=True)
    background = outside_components(sums[1]) / torch.where(rest > 0, rest, 1)
    loss = (sums[0, ..., 1:] / torch.where(size > 0, size, 1) + background) / 2
    reduced = reduce_components(loss, size > 0, batch=batch, weight=weight, reduction=reduction)
    return reduced + 0 * sums[1].sum()  # connected to the graph without a lesion, and a NaN stays visible


@register_loss("instance_ce", paper="our definition", summary="cross-entropy with one vote per lesion")
class InstanceCELoss(InstanceLoss):
    """Cross-entropy with one vote per lesion: `instance_ce_loss` as a module, with the words of `SegmentationLoss`.

    Args:
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        options: see `SegmentationLoss`. Probabilities without an activation are taken as at least 1e-7.

    Raises:
        ValueError: an impossible connectivity.

    Example:
        >>> import torch
        >>> labels = torch.zeros(1, 1, 8, 8, 8)
        >>> labels[..., :2, :2, :2] = 1
        >>> round(InstanceCELoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 8, 8, 8), labels).item(), 4)
        0.6931
    """

    takes_errors = True

    def compute(self, errors: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `instance_ce_loss`."""
        return instance_ce_loss(errors, target, mask=mask, connectivity=self.connectivity, **self.averaging)
