"""Breakage-aware clDice: centre lines weigh most where the vessel is broken."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions, SegmentationLoss
from nnunet_imbal.losses._vessels import (
    average_classes,
    box_mean,
    check_range,
    check_spacing,
    merge_classes,
    present_classes,
    shortfall,
)
from nnunet_imbal.losses.radius_dice import radius_weights
from nnunet_imbal.ops import erosion_depth, skeletonize, soft_skeleton
from nnunet_imbal.registry import register_loss

__all__ = ["BreakageClDiceLoss", "breakage_cldice_loss", "breakage_weights"]

_HALF = 0.5 + 1e-5  # equal logits must fall on the same side in every precision


def breakage_weights(probs: Tensor, target: Tensor, form: str = "relative") -> Tensor:
    r"""How badly the prediction fails around each voxel, class by class: 1 where it is right.

    With box sums :math:`N` over the 27 (in 2-D 9) voxels around, the error :math:`d = |N(p) - N(y)|` and
    :math:`\ell(d) = d^2/2` below 1, else :math:`d - 1/2`: ``"released"`` is :math:`\exp(\ell/27)`, ``"relative"``
    :math:`\exp(\ell / \max(N(y), N(p), 1))`.

    A line one voxel thin fills 3 of the 27 voxels of a box. A gap of one voxel in it is an error of 1, and a total
    loss one of 3: the released form gives 1.019 and at most 1.097, as good as no weight, while a thick vessel reaches
    2.67. Relative to what is there, the same gap gives 1.18 and the loss of the line 2.30.

    Args:
        probs: ``(B, C, *S)`` float probabilities.
        target: ``(B, C, *S)`` bool.
        form: ``"relative"`` or ``"released"``.

    Returns:
        ``(B, C, *S)`` in [1, e), differentiable.

    Example:
        >>> line = torch.zeros(1, 1, 3, 3, 7, dtype=torch.bool)
        >>> line[..., 1, 1, :] = True
        >>> gap = line.float()
        >>> gap[..., 3] = 0
        >>> [round(breakage_weights(gap, line, form)[0, 0, 1, 1, 3].item(), 3) for form in ("relative", "released")]
        [1.181, 1.019]
    """
    box = 3 ** (probs.ndim - 2)
    return _weights(box_mean(probs) * box, box_mean(target.to(probs.dtype)) * box, box, form)


def _weights(found: Tensor, wanted: Tensor, box: int, form: str) -> Tensor:
    error = smooth_l1_loss(found, wanted, reduction="none")
    return torch.exp(error / (box if form == "released" else torch.maximum(found, wanted).clamp(min=1)))


def breakage_cldice_loss(
    probs: Tensor,
    target: Tensor,
    *,
    exclusive: bool = True,
    form: str = "relative",
    skeleton: str = "thinning",
    detach: bool = True,
    voxel_weights: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Dice on centre lines, whose voxels weigh more where the vessel is thin and where the prediction breaks it.

    Centre lines :math:`\sigma` are those of all classes together, of the truth and of what is predicted above one
    half, shared out to classes by :math:`y` and :math:`p`. With :math:`E` of `breakage_weights` and :math:`w` of
    `radius_weights`, :math:`T_p = \frac{\sum \sigma_p p\,y\,E w + s_n}{\sum \sigma_p p\,E w + s_d}`,
    :math:`T_s = \frac{\sum \sigma_y y\,p\,E w + s_n}{\sum \sigma_y y\,E w + s_d}`,
    :math:`L = 1 - \frac{2 T_p T_s}{T_p + T_s}`, averaged over present classes, then over samples with a class.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        exclusive: the probabilities are a softmax without its background, not overlapping regions.
        form: of `breakage_weights`.
        skeleton: ``"thinning"`` keeps every vessel in one piece; ``"soft"``, as released, leaves a gap where a thick
            vessel turns into a thin one.
        detach: the weights are constants for the gradient. Otherwise it can pay to make an error elsewhere bigger.
        voxel_weights: ``(B, 1, *S)`` of `radius_weights`; None = 1.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.
        batch: treat the batch as one sample.
        weight: ``(C,)`` factors of the classes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, 0 for absent classes).

    Returns:
        Range 0 (same centre lines) to 1. 0 with zero gradient if there is no vessel at all.

    Note:
        Source: the code released with AG-TAL (arXiv 2604.27357; no readable paper). The relative form, thinning,
        constant weights, absent classes left out, regions and 2-D are ours.

    Example:
        >>> target = torch.zeros(1, 1, 5, 9)
        >>> target[..., 2, 1:8] = 1
        >>> probs = target.double()
        >>> probs[..., 4] = 0
        >>> round(breakage_cldice_loss(probs, target).item(), 3)
        0.085
    """
    target = target.bool()
    lines = _both_centre_lines(probs.detach(), target, exclusive, skeleton)
    fixed = torch.ones_like(lines[0], dtype=probs.dtype) if voxel_weights is None else voxel_weights
    wanted, claimed, constant = (each.split(1) for each in (*lines, fixed))
    samples = zip(probs.split(1), target.split(1), wanted, claimed, constant, strict=True)
    sums = [_sums(*sample, form, detach) for sample in samples]
    parts = torch.stack(sums, 1) if sums else probs.new_zeros(4, 0, probs.shape[1])
    right, claims, found, wishes = parts.sum(1, keepdim=True) if batch else parts
    precision, sensitivity = (right + smooth_nr) / (claims + smooth_dr), (found + smooth_nr) / (wishes + smooth_dr)
    present = present_classes(target, batch)
    reduced = average_classes(shortfall(precision, sensitivity), present, weight, reduction)
    # Adding nothing, this keeps an empty batch connected to the graph and a NaN visible.
    return reduced + 0 * probs.sum()


def _both_centre_lines(probs: Tensor, target: Tensor, exclusive: bool, skeleton: str) -> tuple[Tensor, Tensor]:
    """Those wanted and those claimed, bool ``(B, 1, *S)``."""
    merged, tree = merge_classes(probs, target, exclusive)
    return _centre_lines(tree, skeleton), _centre_lines(merged > _HALF, skeleton)


def _sums(
    probs: Tensor, target: Tensor, wanted: Tensor, claimed: Tensor, fixed: Tensor, form: str, detach: bool
) -> Tensor:
    """What is right and all that is claimed, what is found and all that is wanted, of one sample: ``(4, C)``.

    Only voxels of centre lines count, few of all.
    """
    at, box = (wanted | claimed).flatten().nonzero()[:, 0], 3 ** (probs.ndim - 2)
    means = box_mean(probs.detach() if detach else probs), box_mean(target.to(probs.dtype))
    found, needed, scores, truth, wanted, claimed, fixed = (
        each.flatten(2)[0, :, at] for each in (*means, probs, target, wanted, claimed, fixed)
    )
    weights = _weights(box * found, box * needed, box, form) * fixed
    claims, wishes = weights * scores * claimed, weights * (truth & wanted)
    return torch.stack([part.sum(1) for part in (claims * truth, claims, wishes * scores, wishes)])


def _centre_lines(mask: Tensor, skeleton: str) -> Tensor:
    return skeletonize(mask) if skeleton == "thinning" else soft_skeleton(mask.float(), erosion_depth(mask)) > 0


def check_choices(form: str, skeleton: str) -> None:
    """Refuse an unknown form or skeleton."""
    if form not in ("relative", "released"):
        raise ValueError(f'form must be "relative" or "released", got {form!r}')
    if skeleton not in ("thinning", "soft"):
        raise ValueError(f'skeleton must be "thinning" or "soft", got {skeleton!r}')


@register_loss(
    "breakage_cldice", paper="after arXiv 2604.27357", summary="centre lines weigh most where a vessel breaks"
)
class BreakageClDiceLoss(SegmentationLoss):
    """Centre lines weigh most where a vessel breaks: `breakage_cldice_loss` with `radius_weights` as a module.

    Accepts the words of `SegmentationLoss` as well.

    Args:
        spacing: mm per voxel in the order of the spatial axes; None = 1 mm.
        radius_range: smallest and largest radius in mm.
        form: ``"relative"`` or ``"released"``.
        skeleton: ``"thinning"`` or ``"soft"``.
        detach: see `breakage_cldice_loss`.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible spacing or range, or an unknown form or skeleton.

    Example:
        >>> logits = torch.zeros(1, 3, 8, 8, 8)
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> labels[..., 2:4, 2:4, :] = 1
        >>> 0 < BreakageClDiceLoss(softmax=True, to_onehot_y=True)(logits, labels).item() < 1
        True
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = True
    stands_alone = False
    exact_gradient = False
    mirror_symmetric = False

    def __init__(
        self,
        *,
        spacing: Sequence[float] | None = None,
        radius_range: Sequence[float] = (0.5, 2.5),
        form: str = "relative",
        skeleton: str = "thinning",
        detach: bool = True,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**options)
        check_choices(form, skeleton)
        self.spacing = check_spacing(spacing)
        self.radius_range = check_range(radius_range)
        self.form = form
        self.skeleton = skeleton
        self.detach = detach

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `breakage_cldice_loss`; ignored voxels are 0 in both arguments already."""
        return breakage_cldice_loss(
            probs,
            target,
            exclusive=self.softmax or self.to_onehot_y,
            form=self.form,
            skeleton=self.skeleton,
            detach=self.detach,
            voxel_weights=radius_weights(target, self.spacing, self.radius_range),
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
