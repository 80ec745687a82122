"""Lesion-wise and topological scores as MONAI metrics: they add up like `monai.metrics.DiceMetric`."""

import math
from collections.abc import Callable, Sequence

import torch
from monai.utils import MetricReduction
from torch import Tensor

from monai_ext._class_metric import ClassMetric
from monai_ext._lesionwise_metrics import LesionPanopticQualityMetric, LesionwiseDiceMetric, LesionwiseHD95Metric
from monai_ext._topology_metrics import BettiErrorMetric, ClDiceMetric
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.losses import cc_dice_loss
from nnunet_imbal.metrics import LesionMatch, match_lesions

__all__ = [
    "BettiErrorMetric",
    "CCDiceMetric",
    "ClDiceMetric",
    "LesionF1Metric",
    "LesionPanopticQualityMetric",
    "LesionwiseDiceMetric",
    "LesionwiseHD95Metric",
]

_SCORES: dict[str, Callable[[LesionMatch], float]] = {
    "f1": lambda match: match.f1,
    "recall": lambda match: match.recall,
    "precision": lambda match: match.precision,
}


class CCDiceMetric(ClassMetric):
    r"""Dice in which every lesion counts the same: mean over lesions of the Dice inside the lesion's own cell.

    The cell :math:`V_i` of lesion :math:`i` holds the voxels nearest to it; with prediction :math:`P`, truth :math:`R`
    and :math:`K` lesions, :math:`\frac1K \sum_i 2 |P \cap R \cap V_i| / (|P \cap V_i| + |R \cap V_i|)`.
    Source: CC-Metrics, arXiv 2410.18684.

    Args:
        include_background: score channel 0 too. Default None: no for label maps, yes otherwise.
            A single channel is always scored.
        reduction: how ``aggregate`` reduces ``(samples, classes)``, see `monai.metrics.do_metric_reduction`.
        get_not_nans: ``aggregate`` also returns how many scores are not NaN.
        ignore_empty: a class without a lesion scores NaN. False: 1 if nothing is predicted, else 0.
        num_classes: inputs are label maps ``(B, 1, *S)`` of so many classes, background included.
        spacing: mm per voxel in the order of the spatial axes. Default: isotropic.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D make one lesion. Default: all (26 or 8).

    Call it with ``y_pred`` and ``y``, both ``(B, C, *S)`` of 0 and 1 (or label maps), any dtype, 2-D or 3-D, or with
    lists of ``(C, *S)``. It returns float32 ``(B, C)``: 1 (exact) to 0 (nothing found), NaN for absent classes.

    Raises:
        ConfigError: impossible ``num_classes``, ``spacing`` or ``connectivity`` (when called).
        LabelError: the inputs are not discrete or do not share one grid.

    Example:
        >>> truth, found = torch.zeros(2, 1, 1, 1, 16)
        >>> truth[..., [1, 2, 3, 4, 9, 12, 13]] = found[..., [1, 2, 3, 6, 13, 14]] = 1
        >>> metric = CCDiceMetric()
        >>> metric(y_pred=found[None], y=truth[None])
        tensor([[0.4167]])
    """

    def __init__(
        self,
        include_background: bool | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
        ignore_empty: bool = True,
        num_classes: int | None = None,
        spacing: Sequence[float] | None = None,
        connectivity: int | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans, num_classes)
        self.connectivity = connectivity
        self.ignore_empty = ignore_empty
        self.spacing = spacing

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> Tensor:
        found, truth = self.masks(y_pred, y)
        loss = cc_dice_loss(
            found.float(),
            truth,
            spacing=self.spacing,
            connectivity=self.connectivity,
            smooth_nr=0,
            smooth_dr=0,
            reduction="none",
        )
        empty = (~found).flatten(2).all(2).to(loss.dtype)
        absent = torch.full_like(loss, math.nan) if self.ignore_empty else empty
        return torch.where(truth.flatten(2).any(2), 1 - loss, absent)


class LesionF1Metric(ClassMetric):
    """How many lesions were found, and how many findings are lesions: one common voxel is enough.

    Per sample and class: recall = touched lesions / lesions, precision = predicted components that touch a lesion /
    predicted components, F1 = their harmonic mean. ``aggregate`` averages these over the samples; it does not pool
    the lesions of all samples.

    Args:
        include_background: score channel 0 too. Default None: no for label maps, yes otherwise.
            A single channel is always scored.
        metric_name: ``"f1"``, ``"recall"`` or ``"precision"``.
        reduction: how ``aggregate`` reduces ``(samples, classes)``, see `monai.metrics.do_metric_reduction`.
        get_not_nans: ``aggregate`` also returns how many scores are not NaN.
        num_classes: inputs are label maps ``(B, 1, *S)`` of so many classes, background included.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D make one lesion. Default: all (26 or 8).

    Call it with ``y_pred`` and ``y``, both ``(B, C, *S)`` of 0 and 1 (or label maps), any dtype, 2-D or 3-D, or with
    lists of ``(C, *S)``. It returns float32 ``(B, C)`` from 0 to 1. NaN: nothing to find and nothing found (F1), no
    lesion (recall), no finding (precision).

    Raises:
        ConfigError: unknown ``metric_name``, or impossible ``num_classes`` (when called).
        ValueError: there is no such ``connectivity`` (when called).
        LabelError: the inputs are not discrete or do not share one grid.

    Example:
        >>> truth, found = torch.zeros(2, 1, 1, 1, 16)
        >>> truth[..., [1, 2, 3, 4, 9, 12, 13]] = found[..., [1, 2, 3, 6, 13, 14]] = 1
        >>> metric = LesionF1Metric()
        >>> metric(y_pred=found[None], y=truth[None])
        tensor([[0.6667]])
    """

    def __init__(
        self,
        include_background: bool | None = None,
        metric_name: str = "f1",
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
        num_classes: int | None = None,
        connectivity: int | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans, num_classes)
        self.connectivity = connectivity
        if metric_name not in _SCORES:
            raise ConfigError(f"metric_name must be one of {', '.join(_SCORES)}, got {metric_name!r}")
        self.metric_name = metric_name

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> Tensor:
        score = _SCORES[self.metric_name]
        return self.score_each(y_pred, y, lambda pred, ref: score(match_lesions(pred, ref, self.connectivity)))
