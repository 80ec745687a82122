"""Losses made of losses: weighted sums, and the same loss at several resolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["DeepSupervision", "WeightedSum"]

Outputs = Tensor | Sequence[Tensor]


class WeightedSum(nn.Module):
    """Weighted sum of losses that share one input and target. A loss of weight 0 is not computed.

    Args:
        losses: modules called as ``loss(input, target)``, or with a third argument if a mask is given.
        weights: one factor of at least 0 per loss, at least one of them above 0.

    Raises:
        ValueError: lengths differ, or no weight is above 0.

    Example:
        >>> from nnunet_imbal.losses import CCDiceLoss
        >>> loss = WeightedSum([CCDiceLoss(sigmoid=True)], [0.5])
        >>> loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).item()
        0.0
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        if len(losses) != len(weights):
            raise ValueError(f"got {len(losses)} losses but {len(weights)} weights")
        _require_some_weight(weights)
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(float(w) for w in weights)

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sum over the losses; arguments as in `SegmentationLoss.forward`."""
        arguments = (input, target) if mask is None else (input, target, mask)  # MONAI's losses take no mask
        parts = [w * loss(*arguments) for w, loss in zip(self.weights, self.losses, strict=True) if w]
        return torch.stack(parts).sum(0)


class DeepSupervision(nn.Module):
    """One loss at several resolutions, finest first.

    Args:
        loss: module called as ``loss(input, target)``.
        weights: one factor per resolution; they are normalised to sum to 1. Default: 1, 1/2, 1/4, ... with the
            coarsest left out when there is more than one, as nnU-Net does.

    Raises:
        ValueError: no weight is above 0, or their number differs from that of the outputs.

    Example:
        >>> DeepSupervision(nn.MSELoss())([torch.zeros(1)], [torch.ones(1)]).item()
        1.0
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is not None:
            _require_some_weight(weights)
        self.loss = loss
        self.weights = None if weights is None else tuple(float(w) for w in weights)

    def forward(self, outputs: Outputs, targets: Outputs) -> Tensor:
        """Weighted mean over resolutions; plain tensors are one resolution. Levels of weight 0 are skipped."""
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            return self.loss(outputs, targets)
        weights = self._normalised(len(outputs))
        if len(outputs) != len(targets):
            raise ValueError(f"got {len(outputs)} outputs but {len(targets)} targets")
        pairs = zip(weights, outputs, targets, strict=True)
        return torch.stack([w * self.loss(output, target) for w, output, target in pairs if w]).sum(0)

    def _normalised(self, levels: int) -> list[float]:
        weights = self.weights or [0.5**level for level in range(max(levels - 1, 1))] + [0.0] * (levels > 1)
        if len(weights) != levels:
            raise ValueError(f"got {levels} outputs but {len(weights)} weights")
        total = sum(weights)
        return [w / total for w in weights]


def _require_some_weight(weights: Sequence[float]) -> None:
    if not all(w >= 0 for w in weights) or not sum(weights) > 0:
        raise ValueError(f"weights must be at least 0 and one of them above 0, got {tuple(weights)}")
