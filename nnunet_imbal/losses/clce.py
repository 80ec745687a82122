"""clCE: cross-entropy on the centre lines of truth and prediction."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions, SegmentationLoss
from nnunet_imbal.losses._vessels import average_classes, present_classes, total
from nnunet_imbal.ops import erosion_depth, soft_skeleton
from nnunet_imbal.ops.cross_entropy import probabilities_behind
from nnunet_imbal.registry import register_loss

__all__ = ["ClCELoss", "clce_loss"]


def clce_loss(
    errors: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    iterations: int | None = None,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy where it decides about connections: on the centre lines of truth and prediction.

    With the soft skeleton :math:`S(\cdot)` and the cross-entropy :math:`e_v = -y \log p - (1 - y) \log(1 - p)` in nats,
    :math:`L = \frac{1}{N} \sum_v e_v\,(S(y)_v + S(p)_v)` over the :math:`N` voxels that count, for each class, averaged
    over present classes, then over samples with a class. The gradient goes through :math:`S(p)`.

    Args:
        errors: ``(B, C, *S)`` float32 or float64, the cross-entropy :math:`e` of each class against the rest
            (`nnunet_imbal.ops.one_vs_rest_cross_entropy`), background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        iterations: erosions of the soft skeleton. None = as many as empty what is true or predicted.
        batch: treat the batch as one sample.
        weight: ``(C,)`` factors of the classes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, 0 for absent classes).

    Returns:
        At least 0. 0 with zero gradient if there is no vessel at all. The mean goes over all voxels, so the value
        depends on how much of the patch is vessel.

    Note:
        Source: centerline cross-entropy (Acebes et al., MICCAI 2024) as its code has it: one class, three iterations.
        Several classes one against the rest, the number of iterations and ignored voxels are ours.

    Example:
        >>> target = torch.zeros(1, 1, 5, 9)
        >>> target[..., 1:4, 1:8] = 1
        >>> round(clce_loss(torch.full((1, 1, 5, 9), 0.6931), target, iterations=3).item(), 4)
        0.077
    """
    target = target.bool()
    probs = probabilities_behind(errors, target)
    steps: int | Tensor = erosion_depth(target | (probs.detach() > 0.5)) if iterations is None else iterations
    weights = soft_skeleton(target.float(), steps)
    weights = soft_skeleton(probs, steps).add_(weights)
    summed = total(errors * weights, batch)
    counts = torch.ones_like(target[:, :1]) if mask is None else mask
    loss = summed / total(counts, batch).clamp(min=1)
    reduced = average_classes(loss, present_classes(target, batch), weight, reduction)
    # Adding nothing, this keeps an empty batch connected to the graph and a NaN visible.
    return reduced + 0 * summed.sum()


@register_loss("clce", paper="Acebes et al., MICCAI 2024; multi-class ours", summary="cross-entropy on centre lines")
class ClCELoss(SegmentationLoss):
    """Cross-entropy on centre lines: `clce_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        iterations: erosions of the soft skeleton; None = as many as the data need.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: ``iterations`` is negative.

    Example:
        >>> logits = torch.zeros(1, 3, 8, 8, 8)
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> labels[..., 2:4, 2:4, :] = 1
        >>> 0 < ClCELoss(softmax=True, to_onehot_y=True)(logits, labels).item() < 1
        True
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = False
    takes_errors = True
    stands_alone = False

    def __init__(self, *, iterations: int | None = None, **options: Unpack[CommonOptions]) -> None:
        super().__init__(**options)
        if iterations is not None and iterations < 0:
            raise ValueError(f"iterations must be None, 0 or more, got {iterations}")
        self.iterations = iterations

    def compute(self, errors: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `clce_loss`."""
        return clce_loss(
            errors,
            target,
            mask=mask,
            iterations=self.iterations,
            **self.averaging,
        )
