"""The formulas of SCDL on T tokens, K classes or regions, and D numbers per embedding.

Labels may be known in part: a token has a *say* of 0 to 1, and *shares* of its classes that add up to its say
(exclusive classes) or do not exceed it (regions).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_imbal.losses._distributed import sum_over_ranks

__all__ = [
    "balanced_p2e",
    "chosen",
    "class_sums",
    "disagreement",
    "e2p",
    "mean_direction",
    "mean_over_tokens",
    "over_classes",
    "over_tokens",
    "pool_tokens",
    "released_p2e",
    "scores",
    "token_shares",
    "unit",
]

_LEAST = 1e-6


def unit(vectors: Tensor) -> Tensor:
    """Vectors ``(..., D)`` of length 1."""
    return F.normalize(vectors, dim=-1, eps=_LEAST)


def pool_tokens(values: Tensor, grid: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Area averages ``(B, C, *S)`` -> ``(B, L, C)`` with ``L = prod(grid)``."""
    pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    # Averaged as they come: a float32 copy of half-precision features would be the largest tensor of all.
    return pool(values, grid).to(dtype).flatten(2).transpose(1, 2)


def token_shares(masks: Iterable[Tensor], grid: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Share of each token's voxels in each of K masks ``(B, *S)``: ``(B, L, K)``. One by one, to save memory."""
    return torch.cat([pool_tokens(mask.unsqueeze(1).to(dtype), grid, dtype) for mask in masks], 2)


def mean_direction(means: Tensor, spreads: Tensor, noise: Tensor) -> Tensor:
    """Mean ``(K, D)`` of the directions of the samples ``means + spreads * noise``, with noise ``(S, K, D)``.

    Its product with a unit vector is that vector's mean cosine with the samples, so no cosine of a single sample is
    ever needed.
    """
    return unit(means + spreads * noise).mean(0)


def scores(cosines: Tensor, temperature: float, regions: bool) -> Tensor:
    """Logits ``(..., G, A)`` of what a token chooses among: one of K classes, or yes and no for each of K regions."""
    logits = cosines / temperature
    return torch.stack([logits, -logits], -1) / 2 if regions else logits.unsqueeze(-2)


def over_classes(logits: Tensor) -> Tensor:
    """Assignment token -> class, as logarithms: each token hands out one unit among its alternatives."""
    return torch.log_softmax(logits, -1)


def over_tokens(logits: Tensor, say: Tensor, highest: float) -> Tensor:
    """Assignment class -> token, as logarithms: each alternative hands out one unit among the tokens of all ranks.

    Args:
        logits: ``(T, G, A)``.
        say: ``(T,)``.
        highest: bound of the logits, the same on all ranks.
    """
    mass = sum_over_ranks((say.view(-1, 1, 1) * (logits - highest).exp()).sum(0))
    return logits - highest - mass.clamp(min=torch.finfo(mass.dtype).tiny).log()


def chosen(assignment: Tensor, regions: bool) -> Tensor:
    """Probabilities ``(..., K)`` of the classes, or of "yes" for the regions, from logarithms ``(..., G, A)``."""
    probs = assignment.exp()
    return probs[..., 0] if regions else probs[..., 0, :]


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """Symmetric Kullback-Leibler divergence of two assignments ``(T, G, A)``, mean over G: ``(T,)``."""
    return ((first.exp() - second.exp()) * (first - second)).sum(2).mean(1)


def mean_over_tokens(values: Tensor, say: Tensor) -> Tensor:
    """Weighted mean of ``(T,)`` over the tokens of all ranks; 0 if none has a say."""
    total, count = sum_over_ranks(torch.stack([(say * values).sum(), say.sum()]))
    return total / count.clamp(min=_LEAST)


def class_sums(similarity: Tensor, shares: Tensor, say: Tensor) -> Tensor:
    """Over the tokens of all ranks: mass and similarity inside each class, mass and similarity outside: ``(4, K)``."""
    rest = say.unsqueeze(1) - shares
    return sum_over_ranks(torch.stack([shares, shares * similarity, rest, rest * similarity]).sum(1))


def e2p(sums: Tensor) -> Tensor:
    """Mean over tokens of the distance to the samples of their classes: 0 to 2, for regions 0 to 2K."""
    inside, similarity, outside, _ = sums
    return (inside - similarity).sum() / (inside + outside)[0].clamp(min=_LEAST)


def balanced_p2e(sums: Tensor) -> Tensor:
    """Each class compares its mean similarity inside and outside: exp(-2) to exp(2), 0 if no class has a token."""
    inside, similar_inside, outside, similar_outside = sums
    difference = similar_inside / inside.clamp(min=_LEAST) - similar_outside / outside.clamp(min=_LEAST)
    present = inside > (1e-3 * (inside + outside)).clamp(max=0.5)
    return torch.where(present, (-difference).exp(), 0).sum() / present.sum().clamp(min=1)


def released_p2e(similarity: Tensor, shares: Tensor, say: Tensor) -> Tensor:
    """Each token speaks for itself, so that a class of few tokens is pushed by the others: exp(-1) to e."""
    weights = shares / say.clamp(min=_LEAST).unsqueeze(1)
    return mean_over_tokens(((1 - 2 * weights) * similarity).exp().mean(1), say)
