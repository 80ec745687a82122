"""Label proportion: predictions on unlabelled data are to fill as much of the patches as labels do elsewhere."""

import torch
from torch import Tensor, nn

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.labels import plain_tensor
from nnunet_imbal.losses._distributed import sum_over_ranks
from nnunet_imbal.proportions import proportion_bounds
from nnunet_imbal.registry import unknown_name

__all__ = ["LabelProportion", "interval_penalty", "label_proportion_loss"]

_LEAST = 1e-6
_LEAST_PUBLISHED = 1e-8
_MOST_PATCHES = 32


def label_proportion_loss(logits: Tensor, proportions: Tensor, temperature: float = 0.5) -> Tensor:
    r"""Cross-entropy between the class proportions one expects and those of all predictions together.

    With :math:`\hat p = \mathrm{mean}_i \mathrm{softmax}(s_i / T)` over samples and voxels,
    :math:`L = -\sum_k r_k \log \hat p_k`. It says nothing about a single prediction, and a class pulls as much as it is
    frequent: 3e-5 of the voxels, 3e-5 of the pull. For segmentation see `LabelProportion`.

    Args:
        logits: ``(B, C, *S)``, with no or more axes ``S``; with a gradient.
        proportions: ``(C,)``, adding up to 1. The paper draws them anew for each batch of n from assumed class counts:
            ``numpy.random.Generator.multivariate_hypergeometric(counts, n) / n``.
        temperature: :math:`T`.

    Returns:
        Scalar, float32 or float64, from the entropy of ``proportions`` (not 0) upwards.

    Note:
        Source: arXiv 2603.02957 and its released code, there for images, with weight 0.1 on unlabelled ones. Because L
        is linear in the proportions, drawing them changes neither its mean nor that of its gradient.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> round(label_proportion_loss(logits, torch.tensor([0.75, 0.25]), temperature=1.0).item(), 6)
        0.615234
    """
    predicted = _patch_means(logits, temperature, regions=False).mean(0)
    return -(proportions * predicted.clamp(min=_LEAST_PUBLISHED).log()).sum()


class LabelProportion(nn.Module):
    r"""Keep the volume of each class in unlabelled patches within the range that labelled patches show.

    With :math:`\hat p_k`, the mean probability of a class over the voxels of all unlabelled patches, and the bounds
    :math:`l_k, u_k` of `proportion_bounds` for as many patches,

    .. math:: L = \sum_k \frac{\max(l_k - \hat p_k, 0) + \max(\hat p_k - u_k, 0)}{u_k - l_k}

    over the classes that labelled patches contain. Only patches without any label count. It needs a loss beside it that
    tells voxels apart, and a small weight (0.1) that grows slowly: the mean of an untrained network is far outside. Not
    for lesions whose volume says nothing about the next patient's, nor with fewer than about five labelled cases.

    Args:
        bank: ``(N, C)`` from `collect_proportions`. It is part of the ``state_dict``: to resume, build the module from
            ``state["bank"]`` and load the state.
        regions: overlapping regions with a sigmoid each, instead of classes with softmax.
        penalty: ``"interval"`` as above; ``"kl"``: divergence :math:`\sum r_k \log(r_k/\hat p_k)` from the mean
            :math:`r` of the bank, the published loss less a constant, for batches of 8 patches or more;
            ``"log_ratio"``: :math:`\mathrm{mean}_k \log^2((\hat p_k + \epsilon) / (r_k + \epsilon))` with
            :math:`\epsilon = 10^{-6}`, where rare classes pull as much as others.
        temperature: divides the logits; the published 0.5 sharpens them.
        memory: share of the present batch in a running mean of :math:`\hat p`, above 0 to 1. Below 1 former batches are
            part of the value, so that it stands for more patches than fit into one; the gradient is that of the present
            batch alone.

    Raises:
        ConfigError: an unknown penalty, a value out of range, or a bank that is no table.

    Note:
        Source: the idea is that of arXiv 2603.02957 for images. Patches as units, bounds, memory and regions are our
        reconstruction.

    Example:
        >>> bank = torch.tensor([[0.9, 0.1], [0.8, 0.2], [1.0, 0.0]])
        >>> logits = torch.zeros(2, 2, 8, 8, 8)
        >>> round(LabelProportion(bank)(logits).item(), 3)  # half of the voxels, where a fifth at most is usual
        3.0
    """

    bank: Tensor
    lower: Tensor
    upper: Tensor
    mean: Tensor
    patches: Tensor

    def __init__(
        self,
        bank: Tensor,
        *,
        regions: bool = False,
        penalty: str = "interval",
        temperature: float = 1.0,
        memory: float = 0.1,
    ) -> None:
        super().__init__()
        _check_options(bank, penalty, temperature, memory, regions)
        self.regions, self.penalty, self.temperature, self.memory = regions, penalty, temperature, memory
        lower, upper = proportion_bounds(bank.cpu(), _MOST_PATCHES)
        self.register_buffer("bank", bank.float())
        self.register_buffer("lower", lower.float(), persistent=False)
        self.register_buffer("upper", upper.float(), persistent=False)
        self.register_buffer("mean", torch.zeros(bank.shape[1]))
        self.register_buffer("patches", torch.zeros(()))  # for how many independent patches `mean` stands

    def forward(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Penalty of the unlabelled patches of the batch, and of the batches of all ranks.

        Args:
            logits: ``(B, C, *S)`` at full resolution, any float dtype, 2-D or 3-D.
            mask: ``(B, 1, *S)``, 0 where there is no label; None: no labels at all.

        Returns:
            Scalar, at least 0; 0 without an unlabelled patch.

        Raises:
            ConfigError: shapes do not fit.
        """
        logits = plain_tensor(logits)
        if logits.ndim < 3 or logits.shape[1] != self.bank.shape[1]:
            raise ConfigError(
                f"logits must be (B, {self.bank.shape[1]}, *S), one channel for each column of the bank, "
                f"got {tuple(logits.shape)}"
            )
        means = _patch_means(logits, self.temperature, self.regions)
        members = _unlabelled(logits, mask).to(means.dtype).unsqueeze(1)
        sums = sum_over_ranks(torch.cat([members * means, members], 1).sum(0))
        count = sums[-1].detach()
        bag, patches = self._remember(sums[:-1] / count.clamp(min=1), count)
        return torch.where(count > 0, self._penalise(bag, patches), 0)

    def _remember(self, batch: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Mean proportions with those of former batches, and for how many patches they stand."""
        with torch.no_grad():
            share = (count / (count + self.patches).clamp(min=1)).clamp(min=self.memory)
            mean = torch.lerp(self.mean.to(batch.dtype), batch, share)
            spread = (1 - share) ** 2 / self.patches.clamp(min=1) + share**2 / count.clamp(min=1)
            if self.training:
                self.mean.copy_(torch.where(count > 0, mean, self.mean))
                self.patches.copy_(torch.where(count > 0, 1 / spread, self.patches))
        return mean + (batch - batch.detach()), 1 / spread

    def _penalise(self, bag: Tensor, patches: Tensor) -> Tensor:
        if self.penalty == "interval":
            row = patches.round().long().clamp(1, len(self.lower)).view(1) - 1
            return interval_penalty(bag, self.lower.index_select(0, row)[0], self.upper.index_select(0, row)[0])
        expected = self.bank.mean(0)
        if self.penalty == "kl":
            return (expected * (expected / bag.clamp(min=_LEAST_PUBLISHED)).clamp(min=_LEAST_PUBLISHED).log()).sum()
        return ((bag + _LEAST).log() - (expected + _LEAST).log()).square().mean()


def interval_penalty(proportions: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Distance of ``(C,)`` proportions from their intervals in lengths of these, summed over intervals with a length.

    Example:
        >>> interval_penalty(torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.0]), torch.tensor([1.0, 0.4]))
        tensor(0.5000)
    """
    outside = (lower - proportions).clamp(min=0) + (proportions - upper).clamp(min=0)
    length = upper - lower
    return torch.where(length > 0, outside / torch.where(length > 0, length, 1), 0).sum()


def _patch_means(logits: Tensor, temperature: float, regions: bool) -> Tensor:
    """Mean probabilities of each patch, ``(B, C)`` in float32 or float64."""
    logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    probs = torch.sigmoid(logits) if regions else torch.softmax(logits, 1)
    return probs.flatten(2).mean(2) if probs.ndim > 2 else probs


def _unlabelled(logits: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    if mask.shape != (len(logits), 1, *logits.shape[2:]):
        raise ConfigError(f"mask {tuple(mask.shape)} must have the shape (B, 1, *S) of logits {tuple(logits.shape)}")
    return ~(plain_tensor(mask) != 0).flatten(1).any(1)


def _check_options(bank: Tensor, penalty: str, temperature: float, memory: float, regions: bool) -> None:
    if bank.ndim != 2 or not bank.numel() or not ((bank >= 0) & (bank <= 1)).all():
        raise ConfigError(f"bank must hold proportions (patches, classes) between 0 and 1, got {tuple(bank.shape)}")
    if penalty not in ("interval", "kl", "log_ratio"):
        raise ConfigError("label proportion: " + unknown_name("penalty", penalty, ("interval", "kl", "log_ratio")))
    if penalty == "kl" and regions:
        raise ConfigError('penalty "kl" compares classes that exclude each other; take "interval" for regions')
    if not temperature > 0 or not 0 < memory <= 1:
        raise ConfigError(f"temperature must be above 0 and memory above 0 to 1, got {temperature} and {memory}")
