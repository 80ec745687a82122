"""Panoptic quality and the lesion-wise scores of challenges as MONAI metrics."""

from collections.abc import Sequence

import numpy as np
from monai.utils import MetricReduction
from numpy.typing import NDArray
from torch import Tensor

from monai_ext._class_metric import ClassMetric
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics import (
    BRATS2023_RULES,
    LesionwiseBrats2023,
    LesionwiseBratsMets2026,
    Matcher,
    MatchingMetric,
    check_matching,
    lesionwise_brats2023,
    lesionwise_brats_mets2026,
    panoptic_quality,
)

__all__ = ["LesionPanopticQualityMetric", "LesionwiseDiceMetric", "LesionwiseHD95Metric"]

_PANOPTIC_SCORES = ("pq", "pq_dsc", "rq", "sq_iou", "sq_dsc")
_METS2026 = "brats-mets2026"
_RULES_2023 = {f"brats2023-{task.lower()}": rule for task, rule in BRATS2023_RULES.items()}


class LesionPanopticQualityMetric(ClassMetric):
    """Panoptic quality of lesions: share of lesions that were found well, times how well these were outlined.

    Unlike `monai.metrics.PanopticQualityMetric`, which wants instance maps, it finds the lesions by itself: they are
    the connected components of each class. Formula and matchers: `nnunet_imbal.metrics.panoptic_quality`.

    Args:
        include_background: score channel 0 too. Default None: no for label maps, yes otherwise.
            A single channel is always scored.
        metric_name: ``"pq"``, ``"pq_dsc"``, ``"rq"``, ``"sq_iou"`` or ``"sq_dsc"``.
        matching_metric: ``"iou"`` or ``"dsc"``, which decides about a match.
        threshold: lowest score of a match, included.
        matcher: ``"greedy"``, ``"hungarian"`` or ``"merge"``.
        reduction: how ``aggregate`` reduces ``(samples, classes)``, see `monai.metrics.do_metric_reduction`.
        get_not_nans: ``aggregate`` also returns how many scores are not NaN.
        num_classes: inputs are label maps ``(B, 1, *S)`` of so many classes, background included.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D make one lesion. Default: all (26 or 8).

    Call it with ``y_pred`` and ``y``, both ``(B, C, *S)`` of 0 and 1 (or label maps), any dtype, 2-D or 3-D, or with
    lists of ``(C, *S)``. It returns float32 ``(B, C)`` from 0 to 1; NaN: nothing to find and nothing found.

    Raises:
        ConfigError: unknown ``metric_name``, ``matching_metric`` or ``matcher``, impossible ``threshold``, or
            impossible ``num_classes`` (when called).
        ValueError: there is no such ``connectivity`` (when called).
        LabelError: the inputs are not discrete or do not share one grid.

    Example:
        >>> import torch
        >>> truth, found = torch.zeros(2, 1, 1, 1, 16)
        >>> truth[..., [1, 2, 3, 4, 9, 12, 13]] = found[..., [1, 2, 3, 6, 13, 14]] = 1
        >>> metric = LesionPanopticQualityMetric()
        >>> metric(y_pred=found[None], y=truth[None])
        tensor([[0.2500]])
    """

    def __init__(
        self,
        include_background: bool | None = None,
        metric_name: str = "pq",
        matching_metric: MatchingMetric = "iou",
        threshold: float = 0.5,
        matcher: Matcher = "greedy",
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
        num_classes: int | None = None,
        connectivity: int | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans, num_classes)
        if metric_name not in _PANOPTIC_SCORES:
            raise ConfigError(f"metric_name must be one of {', '.join(_PANOPTIC_SCORES)}, got {metric_name!r}")
        check_matching(matching_metric, threshold, matcher)
        self.metric_name = metric_name
        self.matching_metric: MatchingMetric = matching_metric
        self.threshold = threshold
        self.matcher: Matcher = matcher
        self.connectivity = connectivity

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> Tensor:
        return self.score_each(y_pred, y, self._score)

    def _score(self, pred: NDArray[np.bool_], ref: NDArray[np.bool_]) -> float:
        quality = panoptic_quality(
            pred,
            ref,
            metric=self.matching_metric,
            threshold=self.threshold,
            matcher=self.matcher,
            connectivity=self.connectivity,
        )
        return float(getattr(quality, self.metric_name))


class _LesionwiseMetric(ClassMetric):
    """A score by the rule of a challenge; lesions always have 26 (2-D: 8) neighbours."""

    def __init__(
        self,
        rule: str = "brats2023-met",
        include_background: bool | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
        num_classes: int | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans, num_classes)
        if rule not in (*_RULES_2023, _METS2026):
            raise ConfigError(f"rule must be one of {', '.join((*_RULES_2023, _METS2026))}, got {rule!r}")
        self.rule = rule
        self.spacing = spacing

    def _scores(self, pred: NDArray[np.bool_], ref: NDArray[np.bool_]) -> LesionwiseBrats2023 | LesionwiseBratsMets2026:
        spacing = (1.0,) * ref.ndim if self.spacing is None else self.spacing
        if self.rule == _METS2026:
            return lesionwise_brats_mets2026(pred, ref, spacing)
        return lesionwise_brats2023(pred, ref, spacing, _RULES_2023[self.rule])


class LesionwiseDiceMetric(_LesionwiseMetric):
    """Mean Dice of lesions in which each false positive counts as one more lesion of Dice 0, as in BraTS.

    The rules are those of `nnunet_imbal.metrics.lesionwise_brats2023` and ``lesionwise_brats_mets2026``.

    Args:
        rule: ``"brats2023-met"``, ``"-gli"``, ``"-ssa"``, ``"-ped"``, ``"-men"``, or ``"brats-mets2026"``.
        include_background: score channel 0 too. Default None: no for label maps, yes otherwise.
            A single channel is always scored.
        reduction: how ``aggregate`` reduces ``(samples, classes)``, see `monai.metrics.do_metric_reduction`.
        get_not_nans: ``aggregate`` also returns how many scores are not NaN.
        num_classes: inputs are label maps ``(B, 1, *S)`` of so many classes, background included.
        spacing: mm per voxel in the order of the spatial axes. Default: 1 mm, as in BraTS.

    Call it with ``y_pred`` and ``y``, both ``(B, C, *S)`` of 0 and 1 (or label maps), any dtype, 2-D or 3-D, or with
    lists of ``(C, *S)``. It returns float32 ``(B, C)`` from 0 to 1. Where no lesion is large enough to count and there
    is no false positive: 1 by the rules of 2023; without a large lesion: NaN by that of 2026.

    Raises:
        ConfigError: unknown ``rule``, or impossible ``num_classes`` (when called).
        ValueError: impossible ``spacing`` (when called).
        LabelError: the inputs are not discrete or do not share one grid.

    Example:
        >>> import torch
        >>> truth, found = torch.zeros(2, 1, 1, 1, 16)
        >>> truth[..., [1, 2, 3, 4, 9, 12, 13]] = found[..., [1, 2, 3, 6, 13, 14]] = 1
        >>> metric = LesionwiseDiceMetric("brats2023-met")
        >>> metric(y_pred=found[None], y=truth[None])
        tensor([[0.4190]])
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> Tensor:
        return self.score_each(y_pred, y, lambda pred, ref: self._scores(pred, ref).dice)


class LesionwiseHD95Metric(_LesionwiseMetric):
    """Mean HD95 of lesions in mm, in which misses and false positives cost a penalty (374 or 373 mm), as in BraTS.

    Arguments, inputs and errors are those of `LesionwiseDiceMetric`. It returns float32 ``(B, C)``, 0 or more; where
    that metric returns 1 because nothing counts, it is 0.

    Example:
        >>> import torch
        >>> truth, found = torch.zeros(2, 1, 1, 1, 16)
        >>> truth[..., [1, 2, 3, 4, 9, 12, 13]] = found[..., [1, 2, 3, 6, 13, 14]] = 1
        >>> metric = LesionwiseHD95Metric("brats2023-met")
        >>> metric(y_pred=found[None], y=truth[None])
        tensor([[126.3333]])
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None) -> Tensor:
        return self.score_each(y_pred, y, lambda pred, ref: self._scores(pred, ref).hd95_mm)
