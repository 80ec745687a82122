"""FROC: how many lesions are found at which price in false positives."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics._masks import Mask
from numba_kernels import component_stats, connected_components

__all__ = ["FrocCurve", "froc"]

Curve = NDArray[np.float64]
_THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
_PRICES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """Result of `froc`: one point for each threshold.

    Attributes:
        thresholds: Probabilities from which on a voxel counts as predicted, ascending.
        sensitivity: Detected lesions / lesions of all cases, 0 to 1; ``nan`` without lesions.
        false_positives_per_case: Predicted components without a true voxel / cases.
        cases: Number of cases.
        lesions: Number of lesions in all cases.
    """

    thresholds: Curve
    sensitivity: Curve
    false_positives_per_case: Curve
    cases: int
    lesions: int

    def sensitivity_at(self, false_positives_per_case: float) -> float:
        """Highest sensitivity of all thresholds with at most so many false positives per case; 0 if there is none.

        Nothing is interpolated between thresholds. ``nan`` without lesions.
        """
        affordable = self.sensitivity[self.false_positives_per_case <= false_positives_per_case]
        return float(affordable.max(initial=0.0)) if self.lesions else math.nan

    def mean_sensitivity(self, prices: Sequence[float] = _PRICES) -> float:
        """Mean of `sensitivity_at` over 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per case (CPM)."""
        return float(np.mean([self.sensitivity_at(price) for price in prices]))


def froc(
    cases: Iterable[tuple[NDArray[Any], Mask]],
    thresholds: Sequence[float] = _THRESHOLDS,
    connectivity: int | None = None,
) -> FrocCurve:
    """Trace how many lesions are found, and how many false alarms that costs, from timid to bold predictions.

    At each threshold t the predicted components are those of ``probs >= t``. A lesion is detected if one of its
    voxels is predicted; a component without a true voxel is a false positive. Sensitivity falls with t, but the
    number of false positives need not: large components fall apart.

    Args:
        cases: Pairs of probabilities (float, 0 to 1) and truth (bool) of one shape, 2-D or 3-D; read one by one.
        thresholds: Ascending probabilities in (0, 1].
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D make one component. Default: all neighbours.

    Returns:
        The curve over all cases together.

    Raises:
        ConfigError: The thresholds are not ascending numbers in (0, 1], or there is no case.
        ValueError: Shapes differ, probabilities are not in 0..1, or the connectivity does not exist.

    Example:
        >>> truth = np.zeros((1, 8), bool)
        >>> truth[0, [1, 2, 5]] = True
        >>> probs = np.array([[0, 0.9, 0.8, 0, 0, 0.3, 0, 0.6]])
        >>> curve = froc([(probs, truth)], thresholds=(0.25, 0.5, 0.75))
        >>> curve.sensitivity, curve.false_positives_per_case
        (array([1. , 0.5, 0.5]), array([1., 1., 0.]))

    Source:
        Bunch et al., Proc. SPIE 127 (1977), doi 10.1117/12.955926; the mean over seven prices is that of LUNA16
        (Setio et al. 2017, arXiv 1612.08012).
    """
    levels = np.asarray(thresholds, np.float64)
    if levels.ndim != 1 or not levels.size or not (np.diff(levels, prepend=0) > 0).all() or not levels[-1] <= 1:
        raise ConfigError(f"thresholds {thresholds}: expected ascending probabilities above 0, at most 1")
    hits, alarms = np.zeros(levels.size, np.int64), np.zeros(levels.size, np.int64)
    count = lesions = 0
    for probs, ref in cases:
        _check_case(probs, ref)
        peaks = _peaks(probs, ref, connectivity)
        hits += (peaks[:, None] >= levels).sum(axis=0)
        alarms += [_false_positives(probs >= level, ref, connectivity) for level in levels]
        count, lesions = count + 1, lesions + len(peaks)
    if not count:
        raise ConfigError("no case was given; expected at least one pair of probabilities and truth")
    sensitivity = hits / lesions if lesions else np.full(levels.size, math.nan)
    return FrocCurve(levels, sensitivity, alarms / count, count, lesions)


def _check_case(probs: NDArray[Any], ref: Mask) -> None:
    if probs.shape != ref.shape or ref.dtype != bool:
        raise ValueError(f"expected probabilities and a bool truth of one shape, got {probs.shape} and {ref.shape}")
    if probs.size and not (probs.min() >= 0 and probs.max() <= 1):
        raise ValueError(f"probabilities lie in {probs.min()}..{probs.max()}, expected 0..1; apply softmax first")


def _peaks(probs: NDArray[Any], ref: Mask, connectivity: int | None) -> Curve:
    """Highest probability in each lesion: the threshold up to which it is detected."""
    lesions = connected_components(ref, connectivity)[0]
    peaks = np.zeros(int(lesions.max(initial=0)) + 1)
    np.maximum.at(peaks, lesions[ref], probs[ref])
    return peaks[1:]


def _false_positives(found: Mask, ref: Mask, connectivity: int | None) -> int:
    hits = component_stats(found, connectivity, fields=[ref.astype(np.float32)]).sums[0]
    return int((hits == 0).sum())
