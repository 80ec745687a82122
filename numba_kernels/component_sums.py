"""Sums of probabilities and targets inside each cell, and the way back of their gradient."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bits import trailing_zeros
from numba_kernels._jit import kernel
from numba_kernels._vector import equal_bits

__all__ = ["cell_overlap", "cell_overlap_backward"]

_WORD = 64  # voxels that are compared at a time
_STRIP = 16  # voxels that are added at a time


def cell_overlap(
    probs: NDArray[Any], target: NDArray[Any], cells: NDArray[np.int32], num_cells: int
) -> NDArray[np.float64]:
    """Add up, for each lesion's territory, what was found, what was claimed and what is there.

    ``sums[:, k] = sum over voxels v with cells[v] == k of (probs[v] * target[v], probs[v], target[v])``.

    Args:
        probs: Probabilities, float32 or float64, any shape.
        target: Truth of the same shape: bool, uint8 or the dtype of ``probs`` (soft labels).
        cells: Cell of each voxel, int32 of the same shape, 0..num_cells; 0 = no cell.
        num_cells: Number of cells K.

    Returns:
        float64 ``(3, K+1)``: rows are overlap, probability mass and target mass in voxels; column 0 holds the
        voxels without a cell. Empty cells give 0. Everything is added in float64, always in the same order, so that
        a huge background keeps its precision and repeated calls agree bit for bit.

    Raises:
        ValueError: Shapes differ, or a cell lies outside 0..num_cells.

    Example:
        >>> probs = np.array([0.5, 1.0, 0.25], np.float32)
        >>> cell_overlap(probs, np.array([True, True, False]), np.array([1, 1, 2], np.int32), 2)
        array([[0.  , 1.5 , 0.  ],
               [0.  , 1.5 , 0.25],
               [0.  , 2.  , 0.  ]])
    """
    _check_shapes(probs, target, cells)
    sums = np.zeros((3, num_cells + 1))
    if not _add_runs(_flat(probs), _flat(target), _flat(cells), sums):
        raise ValueError(f"cells must lie in 0..{num_cells}, got {cells.min()}..{cells.max()}")
    return sums


def cell_overlap_backward(
    grad: NDArray[Any], target: NDArray[Any], cells: NDArray[np.int32], out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Give the gradient of :func:`cell_overlap` with respect to ``probs``.

    ``grad_probs[v] = grad[0, cells[v]] * target[v] + grad[1, cells[v]]``; the third row of ``grad`` does not matter.

    Args:
        grad: Gradient of the sums, float32 or float64 ``(3, K+1)``.
        target: As in :func:`cell_overlap`.
        cells: As in :func:`cell_overlap`.
        out: Array for the result: contiguous, shape of ``cells``, dtype of ``grad``. Default: a new one.

    Returns:
        Gradient of the shape of ``cells`` in the dtype of ``grad``.

    Raises:
        ValueError: Shapes differ, a cell lies outside 0..K, or ``out`` is not such an array.

    Example:
        >>> grad = np.array([[0, 2], [0, 1], [0, 0]], np.float32)
        >>> cell_overlap_backward(grad, np.array([True, False, True]), np.array([1, 1, 0], np.int32))
        array([3., 1., 0.], dtype=float32)
    """
    _check_shapes(target, target, cells)
    if out is None:
        out = np.empty(cells.shape, grad.dtype)
    if out.shape != cells.shape or out.dtype != grad.dtype or not out.flags.carray:
        raise ValueError(f"out must be contiguous {grad.dtype} {cells.shape}, got {out.dtype} {out.shape}")
    if not _gather(_flat(grad).reshape(grad.shape), _flat(target), _flat(cells), out.reshape(-1)):
        raise ValueError(f"cells must lie in 0..{grad.shape[1] - 1}, got {cells.min()}..{cells.max()}")
    return out


def _check_shapes(probs: NDArray[Any], target: NDArray[Any], cells: NDArray[Any]) -> None:
    if not probs.shape == target.shape == cells.shape:
        raise ValueError(f"shapes must agree, got probs {probs.shape}, target {target.shape}, cells {cells.shape}")


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """One contiguous writable line (numba compiles read-only arrays separately); bool becomes uint8."""
    line = np.require(array, requirements=["C", "A", "W"]).reshape(-1)
    return line.view(np.uint8) if line.dtype == np.bool_ else line


@kernel
def _add_runs(probs: NDArray[Any], target: NDArray[Any], cells: NDArray[np.int32], sums: NDArray[np.float64]) -> bool:
    """Add up each run of one cell before touching its sums."""
    lanes = np.empty((3, _STRIP))
    start = 0
    while start < cells.size:
        cell, stop = cells[start], _end_of_run(cells, start)
        if cell < 0 or cell >= sums.shape[1]:
            return False
        rest = stop - (stop - start) % _STRIP
        overlap, prob_mass, target_mass = _add_strips(probs, target, start, rest, lanes)
        for k in range(np.uint64(rest), np.uint64(stop)):
            p, t = np.float64(probs[k]), np.float64(target[k])
            overlap += p * t
            prob_mass += p
            target_mass += t
        sums[0, cell] += overlap
        sums[1, cell] += prob_mass
        sums[2, cell] += target_mass
        start = stop
    return True


@kernel
def _end_of_run(cells: NDArray[np.int32], i: int) -> int:
    """First voxel after i that belongs to another cell."""
    while i + _WORD < cells.size:
        differ = ~equal_bits(cells, i, i + 1)
        if differ != 0:
            return i + trailing_zeros(differ) + 1
        i += _WORD
    i += 1
    while i < cells.size and cells[i] == cells[i - 1]:
        i += 1
    return i


@kernel
def _add_strips(
    probs: NDArray[Any], target: NDArray[Any], start: int, stop: int, lanes: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Sum up lane by lane: one sum alone would have to wait for each addition before the next."""
    overlap = prob_mass = target_mass = 0.0
    if start == stop:
        return overlap, prob_mass, target_mass
    lanes[:] = 0
    for i in range(start, stop, _STRIP):
        for t in range(np.uint64(_STRIP)):
            p, truth = np.float64(probs[np.uint64(i) + t]), np.float64(target[np.uint64(i) + t])
            lanes[0, t] += p * truth
            lanes[1, t] += p
            lanes[2, t] += truth
    for t in range(_STRIP):
        overlap += lanes[0, t]
        prob_mass += lanes[1, t]
        target_mass += lanes[2, t]
    return overlap, prob_mass, target_mass


@kernel
def _gather(grad: NDArray[Any], target: NDArray[Any], cells: NDArray[np.int32], out: NDArray[Any]) -> bool:
    start = 0
    while start < cells.size:
        cell, stop = cells[start], _end_of_run(cells, start)
        if cell < 0 or cell >= grad.shape[1]:
            return False
        slope, level = grad[0, cell], grad[1, cell]
        for k in range(np.uint64(start), np.uint64(stop)):
            out[k] = slope * out.dtype.type(target[k]) + level
        start = stop
    return True
