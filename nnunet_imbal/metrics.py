"""How good a segmentation is: overlap, surface distance, and lesion by lesion.

All functions take boolean masks of one class on one grid, ``(Z, Y, X)`` or ``(Y, X)``, and spacings in mm in the
same axis order. ``nan`` always means "not defined for this case", never "bad".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from numba_kernels import connected_components

__all__ = [
    "Lesion",
    "LesionMatch",
    "SizeBin",
    "SurfaceDistances",
    "dice",
    "f1_score",
    "hd95",
    "match_lesions",
    "recall_by_size",
    "share",
    "surface_dice",
    "surface_distances",
]

Mask = NDArray[np.bool_]
LESIONS_PER_BIN = 4


def dice(pred: Mask, ref: Mask) -> float:
    """Overlap of prediction and truth: ``2 |P∩R| / (|P| + |R|)``.

    Args:
        pred: Predicted voxels, bool.
        ref: True voxels, bool, same shape.

    Returns:
        0 (no common voxel) to 1 (identical); 0 if one of them is empty, ``nan`` if both are.

    Raises:
        ValueError: The shapes differ or a mask is not bool.

    Example:
        >>> dice(np.array([[True, True]]), np.array([[True, False]]))
        0.6666666666666666
    """
    _check_pair(pred, ref)
    total = int(pred.sum()) + int(ref.sum())
    return 2 * int((pred & ref).sum()) / total if total else math.nan


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """How far the two outlines lie apart.

    Attributes:
        to_reference: mm from each border voxel of the prediction to the nearest border voxel of the truth;
            infinite if there is no truth.
        to_prediction: The same from truth to prediction.
    """

    to_reference: NDArray[np.float64]
    to_prediction: NDArray[np.float64]

    def dice(self, tolerance_mm: float) -> float:
        """Share of all border voxels that lie within the tolerance (see `surface_dice`)."""
        both = np.concatenate([self.to_reference, self.to_prediction])
        # 3 steps of 0.1 mm are 0.3 mm, whatever binary rounding says
        return float(np.mean(both <= tolerance_mm * (1 + 1e-6))) if both.size else math.nan

    def hausdorff(self, percentile: float = 100) -> float:
        """The larger of the two one-way percentile distances in mm (see `hd95`)."""
        ways = (self.to_reference, self.to_prediction)
        if not any(way.size for way in ways):
            return math.nan
        if not all(way.size for way in ways):
            return math.inf
        return float(max(np.percentile(way, percentile) for way in ways))


def surface_distances(pred: Mask, ref: Mask, spacing: Sequence[float]) -> SurfaceDistances:
    """Measure the way from each border voxel of one mask to the nearest border voxel of the other.

    A border voxel is a voxel of the mask with a face neighbour outside it (beyond the image counts as outside).

    Args:
        pred: Predicted voxels, bool.
        ref: True voxels, bool, same shape.
        spacing: mm per voxel along each axis of the arrays.

    Raises:
        ValueError: The shapes differ, a mask is not bool, or there is not one positive spacing per axis.
    """
    _check_pair(pred, ref)
    step = np.asarray(spacing, np.float64)
    if step.shape != (pred.ndim,) or not (np.isfinite(step) & (step > 0)).all():
        raise ValueError(f"spacing {spacing}: expected {pred.ndim} positive numbers, one per axis of {pred.shape}")
    box = _bounding_box(pred | ref)
    ours, theirs = (np.argwhere(_border(mask[box])) * step for mask in (pred, ref))
    return SurfaceDistances(_nearest(ours, theirs), _nearest(theirs, ours))


def surface_dice(pred: Mask, ref: Mask, spacing: Sequence[float], tolerance_mm: float) -> float:
    """Share of the outline that needs no correction: border voxels within a tolerance of the other outline.

    ``(|{p : d(p, ∂R) ≤ τ}| + |{r : d(r, ∂P) ≤ τ}|) / (|∂P| + |∂R|)`` with τ in mm.

    Args:
        pred: Predicted voxels, bool.
        ref: True voxels, bool, same shape.
        spacing: mm per voxel along each axis.
        tolerance_mm: Deviation that counts as correct, in mm.

    Returns:
        0 to 1; 0 if one mask is empty, ``nan`` if both are.

    Raises:
        ValueError: See `surface_distances`.

    Source:
        Nikolov et al. 2021, https://doi.org/10.2196/26151; borders as voxels, as in MONAI's
        ``compute_surface_dice``.
    """
    return surface_distances(pred, ref, spacing).dice(tolerance_mm)


def hd95(pred: Mask, ref: Mask, spacing: Sequence[float]) -> float:
    """Worst disagreement of the outlines in mm, leaving out the worst 5 % of each outline.

    ``max(P95 of d(p, ∂R), P95 of d(r, ∂P))``.

    Args:
        pred: Predicted voxels, bool.
        ref: True voxels, bool, same shape.
        spacing: mm per voxel along each axis.

    Returns:
        0 (same outline) upwards, in mm; infinite if one mask is empty, ``nan`` if both are.

    Raises:
        ValueError: See `surface_distances`.

    Source:
        As MONAI's ``compute_hausdorff_distance(percentile=95)``.
    """
    return surface_distances(pred, ref, spacing).hausdorff(95)


@dataclass(frozen=True)
class Lesion:
    """One connected component of a mask.

    Attributes:
        id: Its number in ``connected_components`` of that mask, from 1.
        voxels: Its size in voxels.
        centroid: Its mean voxel index along each axis.
        overlap_voxels: Voxels it shares with the other mask.
    """

    id: int
    voxels: int
    centroid: tuple[float, ...]
    overlap_voxels: int

    @property
    def detected(self) -> bool:
        """Whether the other mask touches it in at least one voxel."""
        return self.overlap_voxels > 0


@dataclass(frozen=True)
class LesionMatch:
    """Which lesions were found, and which findings are true.

    Attributes:
        reference: The true lesions; ``detected`` = at least one predicted voxel lies in it.
        prediction: The predicted components; not ``detected`` = false positive.
    """

    reference: tuple[Lesion, ...]
    prediction: tuple[Lesion, ...]

    @cached_property
    def false_positives(self) -> tuple[Lesion, ...]:
        """Predicted components without any true voxel."""
        return tuple(found for found in self.prediction if not found.detected)

    @property
    def recall(self) -> float:
        """Detected lesions / lesions (sensitivity); ``nan`` without lesions."""
        return share(sum(lesion.detected for lesion in self.reference), len(self.reference))

    @property
    def precision(self) -> float:
        """Predicted components that touch a lesion / predicted components; ``nan`` without a prediction."""
        return share(len(self.prediction) - len(self.false_positives), len(self.prediction))

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision, see `f1_score`."""
        return f1_score(self.recall, self.precision)


def match_lesions(pred: Mask, ref: Mask, connectivity: int | None = None) -> LesionMatch:
    """Ask lesion by lesion whether it was found, and finding by finding whether it is true.

    Args:
        pred: Predicted voxels, bool.
        ref: True voxels, bool, same shape.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D make one lesion. Default: all neighbours.

    Returns:
        The components of both masks, in scan order, with their sizes, centroids and overlaps. Empty tuples for
        empty masks.

    Raises:
        ValueError: The shapes differ, a mask is not bool, or the connectivity does not exist.

    Example:
        >>> truth, found = np.zeros((2, 1, 16), bool)
        >>> truth[:, [1, 2, 3, 4, 9, 12, 13]] = found[:, [1, 2, 3, 6, 13, 14]] = True
        >>> match = match_lesions(found, truth)
        >>> [lesion.detected for lesion in match.reference], len(match.false_positives)
        ([True, False, True], 1)
    """
    _check_pair(pred, ref)
    box = _bounding_box(pred | ref)
    corner = np.array([side.start for side in box], np.float64)
    pred, ref = pred[box], ref[box]
    return LesionMatch(_describe(ref, pred, corner, connectivity), _describe(pred, ref, corner, connectivity))


def share(part: int, whole: int) -> float:
    """``part / whole``, a number from 0 to 1; ``nan`` if the whole is 0."""
    return part / whole if whole else math.nan


def f1_score(recall: float, precision: float) -> float:
    """Harmonic mean ``2 P R / (P + R)``.

    Returns:
        0 to 1. If only one of the two is not defined, the case has nothing but misses or false alarms: 0. If both
        are not defined (nothing to find and nothing found), ``nan``.

    Example:
        >>> f1_score(1.0, 0.5)
        0.6666666666666666
    """
    if math.isnan(recall) and math.isnan(precision):
        return math.nan
    total = recall + precision
    return 2 * recall * precision / total if total > 0 else 0.0


@dataclass(frozen=True)
class SizeBin:
    """How many lesions of one size range were found; ``low`` is included, ``high`` only in the last bin."""

    low: float
    high: float
    lesions: int
    detected: int

    @property
    def recall(self) -> float:
        """Detected lesions / lesions."""
        return self.detected / self.lesions


def recall_by_size(volumes: ArrayLike, detected: ArrayLike) -> list[SizeBin]:
    """Recall from the smallest to the largest lesions, in groups of about equal number.

    The groups are deciles of the volumes; with fewer than 40 lesions there are fewer groups, of at least about
    four lesions each. Equal volumes never fall into different groups.

    Args:
        volumes: Volume of each lesion, in any one unit.
        detected: Whether it was found, bool, same length.

    Returns:
        At most ten bins, ascending; every lesion lies in exactly one. Empty without lesions.

    Raises:
        ValueError: The lengths differ or a volume is not finite.
    """
    sizes, found = np.asarray(volumes, np.float64), np.asarray(detected, bool)
    if sizes.ndim != 1 or sizes.shape != found.shape or not np.isfinite(sizes).all():
        raise ValueError(f"expected finite volumes and flags of one length, got {sizes.shape} and {found.shape}")
    if not sizes.size:
        return []
    groups = min(10, max(1, sizes.size // LESIONS_PER_BIN))
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, groups + 1)))
    which = np.searchsorted(edges[1:-1], sizes, side="right")
    counts = np.bincount(which, minlength=max(1, edges.size - 1))
    hits = np.bincount(which, found, counts.size)
    bins = zip(edges, [*edges[1:], edges[-1]], counts, hits, strict=False)
    return [SizeBin(float(low), float(high), int(n), int(k)) for low, high, n, k in bins if n]


def _check_pair(pred: Mask, ref: Mask) -> None:
    if pred.shape != ref.shape:
        raise ValueError(f"prediction {pred.shape} and reference {ref.shape} differ in shape; expected the same grid")
    if pred.dtype != bool or ref.dtype != bool:
        raise ValueError(f"expected bool masks, got {pred.dtype} and {ref.dtype}; compare labels first: array == 1")


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """Smallest box around the mask; an empty box for an empty mask."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
    return tuple(box)


def _border(mask: Mask) -> Mask:
    return mask & ~binary_erosion(mask)


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """A k-d tree needs memory for the border only; a distance map needs the whole box of scattered lesions."""
    if not len(others) or not len(points):
        return np.full(len(points), np.inf)
    return np.asarray(KDTree(others, leafsize=32).query(points)[0])


def _describe(mask: Mask, other: Mask, corner: NDArray[np.float64], connectivity: int | None) -> tuple[Lesion, ...]:
    components, count = connected_components(mask, connectivity)
    where = np.nonzero(mask)
    number = components[where]
    voxels = np.bincount(number, minlength=count + 1)
    overlap = np.bincount(number[other[where]], minlength=count + 1)
    with np.errstate(invalid="ignore"):  # component 0, the background, is never listed
        means = [np.bincount(number, axis, count + 1) / voxels for axis in where]
    centroids = np.stack(means, axis=1) + corner
    return tuple(
        Lesion(i, int(voxels[i]), tuple(map(float, centroids[i])), int(overlap[i])) for i in range(1, count + 1)
    )
