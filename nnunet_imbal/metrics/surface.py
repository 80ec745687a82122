"""How far the outlines of prediction and truth lie apart, border voxel by border voxel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from nnunet_imbal.metrics._masks import Mask, bounding_box, check_pair, check_spacing

__all__ = ["SurfaceDistances", "hd95", "surface_dice", "surface_distances"]


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
    check_pair(pred, ref)
    step = check_spacing(spacing, pred.shape)
    box = bounding_box(pred | ref)
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


def _border(mask: Mask) -> Mask:
    return mask & ~binary_erosion(mask)


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """A k-d tree needs memory for the border only; a distance map needs the whole box of scattered lesions."""
    if not len(others) or not len(points):
        return np.full(len(points), np.inf)
    return np.asarray(KDTree(others, leafsize=32).query(points)[0])
