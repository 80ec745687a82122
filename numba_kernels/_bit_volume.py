"""Volumes of bits: 64 voxels of a row in one word, so that one operation treats 64 voxels.

Row y of plane z starts at word ``z * plane + y * row`` of one flat array. An empty plane, an empty row and an empty
byte lie before and after the voxels: neighbours are found by adding to the index, and no border needs care.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bits import count_ones, trailing_zeros
from numba_kernels._jit import kernel

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
    volume = np.zeros((z + 2, y + 2, 8 * row), np.uint8)
    packed = np.packbits(mask, axis=-1, bitorder="little")
    volume[1:-1, 1:-1, 1 : 1 + packed.shape[-1]] = packed
    return volume.reshape(-1).view("<u8").astype(np.uint64, copy=False), Layout(row, row * (y + 2))


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


@kernel
def dilate(bits: NDArray[np.uint64], inside: NDArray[np.uint64], layout: Layout) -> NDArray[np.uint64]:
    """Add the six neighbours of every voxel as far as they lie inside."""
    out = np.zeros_like(bits)
    for i in range(layout.plane, bits.size - layout.plane):
        along = bits[i] | bits[i] << ONE | bits[i] >> ONE | bits[i - 1] >> TOP | bits[i + 1] << TOP
        across = bits[i - layout.row] | bits[i + layout.row] | bits[i - layout.plane] | bits[i + layout.plane]
        out[i] = (along | across) & inside[i]
    return out
