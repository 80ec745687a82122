"""HD95 weighted by the area of the surface, as the surface-distance package of DeepMind measures it."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from nnunet_imbal.metrics._masks import Mask, bounding_box, check_pair, check_spacing

__all__ = ["surface_element_hd95"]

Points = NDArray[np.float64]


def surface_element_hd95(pred: Mask, ref: Mask, spacing: Sequence[float]) -> float:
    """Worst disagreement of the outlines in mm, leaving out the worst 5 % of the *area* of each outline.

    The outline consists of surface elements, one at each corner point that voxels of the mask share with voxels
    outside; an element weighs as much as the surface that marching cubes lays through it (in 2-D: as its length).
    `hd95` instead counts border voxels, all alike, and gives other numbers.

    Args:
        pred: Predicted voxels, bool, 2-D or 3-D.
        ref: True voxels, bool, same shape.
        spacing: mm per voxel along each axis.

    Returns:
        0 (same outline) upwards, in mm; infinite if one mask is empty, ``nan`` if both are.

    Raises:
        ValueError: The shapes differ, a mask is not bool, or there is not one positive spacing per axis.

    Example:
        >>> near, far = np.zeros((2, 8, 8), bool)
        >>> near[2:5, 2:5] = far[2:5, 3:6] = True
        >>> surface_element_hd95(near, far, (1.0, 0.5))
        0.5

    Source:
        Nikolov et al. 2021, https://doi.org/10.2196/26151, published; equals ``compute_robust_hausdorff`` of the
        package surface-distance 0.1. The areas of the 256 elements come from scikit-image's marching cubes (Lorensen);
        where more than four of the eight voxels are inside, from the inverted element, as in that package.
    """
    check_pair(pred, ref)
    step = check_spacing(spacing, pred.shape)
    box = bounding_box(pred | ref)
    (ours, our_areas), (theirs, their_areas) = (_elements(mask[box], step) for mask in (pred, ref))
    if not len(ours) and not len(theirs):
        return math.nan
    if not len(ours) or not len(theirs):
        return math.inf
    ways = ((_nearest(ours, theirs, step), our_areas), (_nearest(theirs, ours, step), their_areas))
    return max(_weighted_percentile(distances, areas, 0.95) for distances, areas in ways)


def _elements(mask: Mask, step: Points) -> tuple[NDArray[np.int64], Points]:
    """Corner points on the outline, as index of the voxel behind each, and the area of each in mm² (2-D: mm)."""
    padded = np.pad(mask, 1).view(np.uint8)
    code = np.zeros([size + 1 for size in mask.shape], np.uint8)
    for bit, corner in enumerate(np.ndindex(*[2] * mask.ndim)):
        code |= padded[tuple(slice(c, c + size + 1) for c, size in zip(corner, mask.shape, strict=True))] << bit
    full = 2 ** (2**mask.ndim) - 1
    points = np.argwhere((code != 0) & (code != full))
    return points, _areas(tuple(step.tolist()))[code[tuple(points.T)]]


def _nearest(points: NDArray[np.int64], others: NDArray[np.int64], step: Points) -> Points:
    """Distances from index differences: equally far neighbours are then equal to the last bit."""
    nearest = KDTree(others * step, leafsize=32).query(points * step)[1]
    return np.asarray(np.sqrt((((points - others[nearest]) * step) ** 2).sum(axis=1)))


def _weighted_percentile(distances: Points, areas: Points, part: float) -> float:
    order = np.lexsort((areas, distances))
    grown = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(int(np.searchsorted(grown, part)), len(order) - 1)])


@lru_cache(maxsize=16)
def _areas(step: tuple[float, ...]) -> Points:
    """Area of each element: bit k of its code is voxel k of the 2 x 2 (x 2) voxels around it, in scan order."""
    if len(step) == 2:
        return _lengths(*step)
    across = np.array([step[1] * step[2], step[0] * step[2], step[0] * step[1]])
    return np.array([float(np.linalg.norm(normals * across, axis=1).sum()) for normals in _normals()])


def _lengths(high: float, wide: float) -> Points:
    """Marching squares: a cut corner is half a diagonal long, a straight cut one voxel."""
    corner = math.hypot(high, wide) / 2
    straight = {0b0011: wide, 0b1100: wide, 0b0101: high, 0b1010: high, 0b0000: 0.0, 0b1111: 0.0}
    diagonal = {0b0110: 2 * corner, 0b1001: 2 * corner}
    return np.array([{**straight, **diagonal}.get(code, corner) for code in range(16)])


@lru_cache(maxsize=1)
def _normals() -> list[Points]:
    """Triangles of each element between voxels 1 mm apart: vectors as long as the area of the triangle, ``(n, 3)``."""
    from skimage.measure import marching_cubes  # half a second, for nobody else

    normals = [np.zeros((1, 3))] * 256
    for code in range(1, 255):
        inside = code if code.bit_count() <= 4 else 255 - code
        cube = np.array([inside >> bit & 1 for bit in range(8)], np.float32).reshape(2, 2, 2)
        corners, faces, *_ = marching_cubes(cube, 0.5, method="lorensen", allow_degenerate=False)
        a, b, c = corners.astype(np.float64)[faces].swapaxes(0, 1)
        normals[code] = np.cross(b - a, c - a) / 2
    return normals
