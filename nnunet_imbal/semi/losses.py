"""What a network owes its teacher on voxels nobody annotated."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.labels import plain_tensor, to_one_hot
from nnunet_imbal.losses._distributed import sum_over_ranks
from nnunet_imbal.losses._reduce import mean_where
from nnunet_imbal.semi.gate import ConfidenceGate, PseudoLabels

__all__ = ["UnlabelledLoss", "consistency_loss", "cross_pseudo_loss", "pseudo_label_loss"]


def consistency_loss(probs: Tensor, teacher_probs: Tensor, unlabelled: Tensor) -> Tensor:
    r"""Ask the network to say of an altered image what its teacher says of the image itself.

    :math:`\frac{1}{|U|} \sum_{v \in U} \sum_c (p_{vc} - q_{vc})^2` over the unlabelled voxels :math:`U` of the batch,
    of all processes together in distributed training.

    Args:
        probs: ``(B, C, *S)`` float, of the network.
        teacher_probs: same shape, without gradient.
        unlabelled: ``(B, 1, *S)`` bool.

    Returns:
        Scalar from 0 to 2 (classes) or to the number of regions; 0 with zero gradient if no voxel is unlabelled.

    Note:
        Source: mean teacher (arXiv 1703.01780); the restriction to unlabelled voxels is ours.

    Example:
        >>> probs, teacher = torch.tensor([[[[0.75]], [[0.25]]]]), torch.tensor([[[[0.25]], [[0.75]]]])
        >>> consistency_loss(probs, teacher, torch.ones(1, 1, 1, 1, dtype=torch.bool)).item()
        0.5
    """
    squares = (probs - teacher_probs).square().masked_fill(~unlabelled, 0)
    total, count = sum_over_ranks(torch.stack([_sum(squares), _sum(unlabelled)]))
    return (total / count.clamp(min=1)).to(probs.dtype)


def pseudo_label_loss(logits: Tensor, pseudo: PseudoLabels, unlabelled: Tensor, *, regions: bool = False) -> Tensor:
    r"""Train on a teacher's labels as if a human had drawn them, as far as they are accepted.

    .. math:: \frac{1}{|U|} \sum_{v \in A} \mathrm{CE}_v \;+\;
        \frac{1}{|K|} \sum_{c \in K} \frac{|A_c|}{|U_c|} \left(1 - \frac{2 \sum_{A_c} p_c}{\sum_A p_c + |A_c|}\right)

    with :math:`U` the unlabelled voxels, :math:`A` the accepted ones, :math:`U_c, A_c` those of them labelled
    :math:`c`, and :math:`K` the foreground classes with :math:`U_c` not empty. Sums run over the whole batch, of all
    processes together in distributed training. Voxels that are not accepted count in the denominators: a teacher that
    is unsure of a class has little say in it.

    Args:
        logits: ``(B, C, *S)`` float.
        pseudo: from `ConfidenceGate`.
        unlabelled: ``(B, 1, *S)`` bool.
        regions: the channels are overlapping regions: binary cross-entropy summed over them, none is background.

    Returns:
        Scalar of at least 0; 0 with zero gradient if nothing is accepted.

    Note:
        Cross-entropy over accepted voxels is FixMatch's (arXiv 2001.07685); the Dice term is ours, so that small
        structures count here as they do in nnU-Net's own loss.

    Example:
        >>> pseudo = PseudoLabels(torch.ones(1, 1, 1, 2).long(), torch.tensor([[[[True, False]]]]))
        >>> unlabelled = torch.ones(1, 1, 1, 2, dtype=torch.bool)
        >>> round(pseudo_label_loss(torch.zeros(1, 2, 1, 2), pseudo, unlabelled).item(), 4)  # log(2)/2 + 1/2 * 1/3
        0.5132
    """
    logits = _full_precision(logits)
    if regions:
        truth, probs = pseudo.labels, torch.sigmoid(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
    else:
        truth, probs = to_one_hot(pseudo.labels, logits.shape[1], 1), torch.softmax(logits, 1)[:, 1:]
        entropy = F.cross_entropy(logits, pseudo.labels[:, 0], reduction="none").unsqueeze(1)
    cross_entropy, count = sum_over_ranks(torch.stack([_sum(entropy * pseudo.accepted), _sum(unlabelled)]))
    dice = _gated_dice_loss(probs, truth, pseudo.accepted, unlabelled)
    return (cross_entropy / count.clamp(min=1) + dice).to(logits.dtype)


def cross_pseudo_loss(first: Tensor, second: Tensor, unlabelled: Tensor, *, regions: bool = False) -> Tensor:
    """Let two networks teach each other: each learns the labels the other one gives.

    The sum of both `pseudo_label_loss`, all labels accepted. Start the networks from different weights.

    Args:
        first: ``(B, C, *S)`` logits of one network.
        second: same shape, logits of the other one.
        unlabelled: ``(B, 1, *S)`` bool.
        regions: overlapping regions with sigmoid, instead of classes with softmax.

    Returns:
        Scalar of at least 0; 0 with zero gradient if no voxel is unlabelled.

    Note:
        Source: CPS (arXiv 2106.01226) with cross-entropy alone; the Dice term is ours.

    Example:
        >>> sure = torch.tensor([[[[9.0]], [[-9.0]]]])
        >>> unlabelled = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        >>> cross_pseudo_loss(sure, sure, unlabelled) < cross_pseudo_loss(sure, -sure, unlabelled)
        tensor(True)
    """
    losses = []
    for student, teacher in ((first, second), (second, first)):
        labels = teacher.detach() > 0 if regions else teacher.detach().argmax(dim=1, keepdim=True)
        pseudo = PseudoLabels(labels, unlabelled.expand_as(labels))
        losses.append(pseudo_label_loss(student, pseudo, unlabelled, regions=regions))
    return torch.stack(losses).sum()


class UnlabelledLoss(nn.Module):
    """Weighted sum of `consistency_loss` and `pseudo_label_loss`, with the gate between teacher and network.

    Args:
        channels: of the network, background included.
        regions: overlapping regions with sigmoid, instead of classes with softmax.
        consistency: weight of `consistency_loss`, at least 0.
        pseudo_labels: weight of `pseudo_label_loss`, at least 0.
        threshold: see `ConfidenceGate`.
        floor: see `ConfidenceGate`.

    Raises:
        ConfigError: an option is out of range.

    Example:
        >>> loss = UnlabelledLoss(channels=3)
        >>> logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> labelled = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
        >>> loss(logits, logits.detach(), unlabelled=labelled).item()
        0.0
    """

    def __init__(
        self,
        channels: int,
        *,
        regions: bool = False,
        consistency: float = 1.0,
        pseudo_labels: float = 0.5,
        threshold: float = 0.95,
        floor: float = 0.5,
    ) -> None:
        super().__init__()
        if min(consistency, pseudo_labels) < 0:
            raise ConfigError(f"weights must be at least 0, got {consistency} and {pseudo_labels}")
        self.regions, self.consistency, self.pseudo_labels = regions, consistency, pseudo_labels
        self.gate = ConfidenceGate(channels, regions=regions, threshold=threshold, floor=floor)

    def forward(self, logits: Tensor, teacher_logits: Tensor, unlabelled: Tensor) -> Tensor:
        """Loss of a batch, float32 (float64 for float64 logits).

        Args:
            logits: ``(B, C, *S)``, of the network on its view of the images; B may be 0.
            teacher_logits: same shape, of the teacher.
            unlabelled: ``(B, 1, *S)`` bool, True where nobody drew a label.

        Raises:
            ValueError: shapes do not fit.
        """
        logits, teacher_logits = _full_precision(logits), _full_precision(teacher_logits.detach())
        unlabelled = plain_tensor(unlabelled)
        _check(logits, teacher_logits, unlabelled)
        teacher_probs = self._activate(teacher_logits)
        pseudo = self.gate(teacher_probs, unlabelled)
        loss = self.pseudo_labels * pseudo_label_loss(logits, pseudo, unlabelled, regions=self.regions)
        return loss + self.consistency * consistency_loss(self._activate(logits), teacher_probs, unlabelled)

    def _activate(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.regions else torch.softmax(logits, 1)


def _full_precision(logits: Tensor) -> Tensor:
    logits = plain_tensor(logits)
    return logits if logits.dtype == torch.float64 else logits.float()


def _gated_dice_loss(probs: Tensor, truth: Tensor, accepted: Tensor, unlabelled: Tensor) -> Tensor:
    learned = truth & accepted
    parts = [
        _sum_per_class(torch.where(learned, probs, 0)),
        _sum_per_class(torch.where(accepted, probs, 0)),
        _sum_per_class(learned),
        _sum_per_class(truth & unlabelled),
    ]
    overlap, predicted, taken, given = sum_over_ranks(torch.stack(parts))
    loss = 1 - 2 * overlap / (predicted + taken).clamp(min=1e-6)
    return mean_where(taken / given.clamp(min=1) * loss, given > 0, dim=0)


def _sum_per_class(values: Tensor) -> Tensor:
    return values.sum(dim=(0, *range(2, values.ndim)), dtype=torch.float64)


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=torch.float64)


def _check(logits: Tensor, teacher_logits: Tensor, unlabelled: Tensor) -> None:
    mask = (len(logits), 1, *logits.shape[2:])
    if teacher_logits.shape != logits.shape or unlabelled.shape != mask or unlabelled.dtype != torch.bool:
        raise ValueError(
            f"got logits {tuple(logits.shape)}, teacher_logits {tuple(teacher_logits.shape)} and unlabelled "
            f"{tuple(unlabelled.shape)} {unlabelled.dtype}; needed: (B, C, *S) twice and (B, 1, *S) bool, e.g. "
            "`labels == ignore_label`"
        )
