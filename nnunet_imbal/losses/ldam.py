"""LDAM: rare classes must win by a wider margin."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions
from nnunet_imbal.losses._voxelwise import FrequencyLoss, average_voxels, share_of_each, voxels_of, what_is_true
from nnunet_imbal.registry import register_loss

__all__ = ["LDAMLoss", "ldam_loss", "ldam_margins"]


def ldam_loss(
    logits: Tensor,
    target: Tensor,
    *,
    frequencies: Tensor | None = None,
    max_margin: float = 0.5,
    scale: float = 1.0,
    exclusive: bool = True,
    mask: Tensor | None = None,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy that is content only if the true class leads, the rare ones by the widest margin.

    With the margins :math:`\Delta` of `ldam_margins` and the true class :math:`y`,
    :math:`L = -\log \mathrm{softmax}(\kappa (s - \Delta_y e_y))_y`, averaged over voxels. A region is two classes,
    inside and outside, each with its own margin.

    Args:
        logits: ``(B, C, *S)`` float32 or float64, 2-D or 3-D, background included, 0 where ignored.
        target: ``(B, C, *S)`` bool, one-hot classes with background or overlapping regions, False where ignored.
        frequencies: ``(C,)`` share of the voxels of each channel, taken as at least 1e-5; only their ratios matter.
            None = the same margin for all.
        max_margin: of the rarest class, in units of logits.
        scale: :math:`\kappa`. Published: 30, for logits that are cosines; with the usual ones of a convolution that
            multiplies every mistake by 30.
        exclusive: softmax of classes; otherwise a sigmoid for each region.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        batch: treat the batch as one sample.
        weight: see `logit_adjusted_ce_loss`.
        reduction: see `logit_adjusted_ce_loss`.

    Returns:
        At least 0, in nats. Samples of nothing but background count like any other; 0 where all is ignored.

    Raises:
        ConfigError: frequencies or weights do not fit the channels.

    Note:
        Source: Cao et al. (arXiv 1906.07413) for images of one class each. Voxels, the scale of 1 and regions are ours.
        The published schedule adds class weights late: a second term with ``weight`` and ``from_epoch``.

    Example:
        >>> logits = torch.tensor([[[[2.0]], [[0.0]]]])
        >>> first = torch.tensor([[[[True]], [[False]]]])
        >>> prior = torch.tensor([0.1, 0.9])
        >>> round(ldam_loss(logits, first, frequencies=prior).item(), 4)  # as if the lead were 1.5
        0.2014
    """
    counts = voxels_of(target, mask, exclusive)
    inside, outside = ldam_margins(share_of_each(frequencies, logits, exclusive), max_margin, exclusive=exclusive)
    shape = (1, -1, *[1] * (logits.ndim - 2))
    handicap = torch.where(target, inside.view(shape), -outside.view(shape))
    errors = what_is_true(scale * (logits - handicap), target, counts, exclusive)
    return average_voxels(errors, counts, batch=batch, weight=weight, reduction=reduction)


def ldam_margins(shares: Tensor, max_margin: float = 0.5, *, exclusive: bool = True) -> tuple[Tensor, Tensor]:
    r"""Margins :math:`\Delta \propto n^{-1/4}`, of which the largest is ``max_margin``.

    Args:
        shares: ``(C,)`` frequencies above 0, of classes in any unit, of regions below 1.
        max_margin: of the rarest.
        exclusive: classes; otherwise regions.

    Returns:
        ``(C,)`` for voxels of a channel, and ``(C,)`` for those outside of it (0 for exclusive classes, whose other
        channels have their own).

    Example:
        >>> ldam_margins(torch.tensor([9e5, 9e4, 1e4]))[0]
        tensor([0.1623, 0.2887, 0.5000])
    """
    inside = shares**-0.25
    if exclusive:
        return max_margin * inside / inside.max(), torch.zeros_like(inside)
    outside = (1 - shares) ** -0.25
    widest = torch.maximum(inside.max(), outside.max())
    return max_margin * inside / widest, max_margin * outside / widest


@register_loss("ldam", paper="arXiv 1906.07413; voxels and regions ours", summary="rare classes must win by a margin")
class LDAMLoss(FrequencyLoss):
    """Label-distribution-aware margins: `ldam_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        frequencies: share of the voxels of each channel as training draws them; None = the same margin for all.
        max_margin: of the rarest class, in units of logits.
        scale: factor of all logits.
        options: see `SegmentationLoss`; called with logits.

    Raises:
        ConfigError: impossible frequencies, or other than channels.
        ValueError: ``max_margin`` is negative, ``scale`` not above 0, or ``other_act``.

    Example:
        >>> loss = LDAMLoss(frequencies=[0.9, 0.1], softmax=True, to_onehot_y=True)
        >>> round(loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)).item(), 4)
        0.9741
    """

    def __init__(
        self,
        *,
        frequencies: Sequence[float] | Tensor | None = None,
        max_margin: float = 0.5,
        scale: float = 1.0,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(frequencies=frequencies, **options)
        if not 0 <= max_margin < float("inf") or not 0 < scale < float("inf"):
            raise ValueError(f"max_margin must be at least 0 and scale above 0, got {max_margin!r} and {scale!r}")
        self.max_margin, self.scale = max_margin, scale

    def compute(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `ldam_loss`."""
        return ldam_loss(
            logits,
            target,
            frequencies=self.frequencies,
            max_margin=self.max_margin,
            scale=self.scale,
            **self.words(mask),
        )
