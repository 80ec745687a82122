"""Which classes touch which, and along how many voxels."""

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bits import trailing_zeros
from numba_kernels._checks import as_label_map, neighbour_rank
from numba_kernels._jit import kernel
from numba_kernels._vector import equal_bits

__all__ = ["class_contacts"]

ONE = np.uint64(1)
_WORD = 64  # voxels compared at a time


def class_contacts(labels: NDArray[Any], num_classes: int, connectivity: int | None = None) -> NDArray[np.int64]:
    """Count where classes touch: how often a voxel of one class is the neighbour of a voxel of another.

    ``contacts[a, b] = |{ {u, v} : u and v neighbours, labels[u] = a, labels[v] = b }|`` for a != b: each pair of
    neighbouring voxels counts once in ``contacts[a, b]`` and once in ``contacts[b, a]``. The diagonal is 0.
    Row 0 tells how much of each class borders on background.

    Args:
        labels: Label map ``(Y, X)`` or ``(Z, Y, X)``, bool or any integer dtype, any memory order, values
            0..num_classes-1.
        num_classes: Number of classes C, background included.
        connectivity: 4 or 8 neighbours in 2-D, 6, 18 or 26 in 3-D. Default: all neighbours (8 or 26).

    Returns:
        int64 ``(C, C)``, symmetric, pairs of voxels. All 0 where no classes meet.

    Raises:
        TypeError: ``labels`` is neither bool nor integer.
        ValueError: ``labels`` is neither 2-D nor 3-D or holds values outside 0..C-1, or ``connectivity`` does not
            exist in that dimension.

    Example:
        >>> class_contacts(np.array([[1, 1, 2], [0, 1, 2]]), 3, connectivity=4)
        array([[0, 2, 0],
               [2, 0, 2],
               [0, 2, 0]])
    """
    labels = as_label_map(labels)
    rank = neighbour_rank(labels.ndim, connectivity)
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")
    contacts = np.zeros((num_classes, num_classes), np.int64)
    if labels.size:
        volume = labels[None] if labels.ndim == 2 else labels
        lines, inside = _lay_out(volume, np.uint8 if num_classes <= 256 else np.int32)
        _count(lines.reshape(-1), lines.shape, inside, _half_of_neighbours(rank), contacts)
    return contacts + contacts.T


def _lay_out(labels: NDArray[Any], dtype: Any) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """Rows with voxel x at x + 1, as long as whole words and both neighbours need, and which bits lie inside.

    ``inside[dx + 1, word]`` has a bit for each voxel that exists and whose neighbour at x + dx exists.
    """
    z, y, x = labels.shape
    words = -(-x // _WORD)
    lines = np.zeros((z, y, words * _WORD + 2), dtype)
    lines[:, :, 1 : x + 1] = labels
    voxel = np.arange(words * _WORD)
    neighbour = voxel + np.array([[-1], [0], [1]])
    exists = (voxel < x) & (neighbour >= 0) & (neighbour < x)
    return lines, np.packbits(exists, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def _half_of_neighbours(rank: int) -> NDArray[np.int64]:
    """Steps to the neighbours that come later in memory: each pair is met once."""
    steps = product((-1, 0, 1), repeat=3)
    return np.array([step for step in steps if step > (0, 0, 0) and sum(map(abs, step)) <= rank])


@kernel
def _count(
    line: NDArray[Any],
    shape: tuple[int, int, int],
    inside: NDArray[np.uint64],
    steps: NDArray[np.int64],
    contacts: NDArray[np.int64],
) -> None:
    planes, height, width = shape
    for row in range(planes * height):
        z, y = row // height, row % height
        for dz, dy, dx in steps:
            if z + dz < planes and 0 <= y + dy < height:
                start = row * width + 1
                _count_row(line, start, start + (dz * height + dy) * width + dx, inside, dx + 1, contacts)


@kernel
def _count_row(
    line: NDArray[Any], i: int, j: int, inside: NDArray[np.uint64], side: int, contacts: NDArray[np.int64]
) -> None:
    """Compare the row at i with its shifted neighbour at j, a word at a time, and count where they differ."""
    for word in range(inside.shape[1]):
        differ = inside[side, word] & ~equal_bits(line, i + _WORD * word, j + _WORD * word)
        here, there = np.uint64(i + _WORD * word), np.uint64(j + _WORD * word)  # unsigned: never from the end
        while differ != 0:
            k = np.uint64(trailing_zeros(differ))
            contacts[line[here + k], line[there + k]] += 1
            differ &= differ - ONE
