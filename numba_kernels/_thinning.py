"""Topology-preserving thinning of a bit volume: peel off border voxels until only centre lines are left."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bit_volume import Layout
from numba_kernels._bits import count_ones, trailing_zeros
from numba_kernels._jit import kernel
from numba_kernels._simple_voxels import half_table, whole_table

__all__ = ["thin"]

# Border directions: 0 y-1, 1 x+1, 2 z+1, 3 y+1, 4 x-1, 5 z-1.
_ORDER = (0, 1, 2, 3, 4, 5)
_ORDER_SKIMAGE = (0, 3, 1, 4, 2, 5)
_ALONG_Z = (2, 5)

ONE, TOP = np.uint64(1), np.uint64(63)
EVEN, ODD = np.uint64(0x5555555555555555), np.uint64(0xAAAAAAAAAAAAAAAA)

# A neighbourhood is a number of 27 bits, bit 9 (dz+1) + 3 (dy+1) + (dx+1): three planes of 9 bits. The eight
# neighbours in the middle plane are its "ring", a number of 8 bits.
_PLANE, _OTHERS = np.uint64(511), np.uint64((1 << 27) - 1 - (1 << 13))


def thin(bits: NDArray[np.uint64], layout: Layout, *, flat: bool, sequential: bool) -> None:
    """Reduce the voxels to their skeleton, in place.

    For each border direction in turn, all deletable voxels that lack the neighbour in that direction are marked; then
    the marked ones are tested once more and deleted. ``flat`` leaves out the directions along z. ``sequential`` makes
    the second test as scikit-image 0.26 does: one by one in memory order, for connectivity alone.
    """
    order = _ORDER_SKIMAGE if sequential else _ORDER
    directions = [direction for direction in order if not (flat and direction in _ALONG_Z)]
    _thin(_prepare(bits, layout), np.array(directions), sequential)


class _State(NamedTuple):
    """What thinning works on: arrays of one word for 64 voxels, and tables.

    Only "dirty" voxels are looked at: those whose neighbourhood has changed since they were found undeletable.
    Kernels take the arrays out once, because numba counts references at every look-up.
    """

    bits: NDArray[np.uint64]
    octets: NDArray[np.uint8]  # the same memory by bytes
    dirty: NDArray[np.uint64]
    marked: NDArray[np.uint64]
    active: NDArray[np.uint64]  # one bit for each word with dirty voxels on a border
    queue: NDArray[np.int64]  # words with marked voxels, in memory order
    parity: NDArray[np.uint8]  # of the words' rows: 2 (z is odd) + (y is odd)
    half: NDArray[np.uint16]
    whole: NDArray[np.bool_]
    layout: Layout


def _prepare(bits: NDArray[np.uint64], layout: Layout) -> _State:
    flags = np.zeros((bits.size // 64 + 1) * 64, bool)
    flags[: bits.size] = bits != 0
    odd_z = np.arange(1, bits.size // layout.plane + 1) & 1
    odd_y = np.arange(1, layout.plane // layout.row + 1) & 1
    return _State(
        bits=bits,
        octets=bits.view(np.uint8),
        dirty=bits.copy(),
        marked=np.zeros_like(bits),
        active=np.packbits(flags, bitorder="little").view(np.uint64),
        queue=np.empty(bits.size, np.int64),
        parity=np.repeat(np.add.outer(2 * odd_z, odd_y).astype(np.uint8), layout.row),
        half=half_table(),
        whole=whole_table(),
        layout=layout,
    )


@kernel
def _thin(state: _State, directions: NDArray[np.int64], sequential: bool) -> None:
    changed = True
    while changed:
        changed = False
        for direction in directions:
            queue = state.queue[: _mark(state, direction)]
            if sequential:
                _delete_in_order(state, queue)
            else:
                _delete_by_parity(state, queue)
            changed |= _settle(state, queue)


@kernel
def _mark(state: _State, direction: int) -> int:
    """Mark the deletable voxels on the border of this direction; return how many words hold some."""
    bits, octets, dirty, active, layout = state.bits, state.octets, state.dirty, state.active, state.layout
    marked, queue, half, whole = state.marked, state.queue, state.half, state.whole
    count = 0
    for a in range(active.size):
        words = active[a]
        while words != 0:
            i = 64 * a + trailing_zeros(words)
            words &= words - ONE
            todo, border = _borders(bits, i, direction, layout)
            todo &= dirty[i]
            found = _deletable(octets, i, todo, half, whole, layout)
            dirty[i] &= ~(todo & ~found)
            if dirty[i] & border == 0:
                active[a] &= ~(ONE << np.uint64(i & 63))
            if found != 0:
                marked[i] = found
                queue[count] = i
                count += 1
    return count


@kernel
def _borders(bits: NDArray[np.uint64], i: int, direction: int, layout: Layout) -> tuple[np.uint64, np.uint64]:
    """Voxels of word i that lack the neighbour in this direction, and those that lack any of the six."""
    word = bits[i]
    left, right = word << ONE | bits[i - 1] >> TOP, word >> ONE | bits[i + 1] << TOP
    front, back = bits[i - layout.row], bits[i + layout.row]
    below, above = bits[i - layout.plane], bits[i + layout.plane]
    inside = left & right & front & back & below & above
    if direction % 3 == 0:
        beside = front if direction == 0 else back
    elif direction % 3 == 1:
        beside = right if direction == 1 else left
    else:
        beside = above if direction == 2 else below
    return word & ~beside, word & ~inside


@kernel
def _deletable(
    octets: NDArray[np.uint8],
    i: int,
    todo: np.uint64,
    half: NDArray[np.uint16],
    whole: NDArray[np.bool_],
    layout: Layout,
) -> np.uint64:
    """Those of the voxels in question that can go without changing topology and are no end of a line."""
    found = np.uint64(0)
    while todo != 0:
        bit = trailing_zeros(todo)
        code = _neighbourhood(octets, i, bit, layout)
        one_piece, same_euler = _topology(code, half, whole)
        found |= np.uint64(one_piece & same_euler & (count_ones(code & _OTHERS) > 1)) << np.uint64(bit)
        todo &= todo - ONE
    return found


@kernel
def _topology(code: np.uint64, half: NDArray[np.uint16], whole: NDArray[np.bool_]) -> tuple[bool, bool]:
    """Whether the neighbours form one piece, and whether the Euler number stays when the voxel between them goes."""
    ring = code >> np.uint64(9) & np.uint64(15) | code >> np.uint64(10) & np.uint64(240)
    lower = np.uint64(half[code & _PLANE, ring])
    upper = np.uint64(half[code >> np.uint64(18), ring])
    bits = (lower | upper) & np.uint64(127) | lower & upper & np.uint64(128)
    return whole[bits], (lower >> np.uint64(8)) + (upper >> np.uint64(8)) == 128


@kernel
def _neighbourhood(octets: NDArray[np.uint8], i: int, bit: int, layout: Layout) -> np.uint64:
    """The 27 bits around a voxel, read in pairs of bytes (words lie in memory lowest byte first).

    All is unsigned: for a signed index the compiler provides that it might count from the end, five times slower.
    """
    row, plane = np.uint64(8 * layout.row), np.uint64(8 * layout.plane)
    corner = np.uint64(8 * (i - layout.plane - layout.row) + (bit - 1 >> 3))
    shift = np.uint64(bit - 1 & 7)
    code = np.uint64(0)
    for dz in range(3):
        for dy in range(3):
            k = corner + np.uint64(dz) * plane + np.uint64(dy) * row
            pair = np.uint64(octets[k]) | np.uint64(octets[k + ONE]) << np.uint64(8)
            code |= (pair >> shift & np.uint64(7)) << np.uint64(9 * dz + 3 * dy)
    return code


@kernel
def _delete_by_parity(state: _State, queue: NDArray[np.int64]) -> None:
    """Delete in 8 turns, by odd and even z, y and x: voxels of one turn are no neighbours, their order is the same."""
    bits, octets, marked, parity, layout = state.bits, state.octets, state.marked, state.parity, state.layout
    half, whole = state.half, state.whole
    group = np.empty(queue.size, np.int64)
    for odd_rows in range(4):
        count = 0
        for i in queue:
            group[count] = i
            count += parity[i] == odd_rows
        for lane in (EVEN, ODD):
            for i in group[:count]:
                gone = marked[i] & lane
                if odd_rows > 0 or lane == ODD:  # in the first turn nothing has changed since the mark was set
                    gone = _deletable(octets, i, gone, half, whole, layout)
                bits[i] &= ~gone


@kernel
def _delete_in_order(state: _State, queue: NDArray[np.int64]) -> None:
    """Delete one by one wherever the neighbours stay connected: not enough to keep the topology."""
    bits, octets, marked, layout = state.bits, state.octets, state.marked, state.layout
    half, whole = state.half, state.whole
    for i in queue:
        todo = marked[i]
        while todo != 0:
            bit = trailing_zeros(todo)
            code = _neighbourhood(octets, i, bit, layout)
            if code & _OTHERS == 0 or _topology(code, half, whole)[0]:
                bits[i] &= ~(ONE << np.uint64(bit))
            todo &= todo - ONE


@kernel
def _settle(state: _State, queue: NDArray[np.int64]) -> bool:
    """Unmark all; what was found undeletable in the end is clean, what lost a neighbour is dirty again."""
    bits, dirty, marked, active, layout = state.bits, state.dirty, state.marked, state.active, state.layout
    for i in queue:
        dirty[i] &= ~(marked[i] & bits[i])
    changed = False
    for i in queue:
        gone = marked[i] & ~bits[i]
        marked[i] = 0
        if gone != 0:
            changed = True
            _soil(bits, dirty, active, i, gone | gone << ONE | gone >> ONE, layout)
            if gone & ONE != 0:
                _soil(bits, dirty, active, i - 1, ONE << TOP, layout)
            if gone >> TOP != 0:
                _soil(bits, dirty, active, i + 1, ONE, layout)
    return changed


@kernel
def _soil(
    bits: NDArray[np.uint64],
    dirty: NDArray[np.uint64],
    active: NDArray[np.uint64],
    i: int,
    touched: np.uint64,
    layout: Layout,
) -> None:
    """Make the voxels among these bits dirty, in word i and in the same place of the eight rows around it."""
    for dz in (-layout.plane, 0, layout.plane):
        for dy in (-layout.row, 0, layout.row):
            k = i + dz + dy
            soiled = bits[k] & touched
            dirty[k] |= soiled
            active[k >> 6] |= np.uint64(soiled != 0) << np.uint64(k & 63)
