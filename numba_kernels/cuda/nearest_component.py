"""Which component is nearest to each voxel, on the GPU: one thread follows one line of voxels."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numba import cuda

from numba_kernels.cuda._jit import inlined, kernel
from numba_kernels.cuda.device import THREADS, Device
from numba_kernels.nearest_component import _check_spacing, _choose_scale

__all__ = ["nearest_component"]

_SCRATCH = 2**28  # bytes of memory in use beside input and result
_SCRATCH_PER_VOXEL = 2 * 8 + 3 * 4


def nearest_component(
    device: Device, labels: Any, spacing: Sequence[float] | None = None, *, return_distance: bool = False
) -> Any:
    """Give each voxel the label of the nearest labelled voxel, as :func:`numba_kernels.nearest_component` does.

    The same voxels win ties: both write distances as the same whole numbers.

    Args:
        device: Where the arrays live.
        labels: int32 label maps ``(N, Y, X)`` or ``(N, Z, Y, X)``, contiguous and not empty; 0 = no label.
        spacing: Voxel size in mm along each axis of a map. Default: 1 mm.
        return_distance: Also return the distance to that labelled voxel.

    Returns:
        Cells, int32 of the same shape; with ``return_distance`` also the distance in mm, float32 in [0, inf).
        In a map without any label all cells are 0 and all distances infinite. Besides, up to 28 bytes per voxel are in
        use meanwhile, for as many maps at once as fit into 256 MiB, but for one at least.

    Raises:
        ValueError: ``spacing`` is not one positive finite number per axis.

    Source:
        Lower envelope of parabolas, one axis after the other: Felzenszwalb and Huttenlocher, "Distance transforms
        of sampled functions", Theory of Computing 8 (2012), https://doi.org/10.4086/toc.2012.v008a019.
    """
    shape = tuple(labels.shape)
    steps, missing = _check_spacing(spacing, len(shape) - 1), 4 - len(shape)
    scale = _choose_scale(np.append(np.full(missing, steps.min()), steps), (1,) * missing + shape[1:])
    weights = scale.weights[missing:]
    cells = device.empty(shape, "int32")
    distance = device.empty(shape, "float32") if return_distance else None
    for part in _parts(shape):
        squared = _transform(device, labels[part], cells[part], weights, scale.far)
        if distance is not None:
            blocks = -(-math.prod(squared.shape) // THREADS)
            arrays = squared.reshape(-1), distance[part].reshape(-1)
            device.launch(_measure, blocks, *arrays, scale.unit, int(scale.far))
    return cells if distance is None else (cells, distance)


def _parts(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of items whose scratch memory stays within bounds."""
    count = max(1, _SCRATCH // (_SCRATCH_PER_VOXEL * math.prod(shape[1:])))
    return (slice(first, first + count) for first in range(0, shape[0], count))


def _transform(device: Device, labels: Any, cells: Any, weights: list[int], far: Any) -> Any:
    """Fill ``cells`` and return the squared distances, whole numbers of the type of ``far``."""
    shape = tuple(labels.shape)
    squared, new_squared = device.empty(shape, far.dtype.name), device.empty(shape, far.dtype.name)
    names, new_names = cells, device.empty(shape, "int32")
    if len(weights) == 2:  # an odd number of exchanges below
        names, new_names = new_names, names
    sites, firsts = device.empty(shape, "int32"), device.empty(shape, "int32")
    rows = [array.reshape(-1, shape[-1]) for array in (labels, squared, names)]
    device.launch(_sweep_rows, -(-rows[0].shape[0] // THREADS), *rows, weights[-1], int(far))
    for axis in range(len(shape) - 2, 0, -1):
        lines = (-1, shape[axis], math.prod(shape[axis + 1 :]))
        views = [array.reshape(lines) for array in (squared, names, new_squared, new_names, sites, firsts)]
        blocks = -(-math.prod(shape) // (shape[axis] * THREADS))
        device.launch(_sweep, blocks, *views, weights[axis - 1], int(far))
        squared, new_squared = new_squared, squared
        names, new_names = new_names, names
    return squared


@kernel
def _sweep_rows(labels: Any, squared: Any, names: Any, weight: int, far: int) -> None:
    """Let nearness spread along the rows, from the left and then from the right."""
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
            names[row, x] = labels[row, site] if site >= 0 else 0


@kernel
def _sweep(
    squared: Any, names: Any, new_squared: Any, new_names: Any, sites: Any, firsts: Any, weight: int, far: int
) -> None:
    """Let nearness spread along the middle axis of (before, n, after)."""
    before, _, after = squared.shape
    for line in range(cuda.grid(1), before * after, cuda.gridsize(1)):
        a = line // after
        b = line - a * after
        count = _envelope(squared[a, :, b], weight, far, sites[a, :, b], firsts[a, :, b])
        _spread(squared[a, :, b], new_squared[a, :, b], weight, far, sites[a, :, b], firsts[a, :, b], count)
        _name(names[a, :, b], new_names[a, :, b], sites[a, :, b], firsts[a, :, b], count)


@inlined
def _envelope(line: Any, weight: int, far: int, sites: Any, firsts: Any) -> int:
    """Find the parabolas ``line[q] + weight * (i - q)**2`` that are lowest somewhere.

    The k-th of them, at ``sites[k]``, is lowest from voxel ``firsts[k]`` on, up to where the next one is.
    """
    n = line.size
    count = 0
    for q in range(n):
        if line[q] != far:
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
def _measure(squared: Any, distance: Any, unit: float, far: int) -> None:
    for i in range(cuda.grid(1), squared.size, cuda.gridsize(1)):
        distance[i] = math.sqrt(unit * squared[i]) if squared[i] != far else math.inf
