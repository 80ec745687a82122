"""Sums inside each cell on the GPU, and the way back of their gradient."""

from typing import Any

import numpy as np
from numba import cuda

from numba_kernels.cuda._jit import inlined, kernel
from numba_kernels.cuda.device import THREADS, Device

__all__ = ["cell_overlap", "cell_overlap_backward"]

_TABLE = 512  # cells whose sums a block keeps in its own fast memory
_STRETCH = 128 * THREADS  # voxels of one block


def cell_overlap(device: Device, probs: Any, target: Any, cells: Any, num_cells: int) -> Any:
    """Add up overlap, probability and truth inside each cell, as :func:`numba_kernels.cell_overlap` does.

    Args:
        device: Where the arrays live.
        probs: Probabilities ``(N, voxels)``, float32 or float64.
        target: Truth of the same shape: uint8 or the dtype of ``probs`` (soft labels).
        cells: Cell of each voxel, int32 of the same shape, 0..num_cells. Other values would write anywhere: check.
        num_cells: Largest number of cells of an item, K.

    Returns:
        float64 ``(3, N, K+1)``: overlap, probability mass and target mass in voxels; column 0 holds the voxels without
        a cell. Added in float64, in an order that differs from run to run: the last bits may differ.
    """
    items, voxels = cells.shape
    sums = device.zeros((3, items, num_cells + 1), "float64")
    device.launch(_add, (-(-voxels // _STRETCH), items), probs, target, cells, sums)
    return sums


def cell_overlap_backward(device: Device, grad: Any, target: Any, cells: Any) -> Any:
    """Give the gradient of :func:`cell_overlap` with respect to ``probs``.

    Args:
        device: Where the arrays live.
        grad: Gradient of the sums, float32 or float64 ``(3, N, K+1)``.
        target: As in :func:`cell_overlap`.
        cells: As in :func:`cell_overlap`.

    Returns:
        Gradient of the shape of ``cells`` in the dtype of ``grad``.
    """
    items, voxels = cells.shape
    out = device.empty((items, voxels), grad.dtype)
    device.launch(_gather, (-(-voxels // _STRETCH), items), grad, target, cells, out)
    return out


@kernel
def _add(probs: Any, target: Any, cells: Any, sums: Any) -> None:
    """Each block adds a stretch of one item to a table of its own, and that to the result."""
    table = cuda.shared.array((3, _TABLE), np.float64)
    for item in range(cuda.blockIdx.y, cells.shape[0], cuda.gridDim.y):
        columns = sums.shape[2] if sums.shape[2] < _TABLE else _TABLE
        for k in range(cuda.threadIdx.x, columns, cuda.blockDim.x):
            table[0, k] = table[1, k] = table[2, k] = 0.0
        cuda.syncthreads()
        _add_stretch(probs[item], target[item], cells[item], table, sums[:, item])
        cuda.syncthreads()
        for k in range(cuda.threadIdx.x, columns, cuda.blockDim.x):
            if table[1, k] != 0.0 or table[2, k] != 0.0:
                _add_three(sums[:, item], k, table[0, k], table[1, k], table[2, k])
        cuda.syncthreads()


@inlined
def _add_stretch(probs: Any, target: Any, cells: Any, table: Any, sums: Any) -> None:
    """Add in registers as long as the cell stays the same: neighbours mostly share theirs."""
    stretch = (cells.size + cuda.gridDim.x - 1) // cuda.gridDim.x
    begin = cuda.blockIdx.x * stretch
    end = begin + stretch if begin + stretch < cells.size else cells.size
    cell = -1
    overlap = prob_mass = target_mass = 0.0
    for i in range(begin + cuda.threadIdx.x, end, cuda.blockDim.x):
        if cells[i] != cell:
            _put(table, sums, cell, overlap, prob_mass, target_mass)
            cell = cells[i]
            overlap = prob_mass = target_mass = 0.0
        p, t = np.float64(probs[i]), np.float64(target[i])
        overlap += p * t
        prob_mass += p
        target_mass += t
    _put(table, sums, cell, overlap, prob_mass, target_mass)


@inlined
def _put(table: Any, sums: Any, cell: int, overlap: float, prob_mass: float, target_mass: float) -> None:
    if 0 <= cell < _TABLE:
        _add_three(table, cell, overlap, prob_mass, target_mass)
    elif cell >= 0:
        _add_three(sums, cell, overlap, prob_mass, target_mass)


@inlined
def _add_three(sums: Any, cell: int, overlap: float, prob_mass: float, target_mass: float) -> None:
    cuda.atomic.add(sums, (0, cell), overlap)
    cuda.atomic.add(sums, (1, cell), prob_mass)
    cuda.atomic.add(sums, (2, cell), target_mass)


@kernel
def _gather(grad: Any, target: Any, cells: Any, out: Any) -> None:
    items, voxels = cells.shape
    for item in range(cuda.blockIdx.y, items, cuda.gridDim.y):
        start = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        for i in range(start, voxels, cuda.gridDim.x * cuda.blockDim.x):
            cell = cells[item, i]
            out[item, i] = grad[0, item, cell] * target[item, i] + grad[1, item, cell]
