"""Topological scores as MONAI metrics."""

import math
from collections.abc import Callable

import numpy as np
from monai.utils import MetricReduction
from numpy.typing import NDArray
from torch import Tensor

from monai_ext._class_metric import ClassMetric
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics import ClDice, betti_errors, cldice

__all__ = ["BettiErrorMetric", "ClDiceMetric"]

_SCORES: dict[str, Callable[[ClDice], float]] = {
    "cldice": lambda result: result.score,
    "precision": lambda result: result.precision,
    "sensitivity": lambda result: result.sensitivity,
}


class ClDiceMetric(ClassMetric):
    """How much of the vessels' centre lines was found, whatever their calibre: clDice of hard masks.

    Precision = share of the predicted centre line inside the true vessel, sensitivity = share of the true centre line
    inside the predicted vessel, clDice = their harmonic mean. For all vessels as one, merge the labels first. See
    `nnunet_imbal.metrics.cldice`; source: arXiv 2003.07311.

    Args:
        include_background: score channel 0 too. Default None: no for label maps, yes otherwise.
            A single channel is always scored.
        metric_name: ``"cldice"``, ``"precision"`` or ``"sensitivity"``.
        reduction: how ``aggregate`` reduces ``(samples, classes)``, see `monai.metrics.do_metric_reduction`.
        get_not_nans: ``aggregate`` also returns how many scores are not NaN.
        num_classes: inputs are label maps ``(B, 1, *S)`` of so many classes, background included.

    Call it with ``y_pred`` and ``y``, both ``(B, C, *S)`` of 0 and 1 (or label maps), any dtype, 2-D or 3-D, or with
    lists of ``(C, *S)``. It returns float32 ``(B, C)`` from 0 to 1; 0 if one mask is empty; NaN if both are
    (precision: if nothing is predicted, sensitivity: if there is no vessel).

    Raises:
        ConfigError: unknown ``metric_name``, or impossible ``num_classes`` (when called).
        LabelError: the inputs are not discrete or do not share one grid.

    Example:
        >>> import torch
        >>> truth = torch.zeros(1, 1, 5, 9)
        >>> truth[..., 1:4, 1:8] = 1
        >>> found = truth.clone()
        >>> found[..., 4] = 0
        >>> ClDiceMetric()(y_pred=found, y=truth)
        tensor([[0.9091]])
    """

    def __init__(
        self,
        include_background: bool | None = None,
        metric_name: str = "cldice",
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans, num_classes)
        if metric_name not in _SCORES:
            raise ConfigError(f"metric_name must be one of {', '.join(_SCORES)}, got {metric_name!r}")
        self.metric_name = metric_name

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> Tensor:
        score = _SCORES[self.metric_name]
        return self.score_each(y_pred, y, lambda pred, ref: score(cldice(pred, ref)))


class BettiErrorMetric(ClassMetric):
    """By how many pieces (or tunnels, or cavities) prediction and truth differ; counts only, not places.

    ``|b_k(P) - b_k(R)|`` for dimension k. See `nnunet_imbal.metrics.betti_errors`.

    Args:
        include_background: score channel 0 too. Default None: no for label maps, yes otherwise.
            A single channel is always scored.
        dimension: 0 for pieces, 1 for tunnels (holes in 2-D), 2 for cavities (none in 2-D).
        reduction: how ``aggregate`` reduces ``(samples, classes)``, see `monai.metrics.do_metric_reduction`.
        get_not_nans: ``aggregate`` also returns how many scores are not NaN.
        ignore_empty: a class that is in neither mask scores NaN. False: 0, which makes the mean look better.
        num_classes: inputs are label maps ``(B, 1, *S)`` of so many classes, background included.
        connectivity: 6 or 26 neighbours of the foreground in 3-D, 4 or 8 in 2-D. Default: all (26 or 8). The
            background gets the opposite.

    Call it with ``y_pred`` and ``y``, both ``(B, C, *S)`` of 0 and 1 (or label maps), any dtype, 2-D or 3-D, or with
    lists of ``(C, *S)``. It returns float32 ``(B, C)``, whole numbers from 0; if one mask is empty, the count of the
    other.

    Raises:
        ConfigError: unknown ``dimension``, or impossible ``num_classes`` (when called).
        ValueError: there is no such ``connectivity`` (when called).
        LabelError: the inputs are not discrete or do not share one grid.

    Example:
        >>> import torch
        >>> truth = torch.ones(1, 1, 3, 9)
        >>> found = truth.clone()
        >>> found[..., 4] = 0
        >>> BettiErrorMetric()(y_pred=found, y=truth)
        tensor([[1.]])
    """

    def __init__(
        self,
        include_background: bool | None = None,
        dimension: int = 0,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
        ignore_empty: bool = True,
        num_classes: int | None = None,
        connectivity: int | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans, num_classes)
        if dimension not in (0, 1, 2):
            raise ConfigError(f"dimension must be 0 (pieces), 1 (tunnels) or 2 (cavities), got {dimension!r}")
        self.dimension = dimension
        self.ignore_empty = ignore_empty
        self.connectivity = connectivity

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> Tensor:
        return self.score_each(y_pred, y, self._error)

    def _error(self, pred: NDArray[np.bool_], ref: NDArray[np.bool_]) -> float:
        if self.ignore_empty and not (pred.any() or ref.any()):
            return math.nan
        return float(betti_errors(pred, ref, self.connectivity)[self.dimension])
