"""How thick structures are at each of their voxels, on the GPU: every voxel looks for the largest ball that reaches it.

On the CPU the balls paint the voxels, largest first. Here no order is needed and no two threads meet.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from numba_kernels.cuda._batches import as_volumes, count_rows, locate
from numba_kernels.cuda._jit import inlined, kernel
from numba_kernels.cuda.device import THREADS, Device
from numba_kernels.cuda.distance import distance
from numba_kernels.local_thickness import _SAME

__all__ = ["local_thickness"]


def local_thickness(device: Device, masks: Any, spacing: Sequence[float] | None = None) -> Any:
    """Give each voxel the radius of the structure it belongs to, as :func:`numba_kernels.local_thickness` does.

    Args:
        device: Where the arrays live.
        masks: Masks or label maps ``(N, Y, X)`` or ``(N, Z, Y, X)``, bool or integer within int32, contiguous and not
            empty; everything but 0 is inside.
        spacing: Voxel size in mm along each axis of a mask. Default: 1 mm.

    Returns:
        Radius in mm, float32 of the same shape; 0 outside. Empty stays 0; without any outside all is inf.

    Raises:
        ValueError: ``spacing`` is not one positive finite number per axis.
    """
    depths = as_volumes(distance(device, masks, spacing))
    steps = [1.0] * 3 if spacing is None else [1.0] * (3 - len(spacing)) + [float(step) for step in spacing]
    deepest, largest = device.empty(tuple(depths.shape[:3]), "float32"), device.zeros((depths.shape[0],), "float32")
    thickness = device.empty(tuple(masks.shape), "float32")
    device.launch(_find_deepest, -(-count_rows(depths) // THREADS), depths, deepest, largest)
    device.launch(_find_thickest, count_rows(depths), depths, deepest, largest, *steps, as_volumes(thickness))
    return thickness


@kernel
def _find_deepest(depths: Any, deepest: Any, largest: Any) -> None:
    """The largest depth in each row, and in each map."""
    items, planes, height, width = depths.shape
    for row in range(cuda.grid(1), items * planes * height, cuda.gridsize(1)):
        item, z, y = locate(row, planes, height)
        depth = depths[item, z, y, 0]
        for x in range(1, width):
            if depths[item, z, y, x] > depth:
                depth = depths[item, z, y, x]
        deepest[item, z, y] = depth
        cuda.atomic.max(largest, item, depth)


@kernel
def _find_thickest(
    depths: Any, deepest: Any, largest: Any, step_z: float, step_y: float, step_x: float, thickness: Any
) -> None:
    items, planes, height, width = depths.shape
    for row in range(cuda.blockIdx.x, items * planes * height, cuda.gridDim.x):
        item, z, y = locate(row, planes, height)
        for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            best = depths[item, z, y, x]
            if best > 0 and best < largest[item]:
                radius = np.float64(largest[item])
                best = _search(depths[item], deepest[item], best, radius, (z, y, x), (step_z, step_y, step_x))
            thickness[item, z, y, x] = best


@inlined
def _search(
    depth: Any,
    deepest: Any,
    best: Any,
    radius: float,
    centre: tuple[int, int, int],
    steps: tuple[float, float, float],
) -> Any:
    """Look through the rows near enough for the largest ball, wherever a row holds a larger ball than the best."""
    planes, height, width = depth.shape
    z, y, x = centre
    first_z, end_z = _reach(z, radius / steps[0], planes)
    first_y, end_y = _reach(y, radius / steps[1], height)
    for k in range(first_z, end_z):
        for j in range(first_y, end_y):
            away = (steps[0] * (k - z)) ** 2 + (steps[1] * (j - y)) ** 2
            if deepest[k, j] > best and away <= np.float64(deepest[k, j]) ** 2 * _SAME:
                first_x, end_x = _reach(x, np.float64(deepest[k, j]) / steps[2], width)
                for i in range(first_x, end_x):
                    squared = away + (steps[2] * (i - x)) ** 2
                    if depth[k, j, i] > best and squared <= np.float64(depth[k, j, i]) ** 2 * _SAME:
                        best = depth[k, j, i]
    return best


@inlined
def _reach(centre: int, voxels: float, size: int) -> tuple[int, int]:
    """Voxels along an axis that lie no farther away, and one more on either side, as the limits of a range."""
    reach: Any = np.int64(voxels) + 1 if voxels < size else size
    return centre - reach if centre > reach else 0, centre + reach + 1 if centre + reach + 1 < size else size
