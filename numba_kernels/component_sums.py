"""Sums of probabilities and targets inside each cell, and the way back of their gradient."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bits import trailing_zeros
from numba_kernels._elementary import exp32, expm1_32
from numba_kernels._jit import inlined, kernel
from numba_kernels._vector import equal_bits

__all__ = [
    "cell_error_overlap",
    "cell_error_overlap_backward",
    "cell_overlap",
    "cell_overlap_backward",
    "cell_voxels",
]

_WORD = 64  # voxels that are compared at a time
_STRIP = 16  # voxels that are added at a time
_STRIPS = 4  # of them are added up before they go to memory
_BLOCK = 2048  # voxels whose probabilities are held at a time


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
    out = _place(out, cells.shape, grad.dtype)
    if not _gather(_flat(grad).reshape(grad.shape), _flat(target), _flat(cells), out.reshape(-1)):
        raise ValueError(f"cells must lie in 0..{grad.shape[1] - 1}, got {cells.min()}..{cells.max()}")
    return out


def cell_error_overlap(
    errors: NDArray[np.float32], target: NDArray[np.bool_], cells: NDArray[np.int32], num_cells: int
) -> NDArray[np.float64]:
    """Do :func:`cell_overlap` of the probabilities behind a cross-entropy, and of the cross-entropy itself.

    The probability is ``exp(-errors)`` where ``target`` is true, ``1 - exp(-errors)`` elsewhere.

    Args:
        errors: Cross-entropy of one class against the rest, float32, any shape, at least 0.
        target: Truth of the same shape, bool.
        cells: As in :func:`cell_overlap`.
        num_cells: Number of cells K.

    Returns:
        float64 ``(2, 3, K+1)``: what :func:`cell_overlap` gives for the probabilities and for ``errors``.

    Raises:
        TypeError: ``errors`` is not float32 or ``target`` not bool.
        ValueError: Shapes differ, or a cell lies outside 0..num_cells.

    Example:
        >>> errors = -np.log(np.array([0.5, 1.0, 0.75], np.float32))
        >>> sums = cell_error_overlap(errors, np.array([True, True, False]), np.array([1, 1, 2], np.int32), 2)
        >>> sums[0].round(4)
        array([[0.  , 1.5 , 0.  ],
               [0.  , 1.5 , 0.25],
               [0.  , 2.  , 0.  ]])
        >>> sums[1, 1].round(4)
        array([0.    , 0.6931, 0.2877])
    """
    _check_errors(errors, target, cells)
    sums = np.zeros((2, 3, num_cells + 1))
    if not _add_errors(_flat(errors), _flat(target), _flat(cells), sums):
        raise ValueError(f"cells must lie in 0..{num_cells}, got {cells.min()}..{cells.max()}")
    return sums


def cell_error_overlap_backward(
    grad: NDArray[np.float32],
    errors: NDArray[np.float32],
    target: NDArray[np.bool_],
    cells: NDArray[np.int32],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Give the gradient of :func:`cell_error_overlap` with respect to ``errors``.

    Args:
        grad: Gradient of the sums, float32 ``(2, 3, K+1)``; the rows of the target mass do not matter.
        errors: As in :func:`cell_error_overlap`.
        target: As in :func:`cell_error_overlap`.
        cells: As in :func:`cell_overlap`.
        out: Array for the result: contiguous float32 of the shape of ``cells``. Default: a new one.

    Returns:
        Gradient, float32 of the shape of ``cells``.

    Raises:
        TypeError: ``errors`` is not float32 or ``target`` not bool.
        ValueError: Shapes differ, a cell lies outside 0..K, or ``out`` is not such an array.

    Example:
        >>> grad = np.array([[[0, 2], [0, 1], [0, 0]], [[0, 0], [0, 1], [0, 0]]], np.float32)
        >>> errors, cells = np.zeros(3, np.float32), np.array([1, 1, 0], np.int32)
        >>> cell_error_overlap_backward(grad, errors, np.array([True, False, True]), cells)
        array([-2.,  2.,  0.], dtype=float32)
    """
    _check_errors(errors, target, cells)
    out = _place(out, cells.shape, np.dtype(np.float32))
    grad = np.require(grad, np.float32, ["C", "A", "W"])
    if not _gather_errors(grad, _flat(errors), _flat(target), _flat(cells), out.reshape(-1)):
        raise ValueError(f"cells must lie in 0..{grad.shape[2] - 1}, got {cells.min()}..{cells.max()}")
    return out


def cell_voxels(cells: NDArray[np.int32], num_cells: int) -> NDArray[np.int64]:
    """Count the voxels of each lesion's territory.

    Args:
        cells: Cell of each voxel, int32 of any shape, 0..num_cells; 0 = no cell.
        num_cells: Number of cells K.

    Returns:
        int64 ``(K+1,)``; column 0 holds the voxels without a cell.

    Raises:
        ValueError: A cell lies outside 0..num_cells.

    Example:
        >>> cell_voxels(np.array([[1, 1, 0, 3]], np.int32), 3)
        array([1, 2, 0, 1])
    """
    counts = np.zeros(num_cells + 1, np.int64)
    if not _count_runs(_flat(cells), counts):
        raise ValueError(f"cells must lie in 0..{num_cells}, got {cells.min()}..{cells.max()}")
    return counts


def _check_errors(errors: NDArray[Any], target: NDArray[Any], cells: NDArray[Any]) -> None:
    if errors.dtype != np.float32 or target.dtype != np.bool_:
        raise TypeError(f"errors must be float32 and target bool, got {errors.dtype} and {target.dtype}")
    _check_shapes(errors, target, cells)


def _place(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.carray:
        raise ValueError(f"out must be contiguous {dtype} {shape}, got {out.dtype} {out.shape}")
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
    """Add up each run of one cell before touching its sums; those of strips wait in the lanes for the next run."""
    lanes = np.zeros((3, _STRIP))
    start = owner = 0
    while start < cells.size:
        cell, stop = cells[start], _end_of_run(cells, start)
        if cell < 0 or cell >= sums.shape[1]:
            return False
        rest = stop - (stop - start) % _STRIP
        if rest > start and cell != owner:
            _empty_lanes(lanes, sums[:, owner])
            owner = cell
        _add_strips(probs, target, start, rest, lanes)
        overlap = prob_mass = target_mass = 0.0
        for k in range(np.uint64(rest), np.uint64(stop)):
            p, t = np.float64(probs[k]), np.float64(target[k])
            overlap += p * t
            prob_mass += p
            target_mass += t
        sums[0, cell] += overlap
        sums[1, cell] += prob_mass
        sums[2, cell] += target_mass
        start = stop
    _empty_lanes(lanes, sums[:, owner])
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
def _add_strips(probs: NDArray[Any], target: NDArray[Any], start: int, stop: int, lanes: NDArray[np.float64]) -> None:
    """Sum up lane by lane: one sum alone would have to wait for each addition before the next."""
    rest = stop - (stop - start) % (_STRIPS * _STRIP)
    for i in range(start, rest, _STRIPS * _STRIP):
        _add_to_lanes(probs, target, i, _STRIPS, lanes)
    for i in range(rest, stop, _STRIP):
        _add_to_lanes(probs, target, i, 1, lanes)


@inlined
def _add_to_lanes(
    probs: NDArray[Any], target: NDArray[Any], start: int, strips: int, lanes: NDArray[np.float64]
) -> None:
    """Add some strips up before touching the lanes, which lie in memory."""
    for t in range(np.uint64(_STRIP)):
        overlap = prob_mass = target_mass = 0.0
        for strip in range(np.uint64(strips)):
            k = np.uint64(start) + t + strip * np.uint64(_STRIP)
            p, truth = np.float64(probs[k]), np.float64(target[k])
            overlap += p * truth
            prob_mass += p
            target_mass += truth
        lanes[0, t] += overlap
        lanes[1, t] += prob_mass
        lanes[2, t] += target_mass


@kernel
def _empty_lanes(lanes: NDArray[np.float64], sums: NDArray[np.float64]) -> None:
    for row in range(3):
        for t in range(_STRIP):
            sums[row] += lanes[row, t]
            lanes[row, t] = 0


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


@kernel
def _add_errors(
    errors: NDArray[np.float32], target: NDArray[np.uint8], cells: NDArray[np.int32], sums: NDArray[np.float64]
) -> bool:
    """Two sums block by block, so that the probabilities stay in the cache."""
    probs = np.empty(_BLOCK, np.float32)
    for start in range(0, cells.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, cells.size))
        wrong, truth, ids = errors[block], target[block], cells[block]
        for i in range(wrong.size):
            probs[i] = exp32(-wrong[i]) if truth[i] != 0 else -expm1_32(-wrong[i])
        if not _add_runs(probs, truth, ids, sums[0]):
            return False
        _add_runs(wrong, truth, ids, sums[1])
    return True


@kernel
def _gather_errors(
    grad: NDArray[np.float32],
    errors: NDArray[np.float32],
    target: NDArray[np.uint8],
    cells: NDArray[np.int32],
    out: NDArray[np.float32],
) -> bool:
    """The probability falls with the error by exp(-error) where the target is true, and grows by as much elsewhere."""
    start = 0
    while start < cells.size:
        cell, stop = cells[start], _end_of_run(cells, start)
        if cell < 0 or cell >= grad.shape[2]:
            return False
        level, level_inside = grad[1, 1, cell], grad[1, 0, cell] + grad[1, 1, cell]
        slope, slope_inside = grad[0, 1, cell], -(grad[0, 0, cell] + grad[0, 1, cell])
        for k in range(np.uint64(start), np.uint64(stop)):
            right = exp32(-errors[k])
            out[k] = level_inside + slope_inside * right if target[k] != 0 else level + slope * right
        start = stop
    return True


@kernel
def _count_runs(cells: NDArray[np.int32], counts: NDArray[np.int64]) -> bool:
    start = 0
    while start < cells.size:
        cell, stop = cells[start], _end_of_run(cells, start)
        if cell < 0 or cell >= counts.size:
            return False
        counts[cell] += stop - start
        start = stop
    return True
