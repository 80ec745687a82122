"""Focal Tversky: misses cost more than false alarms, and classes that go badly cost most."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions, SegmentationLoss
from nnunet_imbal.losses._vessels import average_classes, present_classes, total
from nnunet_imbal.registry import register_loss

__all__ = ["FocalTverskyLoss", "focal_tversky_loss", "tversky_index"]

_PERFECT = 1e-7  # short of a perfect score, because the slope of x^(1/γ) at 0 is infinite for γ > 1


def focal_tversky_loss(
    probs: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Tversky score of every class, with misses dearer than false alarms, raised to a power.

    With the score :math:`T_c` of `tversky_index`, :math:`L_c = (1 - T_c)^{1/\gamma}`, averaged over present classes,
    then over samples with a class. Above 1, :math:`\gamma` keeps pulling at classes that are almost right.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool, one-hot classes or overlapping regions, False where ignored.
        alpha: cost of false alarms.
        beta: cost of misses.
        gamma: 1 = plain Tversky.
        smooth_nr: added to the numerator of the score.
        smooth_dr: added to its denominator.
        batch: treat the batch as one sample.
        weight: ``(C,)`` factors of the classes.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, 0 for absent classes).

    Returns:
        0 to 1; up to 6e-6 for a perfect prediction. 0 with zero gradient if no class is present.

    Note:
        Source: Abraham and Khan (arXiv 1810.07842), there a sum over classes. The mean over present classes is ours.
        ``alpha = beta = 0.5, gamma = 1`` is a soft Dice.

    Example:
        >>> probs = torch.tensor([0.9, 0.6, 0.2, 0.1]).reshape(1, 1, 1, 4)
        >>> target = torch.tensor([True, True, False, False]).reshape(1, 1, 1, 4)
        >>> round(focal_tversky_loss(probs, target).item(), 4)
        0.3287
    """
    target = target > 0
    hit, mass, volume = (total(part, batch) for part in (torch.where(target, probs, 0), probs, target))
    score = tversky_index(hit, mass, volume, alpha, beta, smooth_nr, smooth_dr)
    loss = ((1 - score).clamp(min=0) + _PERFECT) ** (1 / gamma)
    # Adding nothing, this keeps an empty batch connected to the graph and a NaN visible.
    return average_classes(loss, present_classes(target, batch), weight, reduction) + 0 * score.sum()


def tversky_index(
    hit: Tensor, mass: Tensor, volume: Tensor, alpha: float, beta: float, smooth_nr: float, smooth_dr: float
) -> Tensor:
    r"""Overlap :math:`T = \frac{TP + s_n}{TP + \alpha FP + \beta FN + s_d}`; 1 is perfect.

    Args:
        hit: sums of the probabilities inside of what is true, any shape.
        mass: sums of all probabilities.
        volume: voxels that are true.
        alpha: cost of false alarms.
        beta: cost of misses.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.

    Example:
        >>> tversky_index(torch.tensor(0.75), torch.tensor(1.25), torch.tensor(1), 0.5, 0.5, 0, 0)
        tensor(0.6667)
    """
    return (hit + smooth_nr) / (hit + alpha * (mass - hit) + beta * (volume - hit) + smooth_dr)


@register_loss(
    "focal_tversky", paper="arXiv 1810.07842; multi-class ours", summary="misses cost more, classes that go badly most"
)
class FocalTverskyLoss(SegmentationLoss):
    """Focal Tversky: `focal_tversky_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        alpha: cost of false alarms.
        beta: cost of misses.
        gamma: 1 = plain Tversky; above 1 pulls at classes that are almost right.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: a negative cost, or both 0, or ``gamma`` not above 0.

    Example:
        >>> labels = torch.zeros(1, 1, 8, 8)
        >>> labels[..., :4] = 1
        >>> round(FocalTverskyLoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 8, 8), labels).item(), 4)
        0.5946
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = False

    def __init__(
        self, *, alpha: float = 0.3, beta: float = 0.7, gamma: float = 4 / 3, **options: Unpack[CommonOptions]
    ) -> None:
        super().__init__(**options)
        costs, infinite = (alpha, beta), float("inf")
        if not all(0 <= cost < infinite for cost in costs) or not any(costs) or not 0 < gamma < infinite:
            raise ValueError(
                f"alpha and beta must be at least 0 and not both 0, gamma above 0; got {alpha!r}, {beta!r}, {gamma!r}"
            )
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `focal_tversky_loss`; ignored voxels are 0 in both arguments already."""
        return focal_tversky_loss(
            probs,
            target,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
