"""Centre lines of vessels and tubes around them, on the GPU.

Thinning is a chain of many short steps. One block of threads thins a class of a map from beginning to end: it can wait
for its own threads between the steps and see for itself when nothing changes any more. So there is one launch, and the
host waits for nothing; many classes and maps keep the GPU busy.
"""

import math
from itertools import product
from typing import Any

import numpy as np
from numba import cuda

from numba_kernels.cuda._batches import around, as_volumes, contains, count_rows, in_parts, locate
from numba_kernels.cuda._jit import inlined, kernel
from numba_kernels.cuda.device import Device

__all__ = ["skeletonize", "tube"]

_GROUPS = 16  # of classes, by their last bits: each has a block to itself
_THREADS = 256  # of the block that thins a group: so many can always have the registers they need
_SCRATCH_PER_VOXEL = 4 + 2 * 4 + 8
_DIRECTIONS = ((0, -1, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0), (0, 0, -1), (-1, 0, 0))

# A neighbourhood is a number of 27 bits, bit 13 + 9 dz + 3 dy + dx.
_STEPS = tuple(product((-1, 0, 1), repeat=3))
_CENTRE = 1 << 13
_NOT_LEFT, _NOT_RIGHT, _NOT_FRONT, _NOT_BACK = (
    sum(1 << bit for bit, step in enumerate(_STEPS) if step[axis] != side) for axis in (2, 1) for side in (-1, 1)
)


def _sharing(step: tuple[int, ...]) -> int:
    """The neighbours that share the corner, edge or side of a voxel in this direction."""
    parts = set(product(*((0, along) for along in step)))
    return sum(1 << bit for bit, other in enumerate(_STEPS) if other in parts) & ~_CENTRE


_SIDES_AND_CORNERS = tuple(_sharing(step) for step in _STEPS if step.count(0) in (0, 2))
_EDGES = tuple(_sharing(step) for step in _STEPS if step.count(0) == 1)


def skeletonize(device: Device, labels: Any) -> Any:
    """Reduce each structure to its centre line, to the very voxels that :func:`numba_kernels.skeletonize` keeps.

    Args:
        device: Where the arrays live.
        labels: Label maps ``(N, Y, X)`` or ``(N, Z, Y, X)``, bool or integer, contiguous and not empty, with fewer than
            2**31 voxels each; every class is thinned on its own, 0 is background.

    Returns:
        Label maps of the same shape and dtype that keep the labels on the skeletons. 20 bytes per voxel are in use
        meanwhile, for as many maps at once as fit into 256 MiB, but for one at least.
    """
    shape = tuple(labels.shape)
    skeletons = device.empty(shape, labels.dtype)
    for part in in_parts(shape, _SCRATCH_PER_VOXEL):
        maps, out = as_volumes(labels[part]), as_volumes(skeletons[part])
        groups, voxels = maps.shape[0] * _GROUPS, math.prod(maps.shape)
        sizes, counts = device.zeros((groups,), "int32"), device.zeros((groups,), "int32")
        device.launch(_count_groups, count_rows(maps), maps, sizes)
        ends, queues = device.cumulate(sizes), device.empty((2 * voxels,), "int32")
        device.launch(_list_border, count_rows(maps), maps, out, sizes, ends, queues, counts)
        stamps, marks = device.zeros((maps.shape[0], math.prod(shape[1:])), "int32"), device.empty((voxels,), "int64")
        device.launch(_thin, groups, out, sizes, ends, queues, counts, stamps, marks, threads=_THREADS)
    return skeletons


def tube(device: Device, skeletons: Any, radius: int = 2) -> Any:
    """Give centre lines some thickness, as :func:`numba_kernels.tube` does.

    Args:
        device: Where the arrays live.
        skeletons: Masks or label maps ``(N, Y, X)`` or ``(N, Z, Y, X)``, bool or integer, contiguous and not empty.
        radius: Steps in voxels along the axes, 0 or more.

    Returns:
        bool masks of the same shape.

    Raises:
        ValueError: ``radius`` is negative.
    """
    if radius < 0:
        raise ValueError(f"radius must be 0 voxels or more, got {radius}")
    tubes = device.empty(tuple(skeletons.shape), "bool")
    device.launch(_fatten, count_rows(as_volumes(tubes)), as_volumes(skeletons), radius, as_volumes(tubes))
    return tubes


@kernel
def _count_groups(labels: Any, sizes: Any) -> None:
    """Count the voxels of each group in each map."""
    table = cuda.shared.array(_GROUPS, np.int32)
    items, planes, height, width = labels.shape
    for row in range(cuda.blockIdx.x, items * planes * height, cuda.gridDim.x):
        item, z, y = locate(row, planes, height)
        for group in range(cuda.threadIdx.x, _GROUPS, cuda.blockDim.x):
            table[group] = 0
        cuda.syncthreads()
        for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            if labels[item, z, y, x] != 0:
                cuda.atomic.add(table, labels[item, z, y, x] & (_GROUPS - 1), 1)
        cuda.syncthreads()
        for group in range(cuda.threadIdx.x, _GROUPS, cuda.blockDim.x):
            if table[group] > 0:
                cuda.atomic.add(sizes, item * _GROUPS + group, table[group])
        cuda.syncthreads()


@kernel
def _list_border(labels: Any, skeletons: Any, sizes: Any, ends: Any, queues: Any, counts: Any) -> None:
    """Copy the labels, and list the voxels that have not all their neighbours, each group in a stretch of its own."""
    items, planes, height, width = labels.shape
    for row in range(cuda.blockIdx.x, items * planes * height, cuda.gridDim.x):
        item, z, y = locate(row, planes, height)
        for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            value = labels[item, z, y, x]
            skeletons[item, z, y, x] = value
            if value != 0 and _neighbourhood(labels[item], z, y, x) != (1 << 27) - 1:
                k = item * _GROUPS + (value & (_GROUPS - 1))
                first = 2 * np.int64(ends[k] - sizes[k])
                queues[first + cuda.atomic.add(counts, k, 1)] = (z * height + y) * width + x


@kernel
def _thin(skeletons: Any, sizes: Any, ends: Any, queues: Any, counts: Any, stamps: Any, marks: Any) -> None:
    """Each block thins a group. ``state`` tells where its queue ends and how many voxels are marked."""
    state = cuda.shared.array(2, np.int64)
    for k in range(cuda.blockIdx.x, sizes.size, cuda.gridDim.x):
        if sizes[k] > 0:
            cuda.syncthreads()
            if cuda.threadIdx.x == 0:
                state[0] = counts[k]
            cuda.syncthreads()
            first, end = np.int64(ends[k] - sizes[k]), np.int64(ends[k])
            item = k // _GROUPS
            _thin_group(skeletons[item], queues[2 * first : 2 * end], stamps[item], marks[first:end], state)


@inlined
def _thin_group(skeleton: Any, queue: Any, stamps: Any, marks: Any, state: Any) -> None:
    """Sweep until nothing has changed. A sweep looks at the voxels around which something has changed since the last.

    The queue is a ring: those of the last sweep from ``first`` on, behind them those that this sweep adds.
    """
    first, last, sweep = np.int64(0), state[0], 0
    while first < last:
        sweep += 1
        for dz, dy, dx in _DIRECTIONS:
            if dz == 0 or skeleton.shape[0] > 1:
                _mark(skeleton, queue, stamps, marks, state, (first, last, sweep), (dz, dy, dx))
                _delete(skeleton, queue, stamps, marks, state, sweep)
        first, last = last, state[0]


@inlined
def _mark(
    skeleton: Any,
    queue: Any,
    stamps: Any,
    marks: Any,
    state: Any,
    window: tuple[int, int, int],
    direction: tuple[int, int, int],
) -> None:
    """List the deletable voxels that lack the neighbour in this direction, with the turn in which each may go."""
    first, last, sweep = window
    dz, dy, dx = direction
    if cuda.threadIdx.x == 0:
        state[1] = 0
    cuda.syncthreads()
    for k in range(first + cuda.threadIdx.x, state[0], cuda.blockDim.x):
        i = queue[k % queue.size]
        if k >= last or stamps[i] < sweep:  # else it has changed meanwhile and comes again further back
            z, y, x = _coordinates(skeleton, i)
            value = skeleton[z, y, x]
            inside = contains(skeleton, z + dz, y + dy, x + dx)
            border = value != 0 and not (inside and skeleton[z + dz, y + dy, x + dx] == value)
            if border and _is_deletable(_neighbourhood(skeleton, z, y, x)):
                marks[cuda.atomic.add(state, 1, 1)] = 8 * i + 4 * (z & 1) + 2 * (y & 1) + (x & 1)
    cuda.syncthreads()


@inlined
def _delete(skeleton: Any, queue: Any, stamps: Any, marks: Any, state: Any, sweep: int) -> None:
    """Delete in 8 turns what still is deletable: voxels of one turn are no neighbours, so threads do not meet."""
    count = state[1]
    for turn in range(8 if count > 0 else 0):
        for k in range(cuda.threadIdx.x, count, cuda.blockDim.x):
            if marks[k] & 7 == turn:
                z, y, x = _coordinates(skeleton, marks[k] >> 3)
                if _is_deletable(_neighbourhood(skeleton, z, y, x)):
                    _enqueue_around(skeleton, queue, stamps, state, sweep, (z, y, x))
                    skeleton[z, y, x] = 0
        cuda.syncthreads()


@inlined
def _enqueue_around(
    skeleton: Any, queue: Any, stamps: Any, state: Any, sweep: int, centre: tuple[int, int, int]
) -> None:
    """Add the neighbours of a voxel of the same class to the queue, each once in a sweep."""
    planes, height, width = skeleton.shape
    z, y, x = centre
    (first_z, end_z), (first_y, end_y), (first_x, end_x) = around(z, planes), around(y, height), around(x, width)
    for k in range(first_z, end_z):
        for j in range(first_y, end_y):
            for i in range(first_x, end_x):
                voxel = (k * height + j) * width + i
                if skeleton[k, j, i] == skeleton[z, y, x] and cuda.atomic.max(stamps, voxel, sweep) < sweep:
                    queue[cuda.atomic.add(state, 0, 1) % queue.size] = voxel


@inlined
def _coordinates(volume: Any, voxel: int) -> tuple[int, int, int]:
    _, height, width = volume.shape
    row = voxel // width
    z = row // height
    return z, row - z * height, voxel - row * width


@inlined
def _neighbourhood(volume: Any, z: int, y: int, x: int) -> int:
    """The 27 bits of a voxel and those around it that have its label."""
    planes, height, width = volume.shape
    (first_z, end_z), (first_y, end_y), (first_x, end_x) = around(z, planes), around(y, height), around(x, width)
    code = 0
    for k in range(first_z, end_z):
        for j in range(first_y, end_y):
            for i in range(first_x, end_x):
                if volume[k, j, i] == volume[z, y, x]:
                    code |= 1 << (13 + 9 * (k - z) + 3 * (j - y) + i - x)
    return code


@inlined
def _is_deletable(code: int) -> bool:
    """Whether the voxel can go without changing topology and is no end of a line."""
    others = code & ~_CENTRE
    return others & (others - 1) != 0 and _keeps_euler_number(others) and _is_one_piece(others)


@inlined
def _keeps_euler_number(others: int) -> bool:
    """Count what goes with the voxel, a closed cube: itself and the sides, edges and corners that no other shares."""
    change = -1
    for sharing in _SIDES_AND_CORNERS:
        if others & sharing == 0:
            change += 1
    for sharing in _EDGES:
        if others & sharing == 0:
            change -= 1
    return change == 0


@inlined
def _is_one_piece(others: int) -> bool:
    """Grow one neighbour within the others, 26-connected, until it stops."""
    piece, grown = 0, others & -others
    while grown != piece:
        piece = grown
        grown |= (grown & _NOT_RIGHT) << 1 | (grown & _NOT_LEFT) >> 1
        grown |= (grown & _NOT_BACK) << 3 | (grown & _NOT_FRONT) >> 3
        grown = (grown | grown << 9 | grown >> 9) & others
    return grown == others


@kernel
def _fatten(skeletons: Any, radius: int, tubes: Any) -> None:
    items, planes, height, _ = skeletons.shape
    for row in range(cuda.blockIdx.x, items * planes * height, cuda.gridDim.x):
        item, z, y = locate(row, planes, height)
        for x in range(cuda.threadIdx.x, skeletons.shape[3], cuda.blockDim.x):
            tubes[item, z, y, x] = _is_near(skeletons[item], radius, z, y, x)


@inlined
def _is_near(skeleton: Any, radius: int, z: int, y: int, x: int) -> bool:
    near = False
    for dz in range(-radius, radius + 1):
        height = radius - abs(dz)
        for dy in range(-height, height + 1):
            reach = height - abs(dy)
            for dx in range(-reach, reach + 1):
                if contains(skeleton, z + dz, y + dy, x + dx) and skeleton[z + dz, y + dy, x + dx] != 0:
                    near = True
    return near
