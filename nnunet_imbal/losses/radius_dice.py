"""Radius-aware Dice: voxels of thin vessels weigh more."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions, SegmentationLoss
from nnunet_imbal.losses._vessels import average_classes, check_range, check_spacing, present_classes, total
from nnunet_imbal.ops import local_thickness
from nnunet_imbal.registry import register_loss

__all__ = ["RadiusDiceLoss", "radius_dice_loss", "radius_weights"]


def radius_weights(
    target: Tensor,
    spacing: Sequence[float] | None = None,
    radius_range: Sequence[float] = (0.5, 2.5),
    per_class_norm: bool = False,
) -> Tensor:
    r"""Weight of each voxel by the radius of the vessel it belongs to: 1 in thick ones, up to e in thin ones.

    :math:`w = \exp(\mathrm{clip}(\frac{R_{hi} - r}{R_{hi} - R_{lo}}, 0, 1))` inside, 1 outside, with the local
    thickness :math:`r` of all classes together. The range is fixed, so a vessel weighs the same in every patch.

    Args:
        target: ``(B, C, *S)`` bool.
        spacing: mm per voxel in the order of the spatial axes; None = 1 mm.
        radius_range: smallest and largest radius in mm, see `nnunet_imbal.adjacency.learn_radius_range`.
        per_class_norm: divide the weights inside each class by their mean there, so that thin stretches of a vessel
            still weigh more than thick ones, but a class of thin vessels no more than another. One overlapping region
            is treated after the other.

    Returns:
        float32 ``(B, 1, *S)`` in [1, e], with ``per_class_norm`` in (1/e, e).

    Example:
        >>> vessels = torch.tensor([[[[False, True, True, True, False, True, False]]]])
        >>> radius_weights(vessels, radius_range=(1, 2))[0, 0, 0].round(decimals=2)
        tensor([1.0000, 1.0000, 1.0000, 1.0000, 1.0000, 2.7200, 1.0000])
    """
    low, high = radius_range
    merged = target.any(1, keepdim=True)
    slimness = ((high - local_thickness(merged, spacing)) / (high - low)).clamp_(0, 1)
    weights = slimness.mul_(merged).exp_()
    return _to_unit_mean(weights, target) if per_class_norm else weights


def _to_unit_mean(weights: Tensor, target: Tensor) -> Tensor:
    for own in target.split(1, 1):
        voxels = own.flatten(1).sum(1).clamp(min=1)
        mean = (total(weights.where(own, 0), batch=False)[:, 0] / voxels).view(-1, *[1] * (weights.ndim - 1))
        weights = torch.where(own, weights / mean, weights)
    return weights


def radius_dice_loss(
    probs: Tensor,
    target: Tensor,
    *,
    spacing: Sequence[float] | None = None,
    radius_range: Sequence[float] = (0.5, 2.5),
    per_class_norm: bool = False,
    voxel_weights: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Dice in which voxels of thin vessels weigh more than those of thick ones.

    With the weights :math:`w` of `radius_weights`,
    :math:`L_c = 1 - \frac{2 \sum w\,p\,y + s_n}{\sum w\,p + \sum w\,y + s_d}`, averaged over present classes, then over
    samples with a class.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        spacing: mm per voxel in the order of the spatial axes; None = 1 mm.
        radius_range: smallest and largest radius in mm.
        per_class_norm: see `radius_weights`.
        voxel_weights: ``(B, 1, *S)``, if they are known already. Computed from the three above if None.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.
        batch: treat the batch as one sample.
        weight: ``(C,)`` factors of the classes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, 0 for absent classes).

    Returns:
        Range 0 (perfect) to 1. 0 with zero gradient if there is no vessel at all.

    Note:
        Source: the code released with AG-TAL (arXiv 2604.27357; no readable paper), with a range of radii fixed
        for the dataset instead of each patch's own, and absent classes left out: our corrections.

    Example:
        >>> target = torch.zeros(1, 1, 5, 9)
        >>> target[..., 1:4, 1:8] = 1
        >>> round(radius_dice_loss(target / 2, target).item(), 4)
        0.3333
    """
    target = target.bool()
    if voxel_weights is None:
        voxel_weights = radius_weights(target, spacing, radius_range, per_class_norm)
    weighted = probs * voxel_weights
    mass, size = total(weighted, batch), total(voxel_weights.to(probs.dtype).where(target, 0), batch)
    loss = 1 - (2 * total(weighted.where(target, 0), batch) + smooth_nr) / (mass + size + smooth_dr)
    reduced = average_classes(loss, present_classes(target, batch), weight, reduction)
    # Adding nothing, this keeps an empty batch connected to the graph and a NaN visible.
    return reduced + 0 * mass.sum()


@register_loss("radius_dice", paper="after arXiv 2604.27357", summary="voxels of thin vessels weigh more")
class RadiusDiceLoss(SegmentationLoss):
    """Voxels of thin vessels weigh more: `radius_dice_loss` as a module. Accepts the words of `SegmentationLoss`.

    Args:
        spacing: mm per voxel in the order of the spatial axes; None = 1 mm.
        radius_range: smallest and largest radius in mm.
        per_class_norm: see `radius_weights`.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible spacing or range.

    Example:
        >>> logits = torch.zeros(1, 3, 8, 8, 8)
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> labels[..., 2:4, 2:4, :] = 1
        >>> 0 < RadiusDiceLoss(softmax=True, to_onehot_y=True)(logits, labels).item() < 1
        True
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = True

    def __init__(
        self,
        *,
        spacing: Sequence[float] | None = None,
        radius_range: Sequence[float] = (0.5, 2.5),
        per_class_norm: bool = False,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**options)
        self.spacing = check_spacing(spacing)
        self.radius_range = check_range(radius_range)
        self.per_class_norm = per_class_norm

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `radius_dice_loss`; ignored voxels are 0 in both arguments already."""
        return radius_dice_loss(
            probs,
            target,
            spacing=self.spacing,
            radius_range=self.radius_range,
            per_class_norm=self.per_class_norm,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
