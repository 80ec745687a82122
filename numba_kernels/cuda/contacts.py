"""Which classes touch which, on the GPU."""

import math
from typing import Any

import numpy as np
from numba import cuda

from numba_kernels._checks import neighbour_rank
from numba_kernels.cuda._jit import inlined, kernel
from numba_kernels.cuda.device import THREADS, Device

__all__ = ["class_contacts"]

_TABLE = 4096  # pairs of classes that a block counts in its own fast memory: up to 64 classes
_STRETCH = 128 * THREADS  # voxels of one block


def class_contacts(device: Device, labels: Any, num_classes: int, connectivity: int | None = None) -> Any:
    """Count where classes touch in many label maps, as :func:`numba_kernels.contacts.class_contacts` does for one.

    Args:
        device: Where the arrays live.
        labels: Label maps ``(N, Y, X)`` or ``(N, Z, Y, X)``, integer, contiguous and not empty. Voxels with values
            outside 0..num_classes-1 are no neighbours of anything: nobody waits for the GPU to check them.
        num_classes: Number of classes C, background included.
        connectivity: 4 or 8 neighbours in 2-D, 6, 18 or 26 in 3-D. Default: all neighbours (8 or 26).

    Returns:
        int64 ``(N, C, C)``, symmetric, pairs of voxels; the diagonals are 0.

    Raises:
        ValueError: ``connectivity`` does not exist in that dimension.
    """
    rank = neighbour_rank(labels.ndim - 1, connectivity)
    items, height, width = labels.shape[0], labels.shape[-2], labels.shape[-1]
    rows = labels.reshape(items, -1, width)
    contacts = device.zeros((items, num_classes, num_classes), "int64")
    blocks = -(-math.prod(labels.shape[1:]) // _STRETCH), items
    device.launch(_count, blocks, rows, height, rank, contacts)
    return contacts


@kernel
def _count(labels: Any, height: int, rank: int, contacts: Any) -> None:
    """Each block counts in some rows of one item, in a table of its own if that is large enough."""
    table = cuda.shared.array(_TABLE, np.int32)
    classes = contacts.shape[1]
    pairs = classes * classes if classes * classes <= _TABLE else 0
    for item in range(cuda.blockIdx.y, labels.shape[0], cuda.gridDim.y):
        for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
            table[pair] = 0
        cuda.syncthreads()
        for row in range(cuda.blockIdx.x, labels.shape[1], cuda.gridDim.x):
            _count_row(labels[item], row, height, rank, table[:pairs], contacts[item])
        cuda.syncthreads()
        for pair in range(cuda.threadIdx.x, pairs, cuda.blockDim.x):
            if table[pair] > 0:
                a = pair // classes
                _add(contacts[item], a, pair - a * classes, table[pair])
        cuda.syncthreads()


@inlined
def _count_row(labels: Any, row: int, height: int, rank: int, table: Any, contacts: Any) -> None:
    """Compare a row with itself and with those of its neighbours that come after it: each pair is met once."""
    rows, width = labels.shape
    z = row // height
    y = row - z * height
    for dz, dy in ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1)):
        reach = rank - abs(dz) - abs(dy)  # steps left along the row
        other = row + dz * height + dy
        if reach >= 0 and other < rows and 0 <= y + dy < height:
            left = -1 if reach > 0 and other != row else 0
            right = 1 if reach > 0 else 0
            for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
                for dx in range(left, right + 1):
                    if 0 <= x + dx < width:
                        _meet(labels[row, x], labels[other, x + dx], table, contacts)


@inlined
def _meet(a: int, b: int, table: Any, contacts: Any) -> None:
    classes = contacts.shape[0]
    if a != b and 0 <= a < classes and 0 <= b < classes:
        if table.size > 0:
            cuda.atomic.add(table, np.int64(a) * classes + b, 1)
        else:
            _add(contacts, a, b, 1)


@inlined
def _add(contacts: Any, a: int, b: int, count: int) -> None:
    cuda.atomic.add(contacts, (a, b), count)
    cuda.atomic.add(contacts, (b, a), count)
