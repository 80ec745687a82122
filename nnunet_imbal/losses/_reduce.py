"""From one value per component to one number: components, then classes that are present, then samples."""

import torch
from torch import Tensor

__all__ = ["mean_where", "reduce_components"]


def mean_where(values: Tensor, where: Tensor, dim: int | tuple[int, ...], weight: Tensor | None = None) -> Tensor:
    """Mean of ``values`` where ``where`` is True; 0, still connected to the graph, where nothing is.

    Args:
        values: any float shape; what lies outside ``where`` may be anything, also NaN.
        where: bool, broadcastable to ``values``.
        dim: dimensions to reduce.
        weight: optional factors, broadcastable to ``values``.

    Example:
        >>> mean_where(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]), 0).item()
        2.0
    """
    shares = where.to(values.dtype) if weight is None else where * weight.to(values.dtype)
    total = (torch.where(where, values, 0) * shares).sum(dim)
    count = shares.sum(dim)
    return total / torch.where(count > 0, count, 1)


def reduce_components(
    values: Tensor,
    exists: Tensor,
    *,
    batch: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Give every component, every present class and every sample with components the same say.

    Args:
        values: ``(B, C, K)``, one value per component.
        exists: ``(B, C, K)`` bool, False for ids that a sample does not use.
        batch: first average over the components of the whole batch, as if it were one sample.
        weight: ``(C,)`` factors of the classes in their mean.
        reduction: ``"mean"``: components → present classes → samples that have a component;
            ``"none"``: the class means ``(B, C)``, 0 for absent classes; ``"sum"``: their sum.
    """
    if batch:
        values, exists = (t.transpose(0, 1).flatten(1).unsqueeze(0) for t in (values, exists))
    per_class, present = mean_where(values, exists, dim=2), exists.any(dim=2)
    if reduction == "none":
        return per_class
    if reduction == "sum":
        return per_class.sum() if weight is None else (per_class * weight).sum()
    per_sample = mean_where(per_class, present, dim=1, weight=weight)
    return mean_where(per_sample, present.any(dim=1), dim=0)
