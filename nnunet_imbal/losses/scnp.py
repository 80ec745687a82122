"""SCNP: each voxel answers for the worst voxel of its class beside it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import Unpack

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.losses._base import CommonOptions, SegmentationLoss
from nnunet_imbal.losses._vessels import average_classes, present_classes, total
from nnunet_imbal.registry import register_loss

__all__ = ["SCNPLoss", "same_class_neighbor_penalty", "scnp_loss"]


def same_class_neighbor_penalty(logits: Tensor, target: Tensor, size: int = 3, mask: Tensor | None = None) -> Tensor:
    r"""Give each voxel the worst logit among its neighbours of the same class, so that one weak voxel spoils several.

    With the box :math:`N(v)` of ``size`` voxels along each axis, channel by channel:
    :math:`\tilde z_v = \min_{u \in N(v),\,y_u = 1} z_u` where the class is present (:math:`y_v = 1`), and
    :math:`\max_{u \in N(v),\,y_u = 0} z_u` where it is absent. The gradient goes to the voxel that was the worst.

    Args:
        logits: ``(B, C, *S)`` of any float dtype, 2-D or 3-D, background included.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions.
        size: odd number of voxels.
        mask: ``(B, 1, *S)`` bool, False = ignored: no neighbour of others, and left as it is.

    Returns:
        Logits of the same shape and dtype, nowhere better than the given ones.

    Raises:
        ConfigError: shapes differ, or ``size`` is not odd.

    Note:
        Source: SCNP (arXiv 2603.18671), a transform used while training only. It hides the other voxels behind a large
        constant; infinity, and leaving out ignored voxels, are ours.

    Example:
        >>> logits, vessel = torch.tensor([[[[3.0, -1.0, 2.0, -4.0]]]]), torch.tensor([[[[1, 1, 1, 0]]]])
        >>> same_class_neighbor_penalty(logits, vessel)
        tensor([[[[-1., -1., -1., -4.]]]])
    """
    if logits.shape != target.shape or logits.ndim not in (4, 5):
        shapes = f"{tuple(logits.shape)} and {tuple(target.shape)}"
        raise ConfigError(f"logits and target must share one shape (B, C, *S) with 2 or 3 axes, got {shapes}")
    _check_size(size)
    if logits.numel() == 0:
        return logits.clone()
    counts = torch.ones_like(target[:, :1], dtype=torch.bool) if mask is None else mask.bool()
    with torch.no_grad():
        samples = zip(logits.detach().split(1), target.bool().split(1), counts.split(1), strict=True)
        index = torch.int32 if logits.numel() <= torch.iinfo(torch.int32).max else torch.int64
        places = torch.cat([_worst_places(*sample, size).to(index) for sample in samples])
    rows = torch.arange(places.shape[:2].numel(), dtype=index, device=places.device).view(*places.shape[:2], 1)
    places = places.flatten(2).add_(rows * logits.shape[2:].numel()).flatten()
    picked: Tensor = _Pick.apply(logits.flatten(), places)
    return picked.view(logits.shape)


class _Pick(torch.autograd.Function):
    """Values at some places; keeps small indices, where autograd's own graph would keep int64."""

    @staticmethod
    def forward(values: Tensor, places: Tensor) -> Tensor:
        return values.gather(0, places.long())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        # One dimension, because only there torch promises a fixed order of sums on a GPU.
        return torch.zeros_like(grad).scatter_add_(0, places.long(), grad), None


def _worst_places(logits: Tensor, target: Tensor, counts: Tensor, size: int) -> Tensor:
    """Number of the worst voxel of the same class around each voxel, int64 of the shape of ``logits``."""
    own = torch.arange(logits.shape[2:].numel(), device=logits.device).view(logits.shape[2:])
    channels = []
    for scores, truth in zip(logits.split(1, 1), target.split(1, 1), strict=True):
        lowest = _highest_places(-scores, truth & counts, size)
        highest = _highest_places(scores, ~truth & counts, size)
        channels.append(torch.where(counts, torch.where(truth, lowest, highest), own))
    return torch.cat(channels, 1)


def _highest_places(scores: Tensor, among: Tensor, size: int) -> Tensor:
    pool = F.max_pool2d if scores.ndim == 4 else F.max_pool3d
    return pool(scores.where(among, -torch.inf), size, 1, size // 2, return_indices=True)[1]


def scnp_loss(
    logits: Tensor,
    target: Tensor,
    *,
    size: int = 3,
    exclusive: bool = True,
    include_background: bool = False,
    mask: Tensor | None = None,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Dice and cross-entropy, for which each voxel answers for the worst voxel of its class beside it.

    With :math:`\tilde z` of `same_class_neighbor_penalty`, :math:`p = \mathrm{softmax}(\tilde z)` and the mean
    cross-entropy :math:`\bar e_b` of sample :math:`b` over the voxels that count,
    :math:`L_{b,c} = 1 - \frac{2 \sum p\,y + s_n}{\sum p + \sum y + s_d} + \bar e_b`, averaged over present classes,
    then over samples with a class.

    Args:
        logits: ``(B, C, *S)`` float32 or float64, 2-D or 3-D, background included, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes with background or overlapping regions, 0 where ignored.
        size: odd number of voxels.
        exclusive: take a softmax; otherwise channels are overlapping regions with a sigmoid each, and the
            cross-entropy is the mean over regions.
        include_background: whether channel 0 is a class of the Dice. It always is one of the cross-entropy.
        mask: ``(B, 1, *S)`` bool, False = ignored.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.
        batch: treat the batch as one sample.
        weight: factors of the classes of the Dice.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (``(B, C)``, 0 for absent classes).

    Returns:
        At least 0. 0 with zero gradient if there is no class at all.

    Note:
        Source: SCNP (arXiv 2603.18671) changes logits; the loss behind is free. Dice and cross-entropy are as in
        nnU-Net, but classes and samples in which nothing is true are left out, as by all our losses: keep nnU-Net's own
        loss beside it, which punishes false alarms there.

    Example:
        >>> target = torch.tensor([[[[1, 1, 0, 0]], [[0, 0, 1, 1]]]]) > 0
        >>> logits = torch.tensor([[[[0.0, 0.0, 0.0, 0.0]], [[-5.0, 1.0, 5.0, 5.0]]]])
        >>> [round(scnp_loss(logits, target, size=size).item(), 3) for size in (1, 3)]
        [0.492, 0.931]
    """
    target = target.bool()
    counts = torch.ones_like(target[:, :1]) if mask is None else mask.bool()
    worst = same_class_neighbor_penalty(logits, target, size, counts)
    samples = zip(worst.split(1), target.split(1), counts.split(1), strict=True)
    # Computed again on the way back, sample by sample: softmax and its logarithm are as big as the logits.
    sums = torch.cat([checkpoint(_sums, *sample, exclusive, use_reentrant=False) for sample in samples], 1)
    shared, mass, volume, wrong = sums.sum(1, keepdim=True) if batch else sums
    voxels = counts.flatten(2).sum(2)
    voxels = (voxels.sum(0, keepdim=True) if batch else voxels).clamp(min=1)
    error = wrong.sum(1, keepdim=True) / (voxels if exclusive else voxels * target.shape[1])
    dice = (2 * shared + smooth_nr) / (mass + volume + smooth_dr)
    first = 0 if include_background or not exclusive or target.shape[1] == 1 else 1
    loss, present = (1 - dice + error)[:, first:], present_classes(target[:, first:], batch)
    # Adding nothing, this keeps an empty batch connected to the graph and a NaN visible.
    return average_classes(loss, present, weight, reduction) + 0 * wrong.sum()


def _sums(logits: Tensor, target: Tensor, counts: Tensor, exclusive: bool) -> Tensor:
    """Overlap, probability, volume and cross-entropy of each class: ``(4, B, C)``."""
    if exclusive:
        scores = torch.log_softmax(logits, 1)
        probs, errors = scores.exp().where(counts, 0), scores.where(target, 0)
    else:
        probs = torch.sigmoid(logits).where(counts, 0)
        errors = F.logsigmoid(torch.where(target, logits, -logits)).where(counts, 0)
    parts = probs.where(target, 0), probs, target.to(probs), errors
    shared, mass, volume, right = (total(part, batch=False) for part in parts)
    return torch.stack([shared, mass, volume, -right])


def _check_size(size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise ConfigError(f"size must be an odd number of voxels, got {size}")


@register_loss("scnp", paper="arXiv 2603.18671", summary="each voxel answers for the worst of its class beside it")
class SCNPLoss(SegmentationLoss):
    """Dice and cross-entropy on penalised logits: `scnp_loss` as a module. Accepts the words of `SegmentationLoss`.

    Args:
        size: odd number of voxels around each voxel that answer for each other.
        options: see `SegmentationLoss`. ``softmax`` or ``sigmoid`` must be called with logits; without an activation
            the input is taken for logits of exclusive classes if the target is a label map, else of regions.

    Raises:
        ConfigError: ``size`` is not odd.
        ValueError: ``other_act``: only softmax and sigmoid have a cross-entropy here.

    Example:
        >>> logits = torch.zeros(1, 3, 8, 8, 8)
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> labels[..., 2:4, 2:4, :] = 1
        >>> 1 < SCNPLoss(softmax=True, to_onehot_y=True)(logits, labels).item() < 2.1
        True
    """

    supports_regions = True
    supports_ignore = True
    uses_spacing = False
    takes_logits = True

    def __init__(self, *, size: int = 3, **options: Unpack[CommonOptions]) -> None:
        super().__init__(**options)
        _check_size(size)
        if self.other_act is not None:
            raise ValueError("scnp takes logits and applies softmax or sigmoid itself; leave out other_act")
        self.size = size

    def compute(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `scnp_loss`."""
        return scnp_loss(
            logits,
            target,
            size=self.size,
            exclusive=not self.sigmoid and (self.softmax or self.to_onehot_y),
            include_background=self.include_background,
            mask=mask,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
