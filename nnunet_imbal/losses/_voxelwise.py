"""What losses of single voxels share: the cross-entropy of what is true, class frequencies, and the mean."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Unpack

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.losses._base import Averaging, CommonOptions, SegmentationLoss
from nnunet_imbal.losses._reduce import mean_where
from nnunet_imbal.losses._vessels import total

__all__ = [
    "FrequencyLoss",
    "VoxelLoss",
    "VoxelWords",
    "average_voxels",
    "per_channel",
    "share_of_each",
    "true_class_error",
    "voxels_of",
    "what_is_true",
]

LEAST_SHARE = 1e-5  # a class that was never drawn must not get infinite weight


class VoxelWords(Averaging):
    """The words that every function of a loss of single voxels takes."""

    exclusive: bool
    mask: Tensor | None


def voxels_of(target: Tensor, mask: Tensor | None, exclusive: bool) -> Tensor:
    """Which voxels count for which channel, bool ``(B, C, *S)``: those of the class; for a region all."""
    if exclusive:
        return target
    return torch.ones_like(target) if mask is None else mask.expand_as(target)


def what_is_true(logits: Tensor, target: Tensor, counts: Tensor, exclusive: bool) -> Tensor:
    """Cross-entropy of what is true, ``(B, C, *S)`` in nats: in the channel of the true class, or of each region."""
    if exclusive:
        return -torch.log_softmax(logits, 1).where(target, 0)
    errors = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return errors.where(counts, 0)


def true_class_error(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the true one of exclusive classes, ``(B, 1, *S)`` in nats; 0 where none is true."""
    return -torch.log_softmax(logits, 1).where(target, 0).sum(1, keepdim=True)


def average_voxels(errors: Tensor, counts: Tensor, *, batch: bool, weight: Tensor | None, reduction: str) -> Tensor:
    """Mean over voxels, each with the weight of its class, then over samples.

    Args:
        errors: ``(B, C, *S)``, 0 where ``counts`` is False.
        counts: bool ``(B, C, *S)``, see `voxels_of`.
        batch: treat the batch as one sample.
        weight: ``(C,)``, or ``(C-1,)`` for the classes without the background, which then weighs 1.
        reduction: ``"mean"``; ``"none"``: what each class adds to it, ``(B, C)``; ``"sum"``: the sum of that.

    Raises:
        ConfigError: ``weight`` has another length.
    """
    sums, voxels = total(errors, batch), total(counts, batch)
    if weight is not None:
        factors = per_channel("weight", weight, sums, background=1.0)
        sums, voxels = sums * factors, voxels * factors
    voxels = voxels.sum(1, keepdim=True)
    shares = sums / torch.where(voxels > 0, voxels, 1)
    if reduction == "none":
        return shares
    return shares.sum() if reduction == "sum" else mean_where(shares.sum(1), voxels[:, 0] > 0, 0)


def per_channel(what: str, values: Tensor, like: Tensor, background: float | None = None) -> Tensor:
    """One number per channel, in the dtype of ``like``, which has its channels along axis 1.

    Args:
        what: for the message.
        values: ``(C,)``; with ``background`` also ``(C-1,)``.
        like: any tensor with C channels.
        background: number of channel 0 where it is left out.

    Raises:
        ConfigError: another length.
    """
    channels = like.shape[1]
    if background is not None and values.numel() == channels - 1:
        values = F.pad(values, (1, 0), value=background)
    if values.numel() != channels:
        raise ConfigError(
            f"{what} holds {values.numel()} numbers, but there are {channels} channels; give one for each"
        )
    return values.to(like.dtype)


def share_of_each(frequencies: Tensor | None, logits: Tensor, exclusive: bool) -> Tensor:
    """Share of the voxels of each channel, ``(C,)`` from 1e-5 on; all alike if nobody measured.

    Raises:
        ConfigError: ``frequencies`` is not one number for each channel.
    """
    channels = logits.shape[1]
    if frequencies is None:
        return logits.new_full((channels,), 1 / channels if exclusive else 0.5)
    shares = per_channel("frequencies", frequencies, logits)
    if exclusive:
        return (shares / shares.sum()).clamp(min=LEAST_SHARE)
    return shares.clamp(LEAST_SHARE, 1 - LEAST_SHARE)


class VoxelLoss(SegmentationLoss):
    """Base of losses that look at single voxels of all channels.

    Background is a class like the others here: without it nothing says where a structure ends. So ``weight`` has one
    factor per channel, or per channel without the background, which then weighs 1.

    Args:
        options: see `SegmentationLoss`. Called with logits; without an activation they are taken for those of exclusive
            classes if the target is a label map, else of regions.

    Raises:
        ValueError: ``other_act``: only softmax and sigmoid have a cross-entropy here.
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = False
    takes_logits = True
    counts_empty = True

    def __init__(self, **options: Unpack[CommonOptions]) -> None:
        super().__init__(**options)
        if self.other_act is not None:
            raise ValueError(f"{self.name} takes logits and applies softmax or sigmoid itself; leave out other_act")
        self.exclusive = not self.sigmoid and (self.softmax or self.to_onehot_y)

    def words(self, mask: Tensor | None) -> VoxelWords:
        """Words for the function of the loss."""
        return {"exclusive": self.exclusive, "mask": mask, **self.averaging}


class FrequencyLoss(VoxelLoss):
    """Base of losses that may know how frequent each class is.

    Args:
        frequencies: share of the voxels of each channel, background included, as training draws them, see
            `nnunet_imbal.frequencies.measure_prior`. Exclusive classes are scaled to sum 1, so counts will do. The
            trainers measure it; None elsewhere = all channels alike.
        options: see `VoxelLoss`.

    Raises:
        ConfigError: frequencies are negative or not finite, or shares of regions above 1.
    """

    frequencies: Tensor | None

    def __init__(
        self, *, frequencies: Sequence[float] | Tensor | None = None, **options: Unpack[CommonOptions]
    ) -> None:
        super().__init__(**options)
        self.register_buffer("frequencies", None if frequencies is None else _checked(frequencies, self.exclusive))


def _checked(frequencies: Sequence[float] | Tensor, exclusive: bool) -> Tensor:
    shares = torch.as_tensor(frequencies, dtype=torch.float32)
    valid = shares.ndim == 1 and bool(shares.isfinite().all() and (shares >= 0).all() and shares.any())
    if not valid or not (exclusive or (shares <= 1).all()):
        limits = "numbers of at least 0, not all 0" if exclusive else "shares from 0 to 1, not all 0, one per region"
        raise ConfigError(f"frequencies must be {limits}; got {frequencies!r}")
    return shares
