"""Batches of 2-D and 3-D maps: one shape for both, a bound on memory, and which row a block works on."""

import math
from collections.abc import Iterator
from typing import Any

from numba_kernels.cuda._jit import inlined

__all__ = ["around", "as_volumes", "contains", "count_rows", "in_parts", "locate"]

_SCRATCH = 2**28  # bytes of memory in use beside input and result


def as_volumes(array: Any) -> Any:
    """See ``(N, Y, X)`` as ``(N, 1, Y, X)``, and ``(N, Z, Y, X)`` as it is."""
    shape = tuple(array.shape)
    return array.reshape((shape[0], *(1,) * (4 - len(shape)), *shape[1:]))


def in_parts(shape: tuple[int, ...], bytes_per_voxel: int) -> Iterator[slice]:
    """Slices of items, one at least, whose scratch memory stays within bounds."""
    count = max(1, _SCRATCH // (bytes_per_voxel * math.prod(shape[1:])))
    return (slice(first, first + count) for first in range(0, shape[0], count))


def count_rows(volumes: Any) -> int:
    """Rows of voxels in ``(N, Z, Y, X)``: as many blocks as kernels can use that give each block a row."""
    return math.prod(volumes.shape[:3])


@inlined
def locate(row: int, planes: int, height: int) -> tuple[int, int, int]:
    """Item, z and y of a row."""
    plane = row // height
    item = plane // planes
    return item, plane - item * planes, row - plane * height


@inlined
def around(place: int, size: int) -> tuple[int, int]:
    """Coordinates next to one along an axis, itself included, as the limits of a range."""
    return place - 1 if place > 0 else 0, place + 2 if place + 2 < size else size


@inlined
def contains(volume: Any, z: int, y: int, x: int) -> bool:
    """Whether there is such a voxel."""
    planes, height, width = volume.shape
    return 0 <= z < planes and 0 <= y < height and 0 <= x < width
