"""Which component is nearest to each voxel, on the GPU: one thread follows one line of voxels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda

from numba_kernels.cuda._batches import in_parts
from numba_kernels.cuda._jit import inlined, kernel
from numba_kernels.cuda.device import THREADS, Device
from numba_kernels.nearest_component import _check_max_distance, _check_spacing, _choose_scale, _in_units

__all__ = ["nearest_component"]

_SCRATCH_PER_VOXEL = 2 * 8 + 4 * 4


def nearest_component(
    device: Device,
    labels: Any,
    spacing: Sequence[float] | None = None,
    *,
    return_distance: bool = False,
    return_index: bool = False,
    max_distance: float | None = None,
) -> Any:
    """Give each voxel the label of the nearest labelled voxel, as :func:`numba_kernels.nearest_component` does.

    The same voxels win ties: both write distances as the same whole numbers.

    Args:
        device: Where the arrays live.
        labels: Label maps ``(N, Y, X)`` or ``(N, Z, Y, X)``, integer within int32, contiguous and not empty; 0 = no
            label.
        spacing: Voxel size in mm along each axis of a map. Default: 1 mm.
        return_distance: Also return the distance to that labelled voxel.
        return_index: Also return the position of that labelled voxel.
        max_distance: Voxels farther than this many mm from every label belong to no cell. Default: no limit.

    Returns:
        Cells, int32 of the same shape. With ``return_distance`` also the distance in mm, float32 in [0, inf). With
        ``return_index`` also the index of the nearest labelled voxel in its map, int64, counted in C order. Where there
        is no cell - no label at all, or none within ``max_distance`` - these are 0, inf and -1. Besides, up to 32 bytes
        per voxel are in use meanwhile, for as many maps at once as fit into 256 MiB, but for one at least.

    Raises:
        ValueError: ``spacing`` is not one positive finite number per axis, or ``max_distance`` is negative or NaN.

    Source:
        Lower envelope of parabolas, one axis after the other: Felzenszwalb and Huttenlocher, "Distance transforms
        of sampled functions", Theory of Computing 8 (2012), https://doi.org/10.4086/toc.2012.v008a019.
    """
    shape = tuple(labels.shape)
    steps, limit = _check_spacing(spacing, len(shape) - 1), _check_max_distance(max_distance)
    missing = 4 - len(shape)
    scale = _choose_scale(np.append(np.full(missing, steps.min()), steps), (1,) * missing + shape[1:])
    farthest = min(_in_units(limit, scale), float(np.nextafter(float(scale.far), 0)))
    cells = device.empty(shape, "int32")
    distance = device.empty(shape, "float32") if return_distance else None
    index = device.empty(shape, "int64") if return_index else None
    for part in in_parts(shape, _SCRATCH_PER_VOXEL):
        found = cells[part] if index is None else device.empty(tuple(cells[part].shape), "int32")
        squared = _transform(device, labels[part], found, scale.weights[missing:], scale.far, farthest, index is None)
        lines = [array.reshape((found.shape[0], -1)) for array in (squared, found, labels[part], cells[part])]
        grid = -(-lines[0].shape[1] // THREADS), found.shape[0]
        if index is not None:
            device.launch(_look_up, grid, *lines, index[part].reshape(tuple(lines[0].shape)), farthest)
        elif max_distance is not None:
            device.launch(_forget, grid, *lines[:2], farthest)
        if distance is not None:
            device.launch(_measure, grid, lines[0], distance[part].reshape(tuple(lines[0].shape)), scale.unit, farthest)
    results = tuple(array for array in (cells, distance, index) if array is not None)
    return results if len(results) > 1 else cells


def _transform(
    device: Device, labels: Any, found: Any, weights: list[int], far: Any, farthest: float, by_label: bool
) -> Any:
    """Fill ``found`` with labels or indices; return the squared distances, whole numbers of the type of ``far``."""
    shape = tuple(labels.shape)
    squared, new_squared = device.empty(shape, far.dtype.name), device.empty(shape, far.dtype.name)
    names, new_names = found, device.empty(shape, "int32")
    if len(weights) == 2:  # an odd number of exchanges below
        names, new_names = new_names, names
    sites, firsts = device.empty(shape, "int32"), device.empty(shape, "int32")
    rows = [array.reshape((-1, shape[-1])) for array in (labels, squared, names)]
    rows_of_map = 0 if by_label else math.prod(shape[1:-1])
    device.launch(_sweep_rows, -(-rows[0].shape[0] // THREADS), *rows, weights[-1], int(far), rows_of_map)
    for axis in range(len(shape) - 2, 0, -1):
        lines = (-1, shape[axis], math.prod(shape[axis + 1 :]))
        views = [array.reshape(lines) for array in (squared, names, new_squared, new_names, sites, firsts)]
        blocks = -(-math.prod(shape) // (shape[axis] * THREADS))
        device.launch(_sweep, blocks, *views, weights[axis - 1], int(far), farthest)
        squared, new_squared = new_squared, squared
        names, new_names = new_names, names
    return squared


@kernel
def _sweep_rows(labels: Any, squared: Any, names: Any, weight: int, far: int, rows_of_map: int) -> None:
    """Let nearness spread along the rows, from the left and then from the right.

    Voxels are named by their label or, if there is a number of rows of a map, by their index in it.
    """
    rows, width = labels.shape
    for row in range(cuda.grid(1), rows, cuda.gridsize(1)):
        site = -1
        for x in range(width):
            if labels[row, x] != 0:
                site = x
            names[row, x] = site
        after = -1
        for x in range(width - 1, -1, -1):
            if labels[row, x] != 0:
                after = x
            site = names[row, x]
            if after >= 0 and (site < 0 or after - x < x - site):  # the left one keeps the ties
                site = after
            step = np.int64(x - site)
            squared[row, x] = weight * step * step if site >= 0 else far
            name = labels[row, site] if rows_of_map == 0 else row % rows_of_map * width + site
            names[row, x] = name if site >= 0 else 0


@kernel
def _sweep(
    squared: Any,
    names: Any,
    new_squared: Any,
    new_names: Any,
    sites: Any,
    firsts: Any,
    weight: int,
    far: int,
    farthest: float,
) -> None:
    """Let nearness spread along the middle axis of (before, n, after)."""
    before, _, after = squared.shape
    for line in range(cuda.grid(1), before * after, cuda.gridsize(1)):
        a = line // after
        b = line - a * after
        count = _envelope(squared[a, :, b], weight, farthest, sites[a, :, b], firsts[a, :, b])
        _spread(squared[a, :, b], new_squared[a, :, b], weight, far, sites[a, :, b], firsts[a, :, b], count)
        _name(names[a, :, b], new_names[a, :, b], sites[a, :, b], firsts[a, :, b], count)


@inlined
def _envelope(line: Any, weight: int, farthest: float, sites: Any, firsts: Any) -> int:
    """Find the parabolas ``line[q] + weight * (i - q)**2`` that are lowest somewhere.

    The k-th of them, at ``sites[k]``, is lowest from voxel ``firsts[k]`` on, up to where the next one is. What is too
    far away already is left out, for it only gets farther.
    """
    n = line.size
    count = 0
    for q in range(n):
        if np.float64(line[q]) <= farthest:
            first = 0
            while count > 0:
                first = _overtakes(line, weight, sites[count - 1], q)
                if first > firsts[count - 1]:
                    break
                count -= 1  # the last parabola is lowest nowhere any more
                first = 0
            if first < n:
                sites[count] = q
                firsts[count] = first
                count += 1
    return count


@inlined
def _overtakes(line: Any, weight: int, v: int, q: int) -> int:
    """First voxel where the parabola of q lies strictly below the one of v < q, so that v keeps the ties."""
    slope = weight * np.int64(q - v)
    return (np.int64(line[q]) - line[v] + slope * np.int64(q + v)) // (2 * slope) + 1


@inlined
def _spread(line: Any, new_line: Any, weight: int, far: int, sites: Any, firsts: Any, count: int) -> None:
    """Write the height of the lowest parabola to every voxel of the line."""
    k, site, height = 0, 0, np.int64(far)
    for i in range(line.size):
        if k < count and firsts[k] == i:
            site = sites[k]
            height = line[site]
            k += 1
        step = np.int64(i - site)
        new_line[i] = height + weight * step * step if count > 0 else far


@inlined
def _name(names: Any, new_names: Any, sites: Any, firsts: Any, count: int) -> None:
    """Write the name of the lowest parabola to every voxel of the line."""
    k, name = 0, 0
    for i in range(names.size):
        if k < count and firsts[k] == i:
            name = names[sites[k]]
            k += 1
        new_names[i] = name


@kernel
def _look_up(squared: Any, found: Any, labels: Any, cells: Any, index: Any, farthest: float) -> None:
    """Turn indices into cells, and forget what is too far away."""
    items, voxels = squared.shape
    for item in range(cuda.blockIdx.y, items, cuda.gridDim.y):
        start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        for i in range(start, voxels, cuda.gridDim.x * cuda.blockDim.x):
            within = np.float64(squared[item, i]) <= farthest
            index[item, i] = found[item, i] if within else -1
            cells[item, i] = labels[item, found[item, i]] if within else 0


@kernel
def _forget(squared: Any, cells: Any, farthest: float) -> None:
    items, voxels = squared.shape
    for item in range(cuda.blockIdx.y, items, cuda.gridDim.y):
        start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        for i in range(start, voxels, cuda.gridDim.x * cuda.blockDim.x):
            if np.float64(squared[item, i]) > farthest:
                cells[item, i] = 0


@kernel
def _measure(squared: Any, distance: Any, unit: float, farthest: float) -> None:
    items, voxels = squared.shape
    for item in range(cuda.blockIdx.y, items, cuda.gridDim.y):
        start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        for i in range(start, voxels, cuda.gridDim.x * cuda.blockDim.x):
            within = np.float64(squared[item, i]) <= farthest
            distance[item, i] = math.sqrt(squared[item, i] * unit) if within else math.inf
