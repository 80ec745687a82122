"""Connected components on the GPU: every voxel finds its way to the first voxel of its component."""

import math
from typing import Any

from numba import cuda

from numba_kernels._checks import neighbour_rank
from numba_kernels.cuda._jit import inlined, kernel
from numba_kernels.cuda.device import THREADS, Device

__all__ = ["connected_components"]

_LEAP = 32  # voxels that a first link spans along a run: short chains without a long search


def connected_components(device: Device, labels: Any, connectivity: int | None = None) -> tuple[Any, Any]:
    """Number the separate pieces of many label maps, as :func:`numba_kernels.connected_components` does for one.

    Args:
        device: Where the arrays live.
        labels: Label maps ``(N, Y, X)`` or ``(N, Z, Y, X)``, bool or integer, contiguous and not
            empty; 0 is background.
        connectivity: 4 or 8 neighbours in 2-D, 6, 18 or 26 in 3-D. Default: all neighbours (8 or 26).

    Returns:
        Component numbers, int32 of the same shape, 1..K in the order of their first voxel in each map, 0 for
        background; and K of each map, int32 ``(N,)``.

    Raises:
        ValueError: ``connectivity`` does not exist in that dimension, or a map has 2**31 voxels or more.

    Source:
        Union-find by atomic minimum: Komura, "GPU-based cluster-labeling algorithm without the use of conventional
        iteration", Comput. Phys. Commun. 194 (2015), https://doi.org/10.1016/j.cpc.2015.04.015; Playne and Hawick,
        "A new algorithm for parallel connected-component labelling on GPUs", IEEE Trans. Parallel Distrib. Syst. 29
        (2018), https://doi.org/10.1109/TPDS.2018.2799216.
    """
    rank = neighbour_rank(labels.ndim - 1, connectivity)
    items, voxels = labels.shape[0], math.prod(labels.shape[1:])
    if voxels >= 2**31:
        raise ValueError(f"a label map must have fewer than 2**31 voxels, got shape {tuple(labels.shape[1:])}")
    components = device.empty(tuple(labels.shape), "int32")
    rows = labels.reshape(items, -1, labels.shape[-1])
    parents = device.empty((items, voxels), "int32")
    firsts = components.reshape(items, voxels)  # the result's memory serves as a scratch pad until the end
    lines, blocks = items * rows.shape[1], -(-items * voxels // THREADS)
    device.launch(_link_runs, lines, rows, parents)
    device.launch(_unite, lines, rows, parents, labels.shape[-2], rank)
    device.launch(_flatten, blocks, parents, firsts)
    numbers = device.cumulate(firsts.reshape(-1))
    counts = device.empty((items,), "int32")
    device.launch(_number, blocks, parents, numbers, firsts, counts)
    return components, counts


@kernel
def _link_runs(labels: Any, parents: Any) -> None:
    """Link each voxel to one on its left in the same run, background to -1. A block works on a row."""
    items, rows, width = labels.shape
    for line in range(cuda.blockIdx.x, items * rows, cuda.gridDim.x):
        item = line // rows
        row = line - item * rows
        for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            value = labels[item, row, x]
            start = x
            while start > 0 and start > x - _LEAP and labels[item, row, start - 1] == value:
                start -= 1
            parents[item, row * width + x] = row * width + start if value != 0 else -1


@kernel
def _unite(labels: Any, parents: Any, height: int, rank: int) -> None:
    """Unite each row with those of its neighbours that come before it."""
    items, rows, _ = labels.shape
    for line in range(cuda.blockIdx.x, items * rows, cuda.gridDim.x):
        item = line // rows
        row = line - item * rows
        z = row // height
        y = row - z * height
        for dz, dy in ((0, -1), (-1, -1), (-1, 0), (-1, 1)):
            reach = rank - abs(dz) - abs(dy)  # steps left along the row
            if reach >= 0 and z + dz >= 0 and 0 <= y + dy < height:
                _unite_rows(labels[item], parents[item], row, row + dz * height + dy, reach > 0)


@inlined
def _unite_rows(labels: Any, parents: Any, row: int, other: int, diagonal: bool) -> None:
    """Unite the voxels of a row with the equal ones of another row, but not what the voxel to the left unites."""
    width = labels.shape[1]
    for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
        value = labels[row, x]
        if value != 0:
            here, there = row * width + x, other * width + x
            goes_on = x > 0 and labels[row, x - 1] == value
            left = x > 0 and labels[other, x - 1] == value
            right = x + 1 < width and labels[other, x + 1] == value
            if labels[other, x] == value:
                if not (goes_on and (left or diagonal)):
                    _join(parents, here, there)
            elif diagonal:
                if left and not goes_on:
                    _join(parents, here, there - 1)
                if right:
                    _join(parents, here, there + 1)


@inlined
def _join(parents: Any, a: int, b: int) -> None:
    """Hang the later root under the earlier one, and begin again if another thread was quicker."""
    while True:
        a, b = _root(parents, a), _root(parents, b)
        if a == b:
            break
        if a < b:
            a, b = b, a
        before = cuda.atomic.min(parents, a, b)
        if before == a:
            break
        a = before


@inlined
def _root(parents: Any, i: int) -> int:
    # Other threads change links meanwhile. A link only ever moves to an earlier voxel of the same component, so an
    # old one still leads the right way, and _join looks again at what it changed.
    while parents[i] != i:
        i = parents[i]
    return i


@kernel
def _flatten(parents: Any, firsts: Any) -> None:
    """Link each voxel to the first one of its component, and mark the first ones."""
    items, voxels = parents.shape
    for i in range(cuda.grid(1), items * voxels, cuda.gridsize(1)):
        item = i // voxels
        voxel = i - item * voxels
        first = -1
        if parents[item, voxel] >= 0:
            first = _root(parents[item], voxel)
            parents[item, voxel] = first
        firsts[item, voxel] = 1 if first == voxel else 0


@kernel
def _number(parents: Any, numbers: Any, components: Any, counts: Any) -> None:
    """Give each voxel the number of the first one of its component. ``numbers`` run on from item to item."""
    items, voxels = parents.shape
    for i in range(cuda.grid(1), items * voxels, cuda.gridsize(1)):
        item = i // voxels
        voxel = i - item * voxels
        before = numbers[item * voxels - 1] if item > 0 else 0
        first = parents[item, voxel]
        components[item, voxel] = numbers[item * voxels + first] - before if first >= 0 else 0
        if voxel == voxels - 1:
            counts[item] = numbers[i] - before
