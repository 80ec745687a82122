"""Which component is nearest to each voxel (Voronoi cells), and how far away it is in mm."""

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from numba_kernels._checks import as_label_map
from numba_kernels._jit import kernel

__all__ = ["nearest_component"]

_TILE = 16  # lines moved together: whole cache lines travel although the lines lie across memory


@overload
def nearest_component(
    labels: NDArray[Any], spacing: Sequence[float] | None = None, *, return_distance: Literal[False] = False
) -> NDArray[np.int32]: ...


@overload
def nearest_component(
    labels: NDArray[Any], spacing: Sequence[float] | None = None, *, return_distance: Literal[True]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]: ...


def nearest_component(
    labels: NDArray[Any], spacing: Sequence[float] | None = None, *, return_distance: bool = False
) -> NDArray[np.int32] | tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Give each voxel the label of the nearest labelled voxel: the territory ("cell") of each lesion.

    ``cells[v] = labels[argmin_{u: labels[u] != 0} ||spacing * (v - u)||``, exact Euclidean distance.
    If several labelled voxels are equally near, the first of them in memory order (lowest Z, then Y, then X) wins.
    The rule is exact where all spacings are multiples of the smallest one; otherwise distances that agree up to
    rounding are decided by rounding, the same way in every run.

    Args:
        labels: Label map ``(Y, X)`` or ``(Z, Y, X)``, bool or integer within int32, any memory order; 0 = no label.
        spacing: Voxel size in mm along each axis of the array. Default: 1 mm.
        return_distance: Also return the distance to that labelled voxel.

    Returns:
        Cells, int32 of the same shape; with ``return_distance`` also the distance in mm, float32 in [0, inf).
        Without any label all cells are 0 and all distances infinite.

    Raises:
        TypeError: ``labels`` is neither bool nor integer.
        ValueError: ``labels`` is neither 2-D nor 3-D or exceeds int32, or ``spacing`` is not one positive finite
            number per axis.

    Example:
        >>> nearest_component(np.array([[1, 0, 0, 0, 2]]), spacing=(1.0, 0.5), return_distance=True)
        (array([[1, 1, 1, 2, 2]], dtype=int32), array([[0. , 0.5, 1. , 0.5, 0. ]], dtype=float32))

    Source:
        Lower envelope of parabolas, one axis after the other: Felzenszwalb and Huttenlocher, "Distance transforms
        of sampled functions", Theory of Computing 8 (2012), https://doi.org/10.4086/toc.2012.v008a019.
    """
    cells = _as_int32(as_label_map(labels))
    steps = _check_spacing(spacing, cells.ndim)
    unit = steps.min()  # in this unit most spacings are whole numbers, whose squares add up without rounding
    squared = np.where(cells != 0, 0.0, np.inf)
    if cells.any():
        weights = (steps / unit) ** 2
        width = cells.shape[-1]
        _sweep_rows(squared.reshape(-1, width), cells.reshape(-1, width), weights[-1])
        for axis in reversed(range(cells.ndim - 1)):
            lines = (-1, cells.shape[axis], int(np.prod(cells.shape[axis + 1 :])))
            _sweep(squared.reshape(lines), cells.reshape(lines), weights[axis], _TILE)
    if not return_distance:
        return cells
    return cells, (np.sqrt(squared) * unit).astype(np.float32)


def _as_int32(labels: NDArray[Any]) -> NDArray[np.int32]:
    limits = np.iinfo(np.int32)
    if labels.dtype.itemsize >= 4 and labels.size and (labels.max() > limits.max or labels.min() < limits.min):
        raise ValueError(f"labels must fit into int32, got values up to {labels.max()}; number them anew")
    return np.array(labels, dtype=np.int32, order="C")


def _check_spacing(spacing: Sequence[float] | None, ndim: int) -> NDArray[np.float64]:
    steps = np.ones(ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if steps.shape != (ndim,) or not np.all(np.isfinite(steps) & (steps > 0)):
        raise ValueError(f"spacing must be {ndim} positive numbers (mm per voxel, in array order), got {spacing}")
    return steps


@kernel
def _sweep_rows(squared: NDArray[np.float64], cells: NDArray[np.int32], weight: float) -> None:
    """Let nearness spread along the rows, where all is still 0 or inf."""
    n = squared.shape[1]
    sites = np.empty(n, np.int64)
    firsts = np.empty(n + 1, np.int64)
    for r in range(squared.shape[0]):
        count = _level_envelope(squared[r], sites, firsts)
        _spread(squared[r], cells[r], weight, sites[:count], firsts)


@kernel
def _sweep(squared: NDArray[np.float64], cells: NDArray[np.int32], weight: float, tile: int) -> None:
    """Let nearness spread along the middle axis of (before, n, after), in place."""
    before, n, after = squared.shape
    lines = np.empty((tile, n))
    names = np.empty((tile, n), np.int32)
    sites = np.empty(n, np.int64)
    firsts = np.empty(n + 1, np.int64)
    for a in range(before):
        for b in range(0, after, tile):
            width = min(tile, after - b)
            _move(squared[a], lines, cells[a], names, b, width, True)
            for t in range(width):
                count = _envelope(lines[t], weight, sites, firsts)
                _spread(lines[t], names[t], weight, sites[:count], firsts)
            _move(squared[a], lines, cells[a], names, b, width, False)


@kernel
def _move(
    squared: NDArray[np.float64],
    lines: NDArray[np.float64],
    cells: NDArray[np.int32],
    names: NDArray[np.int32],
    start: int,
    width: int,
    load: bool,
) -> None:
    """Copy lines start..start+width-1 into the small contiguous arrays, or back."""
    for i in range(squared.shape[0]):
        for t in range(width):
            if load:
                lines[t, i] = squared[i, start + t]
                names[t, i] = cells[i, start + t]
            else:
                squared[i, start + t] = lines[t, i]
                cells[i, start + t] = names[t, i]


@kernel
def _envelope(line: NDArray[np.float64], weight: float, sites: NDArray[np.int64], firsts: NDArray[np.int64]) -> int:
    """Find the parabolas ``line[q] + weight * (i - q)**2`` that are lowest somewhere.

    The k-th of them, at ``sites[k]``, is lowest at the voxels firsts[k]..firsts[k+1]-1.
    """
    n = line.size
    count = 0
    for q in range(n):
        if line[q] == np.inf:
            continue
        first = 0
        while count > 0:
            first = _overtakes(line, weight, sites[count - 1], q, n)
            if first > firsts[count - 1]:
                break
            count -= 1  # the last parabola is lowest nowhere any more
            first = 0
        if first < n:
            sites[count] = q
            firsts[count] = first
            count += 1
    firsts[count] = n
    return count


@kernel
def _level_envelope(line: NDArray[np.float64], sites: NDArray[np.int64], firsts: NDArray[np.int64]) -> int:
    """Do the same for parabolas of height 0, which meet half-way: no division needed."""
    count = 0
    for q in range(line.size):
        if line[q] == 0.0:
            sites[count] = q
            firsts[count] = (sites[count - 1] + q) // 2 + 1 if count > 0 else 0
            count += 1
    firsts[count] = line.size
    return count


@kernel
def _overtakes(line: NDArray[np.float64], weight: float, v: int, q: int, n: int) -> int:
    """First voxel where the parabola of q lies strictly below the one of v < q, so that v keeps the ties."""
    crossing = 0.5 * ((line[q] - line[v]) / (weight * (q - v)) + (q + v))
    return n if crossing >= n else int(np.floor(crossing)) + 1


@kernel
def _spread(
    line: NDArray[np.float64],
    names: NDArray[np.int32],
    weight: float,
    sites: NDArray[np.int64],
    firsts: NDArray[np.int64],
) -> None:
    """Write distance and name of the lowest parabola to every voxel of the line."""
    heights = line[sites]
    labels = names[sites]
    for k in range(sites.size):
        site, height, label = sites[k], heights[k], labels[k]
        for i in range(firsts[k], firsts[k + 1]):
            step = np.float64(i - site)
            line[i] = height + weight * step * step
            names[i] = label
