"""LCR: regions weighted by how rare they are, and no inner region without the outer one."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.losses._base import CommonOptions
from nnunet_imbal.losses._voxelwise import FrequencyLoss, average_voxels, share_of_each
from nnunet_imbal.ops import one_vs_rest_cross_entropy
from nnunet_imbal.registry import register_loss

__all__ = ["LCRLoss", "implication_loss", "lcr_weights", "nested_pairs", "reweighted_bce_loss"]

_LEAST_SHARE = 1e-4  # published without a limit, which is NaN for a label that is always there
_FORMS = ("logit", "probability")

Pairs = Sequence[Sequence[int]]


def reweighted_bce_loss(
    errors: Tensor,
    target: Tensor,
    weights: tuple[Tensor, Tensor],
    *,
    mask: Tensor | None = None,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of "inside or outside?" for each region, in which the rarer answer weighs more.

    With the cross-entropy :math:`e` and the weights :math:`a_r, b_r` of `lcr_weights`, the mean over voxels and regions
    of :math:`a_r e` inside and :math:`b_r e` outside.

    Args:
        errors: ``(B, R, *S)`` float32 or float64 cross-entropy in nats of each region.
        target: ``(B, R, *S)`` bool.
        weights: ``(R,)`` inside and ``(R,)`` outside.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        batch: treat the batch as one sample.
        weight: ``(R,)`` factors of the regions.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, R)``, what each region adds to the mean of its sample).

    Returns:
        At least 0. Samples without a region count like any other; 0 where all is ignored.

    Example:
        >>> errors, target = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[True, False]]]])
        >>> reweighted_bce_loss(errors, target, (torch.tensor([3.0]), torch.tensor([1.0]))).item()
        1.0
    """
    shape = (1, -1, *[1] * (errors.ndim - 2))
    inside, outside = (each.view(shape) for each in weights)
    counts = torch.ones_like(target) if mask is None else mask.expand_as(target)
    weighted = errors.where(counts, 0) * torch.where(target, inside, outside)
    return average_voxels(weighted, counts, batch=batch, weight=weight, reduction=reduction)


def lcr_weights(shares: Tensor, exponent: float = 0.5, *, cap: float = 50.0) -> tuple[Tensor, Tensor]:
    r"""Weights :math:`a = \pi^{-x} / m` inside and :math:`b = (1 - \pi)^{-x} / m` outside, which are 1 on average.

    With :math:`m = \pi^{1-x} + (1 - \pi)^{1-x}` the mean over all voxels stays 1 for any share :math:`\pi`.

    Args:
        shares: ``(R,)`` of the voxels in each region, taken as 1e-4 to 1 - 1e-4.
        exponent: :math:`x`; 0 = no weights, 1/2 = published default, 1 = inside and outside weigh alike.
        cap: upper limit of each weight.

    Note:
        Published without :math:`m` and ``cap``.

    Example:
        >>> inside, outside = lcr_weights(torch.tensor([0.5, 0.01]))
        >>> inside, outside
        (tensor([1.0000, 9.1325]), tensor([1.0000, 0.9179]))
    """
    shares = shares.clamp(_LEAST_SHARE, 1 - _LEAST_SHARE)
    inside, outside = shares**-exponent, (1 - shares) ** -exponent
    mean = shares * inside + (1 - shares) * outside
    return (inside / mean).clamp(max=cap), (outside / mean).clamp(max=cap)


def implication_loss(
    values: Tensor,
    pairs: Pairs,
    *,
    mask: Tensor | None = None,
    squared: bool = False,
    batch: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""Price of an inner region that is surer than the outer one it lies in, for example of a core without its tumour.

    The mean over voxels and pairs of :math:`\max(0, p_\text{inner} - p_\text{outer})`. 0 as soon as the nesting holds,
    and no pull between regions otherwise.

    Args:
        values: ``(B, R, *S)`` probabilities, or logits with ``squared``.
        pairs: outer and inner channel of each pair, see `nested_pairs`.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        squared: square the difference, for logits.
        batch: treat the batch as one sample.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, pairs)``, what each pair adds to the mean of its sample).

    Returns:
        At least 0, for probabilities at most 1; 0 where all is ignored.

    Note:
        Our replacement for the published term, which pulls together the logits of labels that often occur together:
        where a voxel lies in the outer region only, the pull keeps both probabilities away from 0 and 1.

    Example:
        >>> probs = torch.tensor([0.9, 0.2, 0.5, 0.6]).reshape(1, 2, 1, 2)  # outer, inner
        >>> round(implication_loss(probs, [(0, 1)]).item(), 6)
        0.2
    """
    outer, inner = ([pair[end] for pair in pairs] for end in (0, 1))
    excess = (values[:, inner] - values[:, outer]).relu()
    counts = torch.ones_like(excess, dtype=torch.bool) if mask is None else mask.expand_as(excess)
    excess = excess.where(counts, 0)
    priced = excess.square() if squared else excess
    return average_voxels(priced, counts, batch=batch, weight=None, reduction=reduction)


def nested_pairs(regions: Sequence[int | Sequence[int]]) -> list[tuple[int, int]]:
    """Which region lies directly inside which other, from the labels they are made of.

    Args:
        regions: labels of each channel, as in nnU-Net's ``dataset.json``.

    Returns:
        Channels (outer, inner), sorted; what follows from two other pairs is left out.

    Example:
        >>> nested_pairs([(1, 2, 3), (2, 3), (3,)])  # whole tumour, core, enhancing
        [(0, 1), (1, 2)]
    """
    sets = [{region} if isinstance(region, int) else set(region) for region in regions]
    numbers = range(len(sets))
    inside = {(a, b) for a in numbers for b in numbers if sets[b] < sets[a]}
    return sorted((a, b) for a, b in inside if not any((a, c) in inside and (c, b) in inside for c in numbers))


@register_loss(
    "lcr",
    paper="arXiv 2603.05212; nested regions ours",
    summary="rare regions weigh more, inner ones need their outer one",
)
class LCRLoss(FrequencyLoss):
    """Label-constrained reweighting for regions: `reweighted_bce_loss` plus `implication_loss`.

    Accepts the words of `SegmentationLoss` as well. Exclusive classes are taken one against the rest, background left
    out unless ``include_background``, and imply nothing. To let the implication grow while the reweighting is in force
    from the start, use two terms, one with ``implication = 0``, one with ``reweighting = 0`` and ``ramp_epochs``.

    Args:
        frequencies: share of the voxels of each channel as training draws them; None = no weights.
        exponent: see `lcr_weights`.
        cap: see `lcr_weights`.
        implications: outer and inner channel of each pair of nested regions, see `nested_pairs`; the trainers read it
            from ``dataset.json``. None = no pairs.
        form: ``"probability"`` or ``"logit"``, whose square pulls also where both are sure.
        reweighting: factor of the first part.
        implication: factor of the second part.
        options: see `SegmentationLoss`; called with logits.

    Raises:
        ConfigError: impossible frequencies, or pairs of other than channels.
        ValueError: a negative factor, exponent or cap, an unknown form, pairs of exclusive classes, or ``other_act``.

    Note:
        Source: Wang et al. (arXiv 2603.05212), made for events in time series; published settings and defects in
        ``docs/methods/distribution.md``. No result of the paper is claimed to carry over.

    Example:
        >>> regions = torch.zeros(1, 2, 8, 8)
        >>> regions[:, 0, :4], regions[:, 1, :2] = 1, 1
        >>> loss = LCRLoss(implications=[(0, 1)], sigmoid=True)
        >>> round(loss(torch.zeros(1, 2, 8, 8), regions).item(), 4)
        0.6931
    """

    def __init__(
        self,
        *,
        frequencies: Sequence[float] | Tensor | None = None,
        exponent: float = 0.5,
        cap: float = 50.0,
        implications: Pairs | None = None,
        form: str = "probability",
        reweighting: float = 1.0,
        implication: float = 0.1,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(frequencies=frequencies, **options)
        factors = {"exponent": exponent, "cap": cap, "reweighting": reweighting, "implication": implication}
        for name, value in factors.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
        if form not in _FORMS:
            raise ValueError(f'form must be "probability" or "logit", got {form!r}')
        if implications and self.exclusive:
            raise ValueError("of exclusive classes none implies another; leave out implications, or train on regions")
        self.exponent, self.cap, self.form = exponent, cap, form
        self.implications = [tuple(pair) for pair in implications or ()]
        self.reweighting, self.implication = reweighting, implication

    def compute(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted sum of both parts."""
        loss = self.reweighting * self._reweighted(logits, target, mask)
        return loss + self.implication * self._implied(logits, mask, loss) if self.implications else loss

    def _reweighted(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        first = 0 if self.include_background or not self.exclusive else 1
        target = target[:, first:]
        if self.exclusive:
            errors = one_vs_rest_cross_entropy(logits, target)
        else:
            errors = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
        shares = logits.new_full((logits.shape[1],), 0.5)  # no weights
        if self.frequencies is not None:
            shares = share_of_each(self.frequencies, logits, self.exclusive)
        return reweighted_bce_loss(
            errors,
            target,
            lcr_weights(shares[first:], self.exponent, cap=self.cap),
            mask=mask,
            **self.averaging,
        )

    def _implied(self, logits: Tensor, mask: Tensor | None, loss: Tensor) -> Tensor:
        channels = logits.shape[1]
        if not all(0 <= channel < channels for pair in self.implications for channel in pair):
            raise ConfigError(f"implications name channels from 0 to {channels - 1}, got {self.implications}")
        squared = self.form == "logit"
        values = logits if squared else torch.sigmoid(logits)
        priced = implication_loss(
            values, self.implications, mask=mask, squared=squared, batch=self.batch, reduction=self.reduction
        )
        if self.reduction != "none":
            return priced
        inner = torch.tensor([pair[1] for pair in self.implications], device=logits.device)
        return torch.zeros_like(loss).index_add(1, inner, priced)
