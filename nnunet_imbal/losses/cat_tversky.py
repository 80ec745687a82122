"""Component-adaptive Tversky: misses cost more than false alarms, and small lesions weigh more."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnunet_imbal.losses._base import CommonOptions
from nnunet_imbal.losses._instances import InstanceLoss, labels_of, outside_components
from nnunet_imbal.losses._reduce import reduce_components
from nnunet_imbal.ops import cell_overlap
from nnunet_imbal.registry import register_loss

__all__ = ["CATverskyLoss", "cat_tversky_loss"]


def cat_tversky_loss(
    probs: Tensor,
    target: Tensor,
    *,
    labels: Tensor | None = None,
    connectivity: int | None = None,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 1.0,
    size_offset: float = 5.0,
    background_weight: float = 0.01,
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""One Tversky score of a class, with voxels weighted by the size of their lesion and misses dearer than alarms.

    A voxel of component :math:`C_i` weighs :math:`w_i = (|C_i| + \epsilon)^{-\gamma}`, a background voxel
    :math:`w_0`. With hits :math:`T = \sum_i w_i \sum_{C_i} p`, false alarms :math:`F = w_0 \sum_Z p` and misses
    :math:`M = \sum_i w_i \sum_{C_i} (1 - p)`, :math:`L = 1 - (T + s_n) / (T + \alpha F + \beta M + s_d)`.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities, 2-D or 3-D, background left out, 0 where ignored.
        target: ``(B, C, *S)`` bool or 0/1, one-hot classes or overlapping regions, 0 where ignored.
        labels: see `blob_dice_loss`.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8 (published: 6).
        alpha: cost of false alarms.
        beta: cost of misses.
        gamma: how steeply weight falls with size; 0 = size does not matter.
        size_offset: :math:`\epsilon` in voxels, keeps lesions of few voxels from taking everything.
        background_weight: :math:`w_0`.
        smooth_nr: :math:`s_n`.
        smooth_dr: :math:`s_d`.
        batch: average over all pairs of a sample and a class instead of sample by sample.
        weight: see `cc_dice_loss`.
        reduction: see `cc_dice_loss`.

    Returns:
        Range 0 to 1. 0 with zero gradient if there is no lesion at all. False alarms cost little: use it beside a loss
        that minds them.

    Note:
        Source: the CAT part of CATMIL (arXiv 2604.08015, abstract) with the formula, defaults and mean over present
        classes of its published code. There it is added to nnU-Net's loss with a weight that grows from 0 to 0.1 during
        the first 50 epochs.

    Example:
        >>> probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.0, 0.1]).reshape(1, 1, 1, 8)
        >>> target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8)
        >>> round(cat_tversky_loss(probs, target, smooth_nr=0, smooth_dr=0).item(), 4)
        0.2752
    """
    target = target > 0
    sums = cell_overlap(probs, target, labels_of(target, labels, connectivity))  # (3, B, C, 1 + K)
    inside, size = sums[0, ..., 1:], sums[2, ..., 1:]
    exists = size > 0
    weights = torch.where(exists, (size + size_offset) ** -gamma, 0)
    hit, miss = ((weights * part).sum(-1, keepdim=True) for part in (inside, size - inside))
    alarm = background_weight * outside_components(sums[1])
    present = exists.any(-1, keepdim=True)
    denominator = (hit + alpha * alarm + beta * miss + smooth_dr).where(present, 1)
    loss = 1 - (hit + smooth_nr) / denominator
    reduced = reduce_components(loss, present, batch=batch, weight=weight, reduction=reduction)
    return reduced + 0 * sums[1].sum()  # connected to the graph without a lesion, and a NaN stays visible


@register_loss(
    "cat_tversky", paper="arXiv 2604.08015", summary="misses cost more than false alarms, small lesions weigh more"
)
class CATverskyLoss(InstanceLoss):
    """Component-adaptive Tversky: `cat_tversky_loss` as a module. Accepts the words of `SegmentationLoss` as well.

    Args:
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D; None = 26 or 8.
        alpha: cost of false alarms.
        beta: cost of misses.
        gamma: how steeply weight falls with size.
        size_offset: voxels added to every size.
        background_weight: weight of a background voxel.
        options: see `SegmentationLoss`.

    Raises:
        ValueError: an impossible connectivity or a negative factor.

    Example:
        >>> labels = torch.zeros(1, 1, 8, 8, 8)
        >>> labels[..., :2, :2, :2] = 1
        >>> 0 < CATverskyLoss(softmax=True, to_onehot_y=True)(torch.zeros(1, 2, 8, 8, 8), labels).item() < 1
        True
    """

    def __init__(
        self,
        *,
        connectivity: int | None = None,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 1.0,
        size_offset: float = 5.0,
        background_weight: float = 0.01,
        **options: Unpack[CommonOptions],
    ) -> None:
        super().__init__(connectivity=connectivity, **options)
        factors = {"alpha": alpha, "beta": beta, "gamma": gamma}
        factors |= {"size_offset": size_offset, "background_weight": background_weight}
        for name, value in factors.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.size_offset, self.background_weight = size_offset, background_weight

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """See `cat_tversky_loss`; ignored voxels are 0 in both arguments already."""
        return cat_tversky_loss(
            probs,
            target,
            connectivity=self.connectivity,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            size_offset=self.size_offset,
            background_weight=self.background_weight,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            **self.averaging,
        )
