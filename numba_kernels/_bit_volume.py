"""Volumes of bits: 64 voxels of a row in one word, so that one operation treats 64 voxels.

Row y of plane z starts at word ``z * plane + y * row`` of one flat array. An empty plane, an empty row and an empty
byte lie before and after the voxels: neighbours are found by adding to the index, and no border needs care.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bits import count_ones, trailing_zeros
from numba_kernels._jit import kernel
from numba_kernels._vector import bits_of_others

__all__ = ["Layout", "dilate", "pack", "unpack", "voxels"]

_FIRST_BIT = 8  # bit of voxel x = 0 within its row
_LAST_BITS = 8  # empty ones at its end, or more

ONE, TOP = np.uint64(1), np.uint64(63)


class Layout(NamedTuple):
    """How many words a row and a plane take, borders included."""

    row: int
    plane: int


def pack(mask: NDArray[np.bool_]) -> tuple[NDArray[np.uint64], Layout]:
    """Turn a mask ``(Z, Y, X)`` into words."""
    z, y, x = mask.shape
    row = (_FIRST_BIT + x + _LAST_BITS + 63) // 64
    layout = Layout(row, row * (y + 2))
    bits = np.zeros((z + 2) * layout.plane, np.uint64)
    line = np.require(mask, requirements=["C", "A", "W"]).reshape(-1).view(np.uint8)
    if mask.size > 0:
        _pack(line, mask.shape, layout, bits)
    return bits, layout


@kernel
def _pack(line: NDArray[np.uint8], shape: tuple[int, int, int], layout: Layout, bits: NDArray[np.uint64]) -> None:
    _, height, width = shape
    outside = np.uint8(0)
    for row in range(line.size // width):
        word = (row // height + 1) * layout.plane + (row % height + 1) * layout.row
        for x in range(0, width, 64):
            some = bits_of_others(line, row * width + x, min(64, width - x), outside)
            bits[word] |= some << np.uint64(_FIRST_BIT)
            word += 1
            if some >> np.uint64(64 - _FIRST_BIT) != 0:
                bits[word] = some >> np.uint64(64 - _FIRST_BIT)


def unpack(bits: NDArray[np.uint64], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Turn the words back into a mask ``(Z, Y, X)``."""
    z, y, x = shape
    octets = bits.astype("<u8", copy=False).view(np.uint8).reshape(z + 2, y + 2, -1)[1:-1, 1:-1, 1:]
    return np.unpackbits(octets, axis=-1, count=x, bitorder="little").view(np.bool_)


@kernel
def voxels(bits: NDArray[np.uint64], layout: Layout) -> NDArray[np.int64]:
    """List the coordinates (z, y, x) of all voxels in memory order, int64 ``(N, 3)``."""
    count = 0
    for word in bits:
        count += count_ones(word)
    out = np.empty((count, 3), np.int64)
    k = 0
    for i in range(bits.size):
        word = bits[i]
        while word != 0:
            out[k, 0] = i // layout.plane - 1
            out[k, 1] = i % layout.plane // layout.row - 1
            out[k, 2] = i % layout.row * 64 + trailing_zeros(word) - _FIRST_BIT
            word &= word - ONE
            k += 1
    return out


def dilate(bits: NDArray[np.uint64], shape: tuple[int, int, int], layout: Layout) -> NDArray[np.uint64]:
    """Add the six neighbours of every voxel as far as they lie in the volume ``(Z, Y, X)``."""
    out = np.zeros_like(bits)
    if bits.size > 0 and min(shape) > 0:
        inside, _ = pack(np.ones((1, 1, shape[2]), np.bool_))
        _dilate(bits, inside.reshape(3, 3, -1)[1, 1].copy(), shape, layout, out)
    return out


@kernel
def _dilate(
    bits: NDArray[np.uint64],
    inside: NDArray[np.uint64],
    shape: tuple[int, int, int],
    layout: Layout,
    out: NDArray[np.uint64],
) -> None:
    for z in range(1, shape[0] + 1):
        for y in range(1, shape[1] + 1):
            row = z * layout.plane + y * layout.row
            for w in range(layout.row):
                i = row + w
                along = bits[i] | bits[i] << ONE | bits[i] >> ONE | bits[i - 1] >> TOP | bits[i + 1] << TOP
                across = bits[i - layout.row] | bits[i + layout.row] | bits[i - layout.plane] | bits[i + layout.plane]
                out[i] = (along | across) & inside[w]
