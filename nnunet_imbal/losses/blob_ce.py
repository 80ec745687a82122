"""blob loss with cross-entropy: each lesion against the background, the other lesions out of sight."""

import math

from torch import Tensor

from nnunet_imbal.losses._instances import (
    BlobLoss,
    Parts,
    check_compat,
    labels_of,
    outside_components,
    region_cross_entropy,
    region_weights,
    valid_voxels,
    with_hidden,
)
from nnunet_imbal.losses._reduce import reduce_components
from nnunet_imbal.ops import cell_overlap
from nnunet_imbal.registry import register_loss

__all__ = ["BlobCELoss", "blob_ce_loss"]


def blob_ce_loss(
    errors: Tensor,
    target: Tensor,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    connectivity: int | None = None,
    weighting: str = "none",
    compat: str = "paper",
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of each lesion and the whole background without the other lesions, averaged over lesions.

    With components :math:`C_i`, background :math:`Z` and the two-class cross-entropy :math:`e`,
    :math:`L = \frac1K \sum_i \frac{1}{|C_i| + |Z|} \sum_{C_i \cup Z} e`.

    **It favours the background.** Every mean holds all of :math:`Z` but one component: with :math:`K` lesions a lesion
    voxel weighs about :math:`1/K` of what it weighs in plain cross-entropy, a background voxel as much as there. Unless
    ``weighting="balanced"`` is set, leave cross-entropy to the global loss and use `blob_dice_loss`.

    Args:
        errors: as in `cc_ce_loss`.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        labels: see `blob_dice_loss`.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: see `cc_dice_loss`; the region of a component is itself and the background.
        compat: see `blob_dice_loss`; each hidden voxel adds ln 2, and every mean is over all voxels.
        batch: see `cc_dice_loss`.
        weight: see `cc_dice_loss`.
        reduction: see `cc_dice_loss`.

    Returns:
        At least 0, in nats. 0 with zero gradient if there is no lesion at all.

    Raises:
        ValueError: an unknown ``weighting`` or ``compat``.

    Note:
        Source: Kofler et al. (arXiv 2205.08209) leave the criterion open; this is their released code with binary
        cross-entropy. Several classes follow the abstract of arXiv 2604.24276; closed form and weighting are ours.

    Example:
        >>> import torch
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.01, 0.1]).reshape(1, 1, 1, 8)
        >>> target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8)
        >>> errors = -torch.where(target > 0, probs, 1 - probs).log()
        >>> round(blob_ce_loss(errors, target).item(), 4)
        0.2333
    """
    check_compat(compat)
    target = target > 0
    sums = cell_overlap(errors, target, labels_of(target, labels, connectivity))  # (3, B, C, 1 + K)
    size = sums[2, ..., 1:]
    background = valid_voxels(target, mask) - size.sum(-1, keepdim=True)
    hidden = compat == "released"
    voxels = Parts(size, with_hidden(background, size, 1 if hidden else 0))
    total = Parts(sums[0, ..., 1:], with_hidden(outside_components(sums[1]), size, math.log(2) if hidden else 0))
    loss = region_cross_entropy(total, voxels, region_weights(weighting, voxels))
    reduced = reduce_components(loss, size > 0, batch=batch, weight=weight, reduction=reduction)
    return reduced + 0 * sums[1].sum()  # connected to the graph without a lesion, and a NaN stays visible


@register_loss(
    "blob_ce",
    paper="arXiv 2205.08209; multi-class after arXiv 2604.24276",
    summary="cross-entropy of each lesion and the background",
)
class BlobCELoss(BlobLoss):
    """blob loss with cross-entropy: `blob_ce_loss` as a module, with the words of `SegmentationLoss`.

    Args:
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        weighting: ``"none"``, ``"balanced"`` or ``"foreground"``.
        compat: ``"paper"`` or ``"released"``.
        options: see `SegmentationLoss`. Probabilities without an activation are taken as at least 1e-7.

    Raises:
        ValueError: an impossible connectivity, weighting or compat.

    Example:
        >>> import torch
        >>> labels = torch.zeros(1, 1, 8, 8, 8)
        >>> labels[..., :2, :2, :2] = 1
        >>> round(BlobCELoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 8, 8, 8), labels).item(), 4)
        0.6931
    """

    takes_errors = True

    def compute(self, errors: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `blob_ce_loss`."""
        return blob_ce_loss(
            errors,
            target,
            mask=mask,
            connectivity=self.connectivity,
            weighting=self.weighting,
            compat=self.compat,
            **self.averaging,
        )
