"""Sums of probabilities and targets inside each cell, and the way back of their gradient."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._jit import kernel

__all__ = ["cell_overlap", "cell_overlap_backward"]


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
        voxels without a cell. Empty cells give 0. Everything is added in float64, in memory order, so that a huge
        background keeps its precision and repeated calls agree bit for bit.

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


def cell_overlap_backward(grad: NDArray[Any], target: NDArray[Any], cells: NDArray[np.int32]) -> NDArray[Any]:
    """Give the gradient of :func:`cell_overlap` with respect to ``probs``.

    ``grad_probs[v] = grad[0, cells[v]] * target[v] + grad[1, cells[v]]``; the third row of ``grad`` does not matter.

    Args:
        grad: Gradient of the sums, float32 or float64 ``(3, K+1)``.
        target: As in :func:`cell_overlap`.
        cells: As in :func:`cell_overlap`.

    Returns:
        Gradient of the shape of ``cells`` in the dtype of ``grad``.

    Raises:
        ValueError: Shapes differ, or a cell lies outside 0..K.

    Example:
        >>> grad = np.array([[0, 2], [0, 1], [0, 0]], np.float32)
        >>> cell_overlap_backward(grad, np.array([True, False, True]), np.array([1, 1, 0], np.int32))
        array([3., 1., 0.], dtype=float32)
    """
    _check_shapes(target, target, cells)
    out = np.empty(cells.shape, grad.dtype)
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
    """Add up each run of one cell in registers before touching memory."""
    n = cells.size
    i = 0
    while i < n:
        cell = cells[i]
        if cell < 0 or cell >= sums.shape[1]:
            return False
        overlap = prob_mass = target_mass = 0.0
        while i < n and cells[i] == cell:
            p, t = np.float64(probs[i]), np.float64(target[i])
            overlap += p * t
            prob_mass += p
            target_mass += t
            i += 1
        sums[0, cell] += overlap
        sums[1, cell] += prob_mass
        sums[2, cell] += target_mass
    return True


@kernel
def _gather(grad: NDArray[Any], target: NDArray[Any], cells: NDArray[np.int32], out: NDArray[Any]) -> bool:
    for i in range(cells.size):
        cell = cells[i]
        if cell < 0 or cell >= grad.shape[1]:
            return False
        out[i] = grad[0, cell] * target[i] + grad[1, cell]
    return True
