"""FROC: how many lesions are found at which price in false positives."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics._masks import Mask, bounding_box, voxels_for
from numba_kernels import component_stats, connected_components

__all__ = ["FROC_THRESHOLDS", "FrocCounts", "FrocCurve", "froc", "froc_counts"]

FROC_THRESHOLDS = (0.01, 0.02, *(round(0.05 * i, 2) for i in range(1, 20)), 0.98, 0.99)

Numbers = NDArray[np.float64]
Counts = NDArray[np.int64]
_PRICES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


@dataclass(frozen=True, eq=False)
class FrocCounts:
    """What one case shows at each threshold and each smallest volume; the arrays are ``(thresholds, volumes)``.

    Attributes:
        thresholds: Probabilities above which a voxel counts as predicted, ascending.
        volumes_mm3: Volumes that a predicted component must have to count, ascending.
        detected: Lesions that share a voxel with a predicted component.
        components: Predicted components.
        false_positives: Those without a true voxel.
        predicted_voxels: Voxels of the predicted components.
        common_voxels: Those of them that are true.
        lesions: Number of lesions.
        reference_voxels: Number of true voxels.
    """

    thresholds: Numbers
    volumes_mm3: Numbers
    detected: Counts
    components: Counts
    false_positives: Counts
    predicted_voxels: Counts
    common_voxels: Counts
    lesions: int
    reference_voxels: int

    @property
    def dice(self) -> Numbers:
        """Dice at each point, 0 to 1; ``nan`` where nothing is true and nothing predicted."""
        total = self.predicted_voxels + self.reference_voxels
        return np.where(total > 0, 2 * self.common_voxels / np.maximum(total, 1), math.nan)


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """Result of `froc`: one point for each threshold and smallest volume; the arrays are ``(thresholds, volumes)``.

    Attributes:
        thresholds: Probabilities above which a voxel counts as predicted, ascending.
        volumes_mm3: Volumes that a predicted component must have to count, ascending.
        sensitivity: Detected lesions / lesions of all cases, 0 to 1; ``nan`` without lesions.
        false_positives_per_case: Predicted components without a true voxel / cases.
        cases: Number of cases.
        lesions: Number of lesions in all cases.
    """

    thresholds: Numbers
    volumes_mm3: Numbers
    sensitivity: Numbers
    false_positives_per_case: Numbers
    cases: int
    lesions: int

    def envelope(self) -> tuple[Numbers, Numbers]:
        """The curve to draw: false positives per case and sensitivity of the points that no other point beats.

        Both ascend strictly; between two points the curve is a stair. Empty without lesions.
        """
        if not self.lesions:
            return np.empty(0), np.empty(0)
        price, gain = self.false_positives_per_case.ravel(), self.sensitivity.ravel()
        order = np.lexsort((-gain, price))
        best = np.maximum.accumulate(gain[order])
        rises = np.diff(best, prepend=-1) > 0
        return price[order][rises], best[rises]

    def sensitivity_at(self, false_positives_per_case: float) -> float:
        """Highest sensitivity of all points with at most so many false positives per case; 0 if there is none.

        Nothing is interpolated between points. ``nan`` without lesions.
        """
        affordable = self.sensitivity[self.false_positives_per_case <= false_positives_per_case]
        return float(affordable.max(initial=0.0)) if self.lesions else math.nan

    def mean_sensitivity(self, prices: Sequence[float] = _PRICES) -> float:
        """Mean of `sensitivity_at` over 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per case (CPM)."""
        return float(np.mean([self.sensitivity_at(price) for price in prices]))


def froc(counts: Iterable[FrocCounts]) -> FrocCurve:
    """Trace how many lesions are found, and how many false alarms that costs, from timid to bold predictions.

    Sensitivity falls with the threshold and with the smallest volume. The number of false positives falls with the
    volume, but need not with the threshold: large components fall apart.

    Args:
        counts: What `froc_counts` says of each case, all at the same thresholds and volumes; read one by one.

    Returns:
        The curve over the lesions of all cases together.

    Raises:
        ConfigError: There is no case, or the cases were counted at different thresholds or volumes.

    Example:
        >>> truth = np.zeros((1, 8), bool)
        >>> truth[0, [1, 2, 5]] = True
        >>> probs = np.array([[0, 0.9, 0.8, 0, 0, 0.3, 0, 0.6]])
        >>> curve = froc([froc_counts(probs, truth, thresholds=(0.25, 0.5, 0.75))])
        >>> curve.sensitivity[:, 0], curve.false_positives_per_case[:, 0]
        (array([1. , 0.5, 0.5]), array([1., 1., 0.]))

    Source:
        Bunch et al., Proc. SPIE 127 (1977), doi 10.1117/12.955926; the mean over seven prices is that of LUNA16
        (Setio et al. 2017, arXiv 1612.08012), published with interpolation, here without.
    """
    first: FrocCounts | None = None
    cases = lesions = 0
    for case in counts:
        if first is None:
            first, detected, alarms = case, np.zeros_like(case.detected), np.zeros_like(case.detected)
        _check_same_grid(case, first)
        detected, alarms = detected + case.detected, alarms + case.false_positives
        cases, lesions = cases + 1, lesions + case.lesions
    if first is None:
        raise ConfigError("no case was given; expected what froc_counts says of at least one")
    sensitivity = detected / lesions if lesions else np.full(detected.shape, math.nan)
    return FrocCurve(first.thresholds, first.volumes_mm3, sensitivity, alarms / cases, cases, lesions)


def froc_counts(
    probs: NDArray[Any],
    ref: Mask,
    spacing: Sequence[float] | None = None,
    *,
    thresholds: Sequence[float] = FROC_THRESHOLDS,
    volumes_mm3: Sequence[float] = (0.0,),
    connectivity: int | None = None,
) -> FrocCounts:
    """Count what one case shows at each threshold of the probability and each smallest volume of a component.

    At threshold t the predicted components are those of ``probs > t`` with at least v mm³ (nnU-Net, too, decides by
    ``> 0.5``). A lesion is detected if one of its voxels is predicted; a component without a true voxel is a false
    positive, as in `match_lesions`.

    Args:
        probs: Probabilities of one class, float, 0 to 1, ``(Z, Y, X)`` or ``(Y, X)``.
        ref: True voxels, bool, same shape.
        spacing: mm per voxel along each axis; default 1 mm.
        thresholds: Ascending numbers in [0, 1]. Above 1 nothing is predicted, above 0 almost everything.
        volumes_mm3: Ascending volumes, 0 or more; 0 keeps every component.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D make one component. Default: all neighbours.

    Raises:
        ConfigError: Thresholds or volumes are not what is expected.
        ValueError: Shapes differ, probabilities are not in 0..1, the spacing does not fit, or the connectivity does
            not exist.

    Example:
        >>> truth = np.zeros((1, 8), bool)
        >>> truth[0, [1, 2, 5]] = True
        >>> probs = np.array([[0, 0.9, 0.8, 0, 0, 0.3, 0, 0.6]])
        >>> counts = froc_counts(probs, truth, thresholds=(0.25, 0.5), volumes_mm3=(0, 2))
        >>> counts.detected.tolist(), counts.false_positives.tolist()
        ([[2, 1], [1, 1]], [[1, 0], [1, 0]])
    """
    levels, volumes = _ascending(thresholds, "thresholds", 1), _ascending(volumes_mm3, "volumes_mm3", math.inf)
    _check_case(probs, ref)
    smallest = np.array([voxels_for(volume, spacing or (1.0,) * ref.ndim, ref.shape) for volume in volumes])
    box = bounding_box((probs > levels[0]) | ref)
    probs, ref = probs[box], np.ascontiguousarray(ref[box])
    lesions, number = connected_components(ref, connectivity)
    rows = [_count_at(probs > float(level), ref, lesions[ref], number, smallest, connectivity) for level in levels]
    detected, components, alarms, predicted, common = np.stack(rows, axis=1)
    return FrocCounts(levels, volumes, detected, components, alarms, predicted, common, number, int(ref.sum()))


def _count_at(
    found: Mask, ref: Mask, lesion: NDArray[np.int32], lesions: int, smallest: Counts, connectivity: int | None
) -> Counts:
    """The five counts of `FrocCounts` at one threshold, ``(5, volumes)``; ``lesion`` numbers the true voxels."""
    stats = component_stats(found, connectivity, fields=[ref.astype(np.float32)])
    order = np.argsort(stats.sizes)
    hits = stats.sums[0].astype(np.int64)
    first = np.searchsorted(stats.sizes[order], smallest)  # of the components that are large enough
    columns = np.stack([np.ones_like(hits), hits == 0, stats.sizes, hits])[:, order]
    sums = np.zeros((4, hits.size + 1), np.int64)
    sums[:, :-1] = np.cumsum(columns[:, ::-1], axis=1)[:, ::-1]
    largest = _largest_on_lesions(found, ref, lesion, lesions, stats.sizes, connectivity)
    return np.concatenate([(largest[:, None] >= smallest).sum(axis=0)[None], sums[:, first]])


def _largest_on_lesions(
    found: Mask, ref: Mask, lesion: NDArray[np.int32], lesions: int, sizes: Counts, connectivity: int | None
) -> Counts:
    """Size of the largest predicted component on each lesion: up to it the lesion is detected. 0 if there is none."""
    largest = np.zeros(lesions + 1, np.int64)
    if lesions:
        component = connected_components(found, connectivity)[0][ref]
        np.maximum.at(largest, lesion, np.concatenate([[0], sizes])[component])
    return largest[1:]


def _ascending(numbers: Sequence[float], name: str, highest: float) -> Numbers:
    array = np.asarray(numbers, np.float64)
    fits = array.ndim == 1 and array.size and (np.diff(array) > 0).all() and array[0] >= 0 and array[-1] <= highest
    if not (fits and np.isfinite(array).all()):
        raise ConfigError(f"{name} {numbers}: expected ascending numbers from 0 to {highest:g}")
    return array


def _check_case(probs: NDArray[Any], ref: Mask) -> None:
    if probs.shape != ref.shape or ref.dtype != bool:
        raise ValueError(f"expected probabilities and a bool truth of one shape, got {probs.shape} and {ref.shape}")
    if probs.size and not (probs.min() >= 0 and probs.max() <= 1):
        raise ValueError(f"probabilities lie in {probs.min()}..{probs.max()}, expected 0..1; apply softmax first")


def _check_same_grid(case: FrocCounts, first: FrocCounts) -> None:
    for mine, other in ((case.thresholds, first.thresholds), (case.volumes_mm3, first.volumes_mm3)):
        if not np.array_equal(mine, other):
            raise ConfigError(f"cases were counted at {other} and at {mine}; count all of them at the same points")
