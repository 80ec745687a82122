"""How thick a structure is at each of its voxels: the largest ball inside it that reaches the voxel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._jit import kernel
from numba_kernels.distance import distance

__all__ = ["local_thickness"]

_SAME = 1 + 1e-6  # squared distances closer than that are equal: the measured ones are rounded to float32


def local_thickness(mask: NDArray[Any], spacing: Sequence[float] | None = None) -> NDArray[np.float32]:
    """Give each voxel the radius of the vessel (or other structure) it belongs to, in mm.

    ``thickness[v] = max over u inside with ||spacing * (u - v)|| <= d[u] of d[u]``, d the distance from u to the
    nearest voxel outside: the radius of the largest inscribed ball that contains v. Distances that agree to a
    millionth count as equal.

    Args:
        mask: Mask or label map ``(Y, X)`` or ``(Z, Y, X)``, bool or any integer dtype; everything but 0 is inside.
        spacing: Voxel size in mm along each axis of the array. Default: 1 mm.

    Returns:
        Radius in mm, float32 of the same shape; 0 outside. Empty stays 0; without any outside all is inf.

    Raises:
        TypeError: ``mask`` is neither bool nor integer.
        ValueError: ``mask`` is neither 2-D nor 3-D, or ``spacing`` is not one positive finite number per axis.

    Example:
        >>> local_thickness(np.array([[0, 1, 1, 1, 0, 1, 0]]))
        array([[0., 2., 2., 2., 0., 1., 0.]], dtype=float32)

    Source:
        Hildebrand and Rüegsegger, "A new method for the model-independent assessment of thickness in
        three-dimensional images", J. Microscopy 185 (1997), https://doi.org/10.1046/j.1365-2818.1997.1340694.x.
    """
    depth = distance(mask, spacing)
    if depth.size == 0 or np.isinf(depth.flat[0]):
        return depth
    volume = depth.reshape((1,) * (3 - depth.ndim) + depth.shape)
    steps = np.ones(3)
    if spacing is not None:
        steps[3 - depth.ndim :] = spacing
    return _fill(volume, steps).reshape(depth.shape)


def _fill(depth: NDArray[np.float32], steps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Paint all balls from the largest to the smallest; what is painted stays, and is leapt over.

    Leaps are links to a later place; the links from a place end at the first one from there on that is still to be
    painted, or behind the end of the row (of voxels) or plane (of rows).
    """
    inside = depth > 0
    planes, height, width = depth.shape
    places = planes * height * (width + 1)
    index = np.int32 if places <= np.iinfo(np.int32).max else np.int64  # the links are the most of the memory
    voxel_links = np.arange(places, dtype=index).reshape(planes, height, width + 1)
    voxel_links[:, :, :-1] += ~inside
    row_links = np.arange(planes * (height + 1)).reshape(planes, height + 1)
    row_links[:, :-1] += ~inside.any(axis=2)
    centres = np.argwhere(inside)
    centres = centres[np.argsort(-depth[inside], kind="stable")]
    thickness = np.zeros(voxel_links.shape, np.float32)
    _paint_balls(centres, depth, steps, voxel_links.reshape(-1), row_links.reshape(-1), thickness.reshape(-1))
    return thickness[:, :, :-1].copy()


@kernel
def _paint_balls(
    centres: NDArray[np.int64],
    depth: NDArray[np.float32],
    steps: NDArray[np.float64],
    voxel_links: NDArray[np.signedinteger],
    row_links: NDArray[np.int64],
    thickness: NDArray[np.float32],
) -> None:
    for z, y, x in centres:
        _paint_ball((z, y, x), depth[z, y, x], depth.shape, steps, voxel_links, row_links, thickness)


@kernel
def _paint_ball(
    centre: tuple[int, int, int],
    radius: np.float32,
    shape: tuple[int, int, int],
    steps: NDArray[np.float64],
    voxel_links: NDArray[np.signedinteger],
    row_links: NDArray[np.int64],
    thickness: NDArray[np.float32],
) -> None:
    z, y, x = centre
    planes, height, width = shape
    squared = np.float64(radius) ** 2 * _SAME
    first_z, last_z = _reach(z, squared, steps[0], planes)
    for k in range(first_z, last_z + 1):
        in_plane = squared - (steps[0] * (k - z)) ** 2
        first_y, last_y = _reach(y, in_plane, steps[1], height)
        plane = k * (height + 1)
        row = _follow(row_links, plane + first_y) - plane
        while row <= last_y:
            first, last = _reach(x, in_plane - (steps[1] * (row - y)) ** 2, steps[2], width)
            start = (k * height + row) * (width + 1)
            _paint(voxel_links, thickness, start + first, start + last, radius)
            if _follow(voxel_links, start) == start + width:
                row_links[plane + row] = plane + row + 1
            row = _follow(row_links, plane + row + 1) - plane


@kernel
def _reach(centre: int, squared: float, step: float, size: int) -> tuple[int, int]:
    """First and last voxel along an axis whose squared distance to the centre is no greater."""
    reach = int(np.sqrt(max(squared, 0.0)) / step)
    return max(centre - reach, 0), min(centre + reach, size - 1)


@kernel
def _paint(
    links: NDArray[np.signedinteger], thickness: NDArray[np.float32], first: int, last: int, radius: np.float32
) -> None:
    i = _follow(links, first)
    while i <= last:
        thickness[i] = radius
        links[i] = i + 1
        i = _follow(links, i + 1)


@kernel
def _follow(links: NDArray[np.signedinteger], i: int) -> int:
    """End of the links from i; the way there is halved for the next time."""
    while links[i] != i:
        links[i] = links[links[i]]
        i = links[i]
    return i
