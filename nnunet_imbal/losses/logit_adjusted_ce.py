"""Logit adjustment: cross-entropy that takes the frequency of the classes out of the network's answer."""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions
from nnunet_imbal.losses._voxelwise import FrequencyLoss, average_voxels, share_of_each, voxels_of, what_is_true
from nnunet_imbal.registry import register_loss

__all__ = ["LogitAdjustedCELoss", "adjust_logits", "logit_adjusted_ce_loss"]


def logit_adjusted_ce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    frequencies: Tensor | None = None,
    tau: float = 0.5,
    exclusive: bool = True,
    mask: Tensor | None = None,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy after a head start for frequent classes, so that the network need not learn it and forgets it.

    With frequencies :math:`\pi`, logits :math:`s` and true class :math:`y`,
    :math:`L = -\log \mathrm{softmax}(s + \tau \log \pi)_y`, averaged over voxels; for a region
    :math:`\tau \log \frac{\pi}{1 - \pi}` is added to the logit of a sigmoid. The prediction is that of the bare
    :math:`s`: rare classes win more often.

    **Mind the false alarms.** :math:`\tau = 1` is best for an error that counts each class alike, not for Dice. With
    97 % background and a structure of 0.003 % it is a handicap of 10.4 nats for background.

    Args:
        logits: ``(B, C, *S)`` float32 or float64, 2-D or 3-D, background included, 0 where ignored.
        target: ``(B, C, *S)`` bool, one-hot classes with background or overlapping regions, False where ignored.
        frequencies: ``(C,)`` share of the voxels of each channel as training draws them, taken as at least 1e-5.
            None = all alike, which makes this plain cross-entropy.
        tau: 0 = plain cross-entropy, 1 = balanced softmax (published).
        exclusive: softmax of classes; otherwise a sigmoid for each region.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        batch: treat the batch as one sample.
        weight: ``(C,)`` factors of the classes, as in torch's cross-entropy; ``(C-1,)``: background weighs 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, what each class adds to the mean of its sample).

    Returns:
        At least 0, in nats. Samples of nothing but background count like any other; 0 where all is ignored.

    Raises:
        ConfigError: frequencies or weights do not fit the channels.

    Note:
        Source: Menon et al. (arXiv 2007.07314); with :math:`\tau = 1` balanced softmax (Ren et al., arXiv 2007.10740).
        The default of one half, the least share and regions are ours.

    Example:
        >>> logits = torch.zeros(1, 2, 1, 1)
        >>> rare = torch.tensor([False, True]).reshape(1, 2, 1, 1)
        >>> prior = torch.tensor([0.99, 0.01])
        >>> [round(logit_adjusted_ce_loss(logits, rare, frequencies=prior, tau=tau).item(), 3) for tau in (0, 1)]
        [0.693, 4.605]
    """
    counts = voxels_of(target, mask, exclusive)
    offset = tau * _head_start(share_of_each(frequencies, logits, exclusive), exclusive)
    errors = what_is_true(logits + offset.view(1, -1, *[1] * (logits.ndim - 2)), target, counts, exclusive)
    return average_voxels(errors, counts, batch=batch, weight=weight, reduction=reduction)


def adjust_logits(logits: Tensor, frequencies: Tensor, tau: float = 1.0, *, exclusive: bool = True) -> Tensor:
    r"""Take the frequencies out of a network that learned with plain cross-entropy: :math:`s - \tau \log \pi`.

    Never on top of `logit_adjusted_ce_loss`, which has done it already.

    Args:
        logits: ``(B, C, *S)`` float.
        frequencies: ``(C,)``, see `logit_adjusted_ce_loss`.
        tau: how much of them.
        exclusive: classes of a softmax; otherwise regions.

    Returns:
        Logits of the same shape, for ``argmax`` or a threshold at 0.

    Raises:
        ConfigError: frequencies do not fit the channels.

    Example:
        >>> adjust_logits(torch.tensor([[[2.0]], [[0.0]]]).view(1, 2, 1), torch.tensor([0.99, 0.01])).argmax(1).item()
        1
    """
    offset = tau * _head_start(share_of_each(frequencies, logits, exclusive), exclusive)
    return logits - offset.view(1, -1, *[1] * (logits.ndim - 2))


def _head_start(shares: Tensor, exclusive: bool) -> Tensor:
    return shares.log() if exclusive else torch.logit(shares)


@register_loss(
    "logit_adjusted_ce",
    paper="arXiv 2007.07314; regions ours",
    summary="cross-entropy without the frequency of classes",
)
class LogitAdjustedCELoss(FrequencyLoss):
    """Logit-adjusted cross-entropy: `logit_adjusted_ce_loss` as a module. Accepts the words of `SegmentationLoss`.

    Args:
        frequencies: share of the voxels of each channel as training draws them; None = plain cross-entropy.
        tau: 0 = plain cross-entropy, 1 = balanced softmax.
        options: see `SegmentationLoss`; called with logits.

    Raises:
        ConfigError: impossible frequencies, or other than channels.
        ValueError: ``tau`` is negative or not finite, or ``other_act``.

    Example:
        >>> loss = LogitAdjustedCELoss(frequencies=[0.9, 0.1], tau=1.0, softmax=True, to_onehot_y=True)
        >>> round(loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)).item(), 4)
        2.3026
    """

    def __init__(
        self,
        *,
        frequencies: Sequence[float] | Tensor | None = None,
        tau: float = 0.5,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(frequencies=frequencies, **options)
        if not 0 <= tau < float("inf"):
            raise ValueError(f"tau must be a finite number of at least 0, got {tau!r}")
        self.tau = tau

    def compute(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `logit_adjusted_ce_loss`."""
        return logit_adjusted_ce_loss(logits, target, frequencies=self.frequencies, tau=self.tau, **self.words(mask))
