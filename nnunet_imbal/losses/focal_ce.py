"""Focal cross-entropy with a guard: less weight for what is easy, without hiding rare classes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.focal_guard import calibrate_focal, safe_exponents
from nnunet_imbal.losses._base import CommonOptions
from nnunet_imbal.losses._voxelwise import (
    FrequencyLoss,
    average_voxels,
    per_channel,
    true_class_error,
    voxels_of,
    what_is_true,
)
from nnunet_imbal.registry import register_loss

__all__ = ["FocalCELoss", "focal_ce_loss"]

_SURE = 1e-12  # where the slope of (1 - p)^γ with γ < 1 is no longer finite


def focal_ce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor = 2.0,
    exclusive: bool = True,
    mask: Tensor | None = None,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy in which a voxel weighs the less, the surer the network is of the truth.

    With the probability :math:`p_y` of what is true, :math:`L = -(1 - p_y)^{\gamma_y} \log p_y`, averaged over voxels.
    What that does to rare classes: `nnunet_imbal.focal_guard`.

    Args:
        logits: ``(B, C, *S)`` float32 or float64, 2-D or 3-D, background included, 0 where ignored.
        target: ``(B, C, *S)`` bool, one-hot classes with background or overlapping regions, False where ignored.
        gamma: 0 = plain cross-entropy; one number, or ``(C,)``, the one of the true class counts.
        exclusive: softmax of classes; otherwise a sigmoid for each region.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        batch: treat the batch as one sample.
        weight: see `logit_adjusted_ce_loss`.
        reduction: see `logit_adjusted_ce_loss`.

    Returns:
        At least 0. Samples of nothing but background count like any other; 0 where all is ignored.

    Raises:
        ConfigError: exponents or weights do not fit the channels.

    Note:
        Source: Lin et al. (arXiv 1708.02002). A mean over voxels, as torch's cross-entropy; MONAI's ``FocalLoss`` with
        softmax divides by the number of classes as well. Exponents per class are ours.

    Example:
        >>> target = torch.tensor([[[[True, True]], [[False, False]]]])
        >>> logits = torch.tensor([[[[0.0, 3.0]], [[0.0, 0.0]]]])
        >>> [round(focal_ce_loss(logits, target, gamma=gamma).item(), 4) for gamma in (0.0, 2.0)]
        [0.3709, 0.0867]
    """
    counts = voxels_of(target, mask, exclusive)
    errors = true_class_error(logits, target) if exclusive else what_is_true(logits, target, counts, exclusive)
    exponents = _exponent_of_each(gamma, logits, target, exclusive)
    focused = errors * (-torch.expm1(-errors)).clamp(min=_SURE).pow(exponents)
    focused = torch.where(counts, focused, 0) if exclusive else focused
    return average_voxels(focused, counts, batch=batch, weight=weight, reduction=reduction)


def _exponent_of_each(gamma: float | Tensor, logits: Tensor, target: Tensor, exclusive: bool) -> float | Tensor:
    if not isinstance(gamma, Tensor):
        return gamma
    exponents = per_channel("gamma", gamma, logits).view(1, -1, *[1] * (target.ndim - 2))
    return (exponents * target).sum(1, keepdim=True) if exclusive else exponents


@register_loss(
    "focal_ce", paper="arXiv 1708.02002; guard ours", summary="easy voxels weigh less, rare classes stay safe"
)
class FocalCELoss(FrequencyLoss):
    """Focal cross-entropy: `focal_ce_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Knowing the frequencies, it looks first whether the focal loss would hide rare classes, in the whole patch or inside
    the body, and then focuses only the classes of which that is safe (`nnunet_imbal.focal_guard.safe_exponents`).

    Args:
        frequencies: share of the voxels of each channel as training draws them; None = nothing to guard.
        gamma: exponent, or one for each channel, which nobody changes.
        guard: whether to change ``gamma`` where rare classes would be hidden.
        options: see `SegmentationLoss`; called with logits.

    Attributes:
        exponents: the γ of each class in force; a number if it is the same for all.
        guarded: whether it is another than ``gamma``.

    Raises:
        ConfigError: impossible frequencies, or other than channels.
        ValueError: a negative or infinite ``gamma``, or ``other_act``.

    Example:
        >>> loss = FocalCELoss(frequencies=[0.3, 0.25, 0.2, 0.15, 0.0999, 0.0001], softmax=True, to_onehot_y=True)
        >>> loss.exponents.tolist()
        [2.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        >>> FocalCELoss(frequencies=[0.97, 0.02, 0.01], softmax=True, to_onehot_y=True).exponents
        2.0
    """

    exponents: float | Tensor

    def __init__(
        self,
        *,
        frequencies: Sequence[float] | Tensor | None = None,
        gamma: float | Sequence[float] = 2.0,
        guard: bool = True,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(frequencies=frequencies, **options)
        given = torch.as_tensor(gamma, dtype=torch.float32)
        if given.ndim > 1 or not (given.isfinite().all() and (given >= 0).all()):
            raise ValueError(f"gamma must be finite and at least 0, got {gamma!r}")
        exponents = given
        if guard and given.ndim == 0 and self.exclusive and self.frequencies is not None:
            exponents = torch.tensor(safe_exponents(self.frequencies.cpu().numpy(), float(given)), dtype=torch.float32)
        self.guarded = bool((exponents != given).any())
        if exponents.unique().numel() == 1:
            self.exponents = float(exponents.flatten()[0])
        else:
            self.register_buffer("exponents", exponents)

    def compute(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `focal_ce_loss`."""
        if self.frequencies is not None:
            per_channel("frequencies", self.frequencies, logits)  # of another network they would guard nothing
        return focal_ce_loss(logits, target, gamma=self.exponents, **self.words(mask))

    def calibrate(self, probs: Tensor) -> Tensor:
        """Undo what the focal loss did to the probabilities of exclusive classes, for thresholds and averages.

        Args:
            probs: ``(B, C, *S)`` softmax of a network trained with this loss.

        Returns:
            Probabilities of the same shape and dtype, see `nnunet_imbal.focal_guard.calibrate_focal`. With one γ for
            all, the largest class stays the largest.

        Example:
            >>> loss = FocalCELoss(gamma=2.0, softmax=True)
            >>> loss.calibrate(torch.tensor([0.6942, 0.3058]).view(1, 2, 1, 1)).flatten()
            tensor([0.9000, 0.1000])
        """
        exponents = self.exponents.tolist() if isinstance(self.exponents, Tensor) else self.exponents
        last = calibrate_focal(probs.detach().movedim(1, -1).cpu().numpy(), exponents)
        return torch.from_numpy(np.moveaxis(last, -1, 1).copy()).to(probs)
