"""Which predictions of a teacher are sure enough to learn from, class by class."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.losses._distributed import sum_over_ranks

__all__ = ["ConfidenceGate", "PseudoLabels"]


class PseudoLabels(NamedTuple):
    """Labels a teacher gave to voxels without any.

    Attributes:
        labels: ``(B, 1, *S)`` int64 classes; with regions ``(B, R, *S)`` bool.
        accepted: same shape, bool: which of them to learn from.
    """

    labels: Tensor
    accepted: Tensor


class ConfidenceGate(nn.Module):
    r"""Accept the predictions a teacher is sure of; of classes it is never very sure of, accept its surest ones.

    A network is less sure of rare classes, so one threshold for all would leave them without pseudo-labels. With
    :math:`m_c` the running mean confidence of the unlabelled voxels predicted as :math:`c`, the threshold is

    .. math:: \tau_c = \max(floor,\; threshold \cdot m_c / \max_k m_k)

    and ``threshold`` itself for a class that was never predicted. Confidence is the probability of the predicted
    class; with regions, of the predicted answer (inside or outside), which have a threshold each. The first batch that
    shows a class sets :math:`m_c`, later ones move it by ``1 - momentum``. In distributed training all processes
    count together. In evaluation mode nothing is learned. The means are in the ``state_dict``.

    Args:
        channels: of the network, background included.
        regions: overlapping regions with sigmoid, instead of classes with softmax.
        threshold: for the class the teacher is surest of, above 0 up to 1.
        floor: no threshold is lower, from 0 to ``threshold``.
        momentum: of the running means, at least 0, below 1.

    Raises:
        ConfigError: an option is out of range.

    Note:
        Our formula. Relative thresholds per class are FlexMatch's (arXiv 2110.08263), running means of confidence
        FreeMatch's (arXiv 2205.07246); theirs also shrink with the frequency of a class, which among voxels would
        accept anything of a small organ.

    Example:
        >>> gate = ConfidenceGate(channels=2, threshold=0.9)
        >>> probs = torch.tensor([[[[0.9, 0.7, 0.4, 0.2]], [[0.1, 0.3, 0.6, 0.8]]]])
        >>> gate(probs, torch.ones(1, 1, 1, 4, dtype=torch.bool)).accepted.flatten().tolist()
        [True, False, False, True]
        >>> gate.thresholds()
        tensor([0.9000, 0.7875])
    """

    mean_confidence: Tensor
    seen: Tensor

    def __init__(
        self,
        channels: int,
        *,
        regions: bool = False,
        threshold: float = 0.95,
        floor: float = 0.5,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        if not 0 <= floor <= threshold <= 1 or threshold == 0:
            raise ConfigError(f"needed: 0 <= floor <= threshold <= 1, threshold > 0; got {floor} and {threshold}")
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum of the gate must be at least 0 and below 1, got {momentum}")
        self.regions = regions
        self.threshold, self.floor, self.momentum = threshold, floor, momentum
        answers = 2 * channels if regions else channels
        self.register_buffer("mean_confidence", torch.ones(answers))
        self.register_buffer("seen", torch.zeros(answers, dtype=torch.bool))

    def thresholds(self) -> Tensor:
        """Confidence each answer needs: ``(C,)`` float32; with regions ``(2 R,)``, outside and inside in turn."""
        surest = torch.where(self.seen, self.mean_confidence, 0).amax().clamp(min=1e-6)
        relative = (self.threshold * self.mean_confidence / surest).clamp(min=self.floor)
        return torch.where(self.seen, relative, self.threshold)

    @torch.no_grad()
    def forward(self, probs: Tensor, unlabelled: Tensor) -> PseudoLabels:
        """Pseudo-labels of a batch.

        Args:
            probs: ``(B, C, *S)`` float, the teacher's probabilities.
            unlabelled: ``(B, 1, *S)`` bool.
        """
        confidence, answer = self._answers(probs)
        if self.training:
            self._learn(confidence, answer, unlabelled)
        accepted = unlabelled & (confidence >= self.thresholds()[answer])
        return PseudoLabels(answer % 2 == 1 if self.regions else answer, accepted)

    def _answers(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        if not self.regions:
            confidence, answer = probs.max(dim=1, keepdim=True)
            return confidence, answer
        inside = probs > 0.5
        first = 2 * torch.arange(probs.shape[1], device=probs.device).view(1, -1, *[1] * (probs.ndim - 2))
        return torch.where(inside, probs, 1 - probs), first + inside

    def _learn(self, confidence: Tensor, answer: Tensor, unlabelled: Tensor) -> None:
        bins = len(self.seen) + 1  # the last one takes the voxels that do not count
        index = torch.where(unlabelled, answer, bins - 1).flatten()
        counts = torch.bincount(index, minlength=bins).double()
        sums = torch.bincount(index, confidence.flatten().double(), minlength=bins)
        counts, sums = sum_over_ranks(torch.stack([counts, sums]))[:, :-1]
        mean = (sums / counts.clamp(min=1)).to(self.mean_confidence.dtype)
        moved = torch.where(self.seen, torch.lerp(mean, self.mean_confidence, self.momentum), mean)
        present = counts > 0
        self.mean_confidence.copy_(torch.where(present, moved, self.mean_confidence))
        self.seen |= present
