"""AG-TAL-R: thin vessels, broken vessels and forbidden neighbours in one loss."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions, SegmentationLoss
from nnunet_imbal.losses._vessels import check_range, check_spacing
from nnunet_imbal.losses.breakage_cldice import breakage_cldice_loss, check_choices
from nnunet_imbal.losses.co_occurrence import co_occurrence_loss, junction_loss, junction_mask
from nnunet_imbal.losses.radius_dice import radius_dice_loss, radius_weights
from nnunet_imbal.registry import register_loss

__all__ = ["AGTALLoss"]


@register_loss("agtal", paper="after arXiv 2604.27357", summary="thin, broken and wrongly joined vessels in one loss")
class AGTALLoss(SegmentationLoss):
    r"""Vessel trees of many classes: thin vessels, broken vessels and neighbours that anatomy forbids (AG-TAL-R).

    :math:`L = a\,L_\text{radius} + b\,L_\text{breakage} + c\,L_\text{co-occurrence} + d\,L_\text{junction}`, see
    `radius_dice_loss`, `breakage_cldice_loss`, `co_occurrence_loss` and `junction_loss`. A term of factor 0 is not
    computed. The published recipe starts the last three after 30 epochs: use two terms, of which one has
    ``radius_dice = 0`` and ``from_epoch = 31``.

    Args:
        spacing: mm per voxel in the order of the spatial axes; None = 1 mm.
        radius_range: smallest and largest radius in mm, see `nnunet_imbal.adjacency.learn_radius_range`.
        per_class_norm: let every class weigh the same on average, see `radius_weights`.
        forbidden: ``(C, C)`` from 0 (may touch) to 1 (never), background left out, see
            `nnunet_imbal.adjacency.learn_adjacency`. None = every class may touch every other.
        groups: classes (1..C) that meet at one junction. None = all.
        form: ``"relative"`` or ``"released"``, see `breakage_weights`.
        skeleton: ``"thinning"`` or ``"soft"``, see `breakage_cldice_loss`.
        detach: see `breakage_cldice_loss`.
        radius_dice: factor :math:`a`.
        breakage: factor :math:`b`.
        co_occurrence: factor :math:`c`.
        junction: factor :math:`d`.
        options: see `SegmentationLoss`. ``reduction`` is ``"mean"`` or ``"sum"``, which are the same here: one number.

    Raises:
        ValueError: an impossible spacing, range, factor or matrix, an unknown form or skeleton.
        NotImplementedError: overlapping regions (``sigmoid``), which have no neighbours.

    Note:
        AG-TAL (arXiv 2604.27357) has no readable paper and its released code does not run as it is. This is our
        corrected form, hence AG-TAL-R; ``docs/methods/topology.md`` lists what differs. No result of the paper is
        claimed to be reproduced.

    Example:
        >>> logits = torch.zeros(1, 3, 8, 8, 8)
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> labels[..., 2:4, 2:4, :4], labels[..., 2:4, 2:4, 4:] = 1, 2
        >>> 0 < AGTALLoss(softmax=True, to_onehot_y=True)(logits, labels).item() < 3
        True
    """

    supports_regions = False
    supports_ignore = True
    uses_spacing = True
    exact_gradient = False
    mirror_symmetric = False

    forbidden: Tensor | None

    def __init__(
        self,
        *,
        spacing: Sequence[float] | None = None,
        radius_range: Sequence[float] = (0.5, 2.5),
        per_class_norm: bool = False,
        forbidden: Sequence[Sequence[float]] | Tensor | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        form: str = "relative",
        skeleton: str = "thinning",
        detach: bool = True,
        radius_dice: float = 1.0,
        breakage: float = 0.5,
        co_occurrence: float = 1.0,
        junction: float = 1.0,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**options)
        if self.sigmoid:
            raise NotImplementedError("overlapping regions have no neighbours; use radius_dice and breakage_cldice")
        check_choices(form, skeleton)
        factors = (radius_dice, breakage, co_occurrence, junction)
        if not all(0 <= factor < float("inf") for factor in factors) or not any(factors):
            raise ValueError(f"the four factors must be at least 0 and one of them above 0, got {factors}")
        self.spacing = check_spacing(spacing)
        self.radius_range = check_range(radius_range)
        self.per_class_norm = per_class_norm
        self.groups = groups
        self.form = form
        self.skeleton = skeleton
        self.detach = detach
        self.factors = factors
        self.register_buffer("forbidden", None if forbidden is None else _matrix(forbidden))

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted sum of the four terms; ignored voxels are 0 in both arguments already."""
        weights = radius_weights(target, self.spacing, self.radius_range, self.per_class_norm)
        dice, breakage, co_occurrence, junction = self.factors
        parts = [0 * probs.sum()]  # keeps an empty batch connected to the graph and a NaN visible
        if dice:
            parts.append(dice * self._radius_dice(probs, target, weights))
        if breakage:
            parts.append(breakage * self._breakage(probs, target, weights))
        if co_occurrence and self.forbidden is not None:
            parts.append(co_occurrence * co_occurrence_loss(probs, self.forbidden, voxel_weights=weights))
        if junction:
            here = junction_mask(target, self.groups)
            parts.append(junction * junction_loss(probs, target, here if mask is None else here & mask))
        return torch.stack(parts).sum()

    def _radius_dice(self, probs: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        return radius_dice_loss(
            probs,
            target,
            voxel_weights=weights,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            batch=self.batch,
            weight=self.weight,
        )

    def _breakage(self, probs: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        return breakage_cldice_loss(
            probs,
            target,
            form=self.form,
            skeleton=self.skeleton,
            detach=self.detach,
            voxel_weights=weights,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            batch=self.batch,
            weight=self.weight,
        )


def _matrix(forbidden: Sequence[Sequence[float]] | Tensor) -> Tensor:
    matrix = torch.as_tensor(forbidden, dtype=torch.float32)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not ((matrix >= 0) & (matrix <= 1)).all():
        raise ValueError(f"forbidden must be a square matrix of numbers from 0 to 1, got {forbidden!r}")
    return matrix
