"""Unified focal: focal cross-entropy and focal Tversky in one, for several rare classes at once."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from typing_extensions import Unpack

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.losses._base import CommonOptions
from nnunet_imbal.losses._vessels import average_classes, total
from nnunet_imbal.losses._voxelwise import VoxelLoss, average_voxels, per_channel
from nnunet_imbal.losses.focal_tversky import tversky_index
from nnunet_imbal.registry import register_loss

__all__ = ["UnifiedFocalLoss", "unified_focal_loss"]

_SURE = 1e-12  # where the slope of (1 - p)^γ with γ < 1 is no longer finite
_PERFECT = 1e-8


def unified_focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    rare: Sequence[int] | None = None,
    delta: float = 0.6,
    gamma: float = 0.5,
    cross_entropy: float = 0.5,
    mask: Tensor | None = None,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy that forgives easy voxels of frequent classes, plus Tversky that insists on rare ones.

    With rare classes :math:`R`, the probability :math:`p_y` of the true class, and Tversky scores :math:`T_c` with cost
    :math:`\delta` of misses and :math:`1 - \delta` of false alarms, :math:`L = \omega L_F + (1 - \omega) L_{FT}`:
    :math:`L_F` is half the mean over voxels of :math:`-\delta \log p_y` where :math:`y \in R` and of
    :math:`-(1 - \delta)(1 - p_y)^\gamma \log p_y` elsewhere; :math:`L_{FT}` is the mean over present classes of
    :math:`(1 - T_c)^{1-\gamma}` for rare ones and of :math:`1 - T_c` for others.

    Args:
        logits: ``(B, C, *S)`` float32 or float64, 2-D or 3-D, background included, 0 where ignored.
        target: ``(B, C, *S)`` bool, one-hot classes with background, False where ignored.
        rare: channels that are rare. None = all but background.
        delta: from 0 to 1, above one half for more recall.
        gamma: from 0 to below 1.
        cross_entropy: :math:`\omega`.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        batch: treat the batch as one sample.
        weight: ``(C,)`` factors of the classes, in both parts; ``(C-1,)``: background weighs 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, sums of what each class adds to the two parts).

    Returns:
        At least 0. Samples of nothing but background count like any other; 0 where all is ignored.

    Raises:
        ConfigError: ``rare`` names a channel there is not, or weights do not fit the channels.

    Note:
        Source: the asymmetric form of Yeung et al. (arXiv 2102.04525) for one class and background. For two classes
        equal to MONAI's ``AsymmetricUnifiedFocalLoss``, which takes probabilities, and which gives all further classes
        no gradient at all. Several classes are ours, and the mean over present classes.

    Example:
        >>> probs = torch.tensor([[[[0.1, 0.8, 0.4, 0.7]], [[0.9, 0.2, 0.6, 0.3]]]])
        >>> truth = torch.tensor([1, 0, 1, 0])
        >>> target = torch.stack([truth == 0, truth == 1]).view(1, 2, 1, 4)
        >>> round(unified_focal_loss(probs.log(), target).item(), 6)
        0.217986
    """
    is_rare = _rare_channels(rare, logits)
    masks = [None] * len(logits) if mask is None else mask.split(1)
    samples = zip(logits.split(1), target.split(1), masks, strict=True)
    # Computed again on the way back, sample by sample: softmax and its logarithm are as big as the logits.
    words = (is_rare, delta, gamma)
    sums = torch.cat([checkpoint(_sums, *sample, *words, use_reentrant=False) for sample in samples], 1)
    sums = sums.sum(1, keepdim=True) if batch else sums
    errors, hit, mass, volume = sums
    focal = average_voxels(errors[..., None], volume[..., None], batch=False, weight=weight, reduction=reduction)
    lack = (1 - tversky_index(hit, mass, volume, 1 - delta, delta, _PERFECT, _PERFECT)).clamp(min=0)
    lack = torch.where(is_rare, (lack + _PERFECT) ** (1 - gamma), lack)
    factors = None if weight is None else per_channel("weight", weight, lack, background=1.0)
    return cross_entropy * focal + (1 - cross_entropy) * average_classes(lack, volume > 0, factors, reduction)


def _sums(logits: Tensor, target: Tensor, mask: Tensor | None, is_rare: Tensor, delta: float, gamma: float) -> Tensor:
    """Half the priced cross-entropy, overlap, probability and volume of each class: ``(4, B, C)``."""
    scores = torch.log_softmax(logits, 1)
    errors = -scores.where(target, 0).sum(1, keepdim=True)
    hard = (-torch.expm1(-errors)).clamp(min=_SURE) ** gamma
    where_rare = (target & is_rare.view(1, -1, *[1] * (target.ndim - 2))).any(1, keepdim=True)
    priced = torch.where(where_rare, delta * errors, (1 - delta) * hard * errors) / 2
    probs = scores.exp() if mask is None else scores.exp().where(mask, 0)
    parts = priced.where(target, 0), probs.where(target, 0), probs, target
    return torch.stack([total(part, batch=False).to(probs) for part in parts])


def _rare_channels(rare: Sequence[int] | None, logits: Tensor) -> Tensor:
    channels = logits.shape[1]
    chosen = range(1, channels) if rare is None else rare
    if not all(0 <= channel < channels for channel in chosen):
        raise ConfigError(f"rare names channels from 0 to {channels - 1}, got {list(chosen)}")
    return torch.tensor([channel in chosen for channel in range(channels)], device=logits.device)


@register_loss(
    "unified_focal",
    paper="arXiv 2102.04525; multi-class ours",
    summary="forgives easy background, insists on rare classes",
)
class UnifiedFocalLoss(VoxelLoss):
    """Unified focal loss: `unified_focal_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        rare: channels that are rare; None = all but background.
        delta: above one half for more recall.
        gamma: from 0 to below 1.
        cross_entropy: share of the cross-entropy; the rest is Tversky.
        options: see `SegmentationLoss`; called with logits.

    Raises:
        NotImplementedError: overlapping regions (``sigmoid``), which have no background to forgive.
        ValueError: ``delta``, ``gamma`` or ``cross_entropy`` out of range, or ``other_act``.

    Example:
        >>> labels = torch.zeros(1, 1, 8, 8)
        >>> labels[..., :4] = 1
        >>> round(UnifiedFocalLoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 8, 8), labels).item(), 4)
        0.3783
    """

    supports_regions = False

    def __init__(
        self,
        *,
        rare: Sequence[int] | None = None,
        delta: float = 0.6,
        gamma: float = 0.5,
        cross_entropy: float = 0.5,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**options)
        if self.sigmoid:
            raise NotImplementedError("overlapping regions have no common background; use focal_ce and focal_tversky")
        if not (0 <= delta <= 1 and 0 <= gamma < 1 and 0 <= cross_entropy <= 1):
            raise ValueError(
                "delta and cross_entropy must be from 0 to 1, gamma from 0 to below 1; "
                f"got {delta!r}, {cross_entropy!r}, {gamma!r}"
            )
        self.rare = rare
        self.delta, self.gamma, self.cross_entropy = delta, gamma, cross_entropy

    def compute(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `unified_focal_loss`."""
        return unified_focal_loss(
            logits,
            target,
            rare=self.rare,
            delta=self.delta,
            gamma=self.gamma,
            cross_entropy=self.cross_entropy,
            mask=mask,
            **self.averaging,
        )
