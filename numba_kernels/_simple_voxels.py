"""Tables that tell from the 26 neighbours of a voxel whether topology changes when it goes ("simple" voxels).

Planes are numbers of 9 bits, bit 3 (y+1) + (x+1). The eight neighbours of the voxel in its own plane are its "ring";
an outer plane (below or above) and the ring form a half of its neighbourhood, and the halves meet in the ring alone.
"""

from functools import cache
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

__all__ = ["half_table", "whole_table"]

_BIT = np.arange(18)  # outer plane, then middle plane
_RIGHT, _LEFT, _BACK, _FRONT = (
    int((1 << _BIT[chosen]).sum()) for chosen in (_BIT % 3 < 2, _BIT % 3 > 0, _BIT // 3 % 3 < 2, _BIT // 3 % 3 > 0)
)


@cache
def half_table() -> NDArray[np.uint16]:
    """What one half says, ``table[outer plane, ring]`` with the ring squeezed into 8 bits.

    Bits 0..5: which pieces of the ring (up to four) are joined, see :func:`_joins`. Bits 6 and 7: something is cut off,
    see :func:`_cut_off`. Above: 64 + twice the part of this half in the change of the Euler number, so that it changes
    nothing if the two halves sum to 128.
    """
    outer = np.arange(512, dtype=np.int32)[:, None]
    ring = np.arange(256, dtype=np.int32)
    ring = (ring & 15 | (ring & 240) << 1) << 9
    return (_joins(outer, ring) | _cut_off(outer, ring) | _euler_change(outer, ring) + 64 << 8).astype(np.uint16)


@cache
def whole_table() -> NDArray[np.bool_]:
    """Whether the neighbours form one piece: from bits 0..6 set in either half, and bit 7 set in both."""
    return np.array([bits < 64 and _spans(bits) for bits in range(256)])


def _spans(joins: int) -> bool:
    reached = {0}
    for _ in range(3):
        for bit, pair in enumerate(combinations(range(4), 2)):
            if joins >> bit & 1 and reached.intersection(pair):
                reached.update(pair)
    return len(reached) == 4


def _flood(seeds: NDArray[np.int32], allowed: NDArray[np.int32]) -> NDArray[np.int32]:
    """Grow the seeds within the allowed voxels, 26-connected, until they stop."""
    while True:
        grown = seeds | (seeds & _RIGHT) << 1 | (seeds & _LEFT) >> 1
        grown = grown | (grown & _BACK) << 3 | (grown & _FRONT) >> 3
        grown = (grown | grown << 9 | grown >> 9) & allowed
        if np.array_equal(grown, np.broadcast_to(seeds, grown.shape)):
            return grown
        seeds = grown


def _joins(outer: NDArray[np.int32], ring: NDArray[np.int32]) -> NDArray[np.int32]:
    """One bit for each pair of pieces of the ring: joined by the outer plane. A missing piece counts as joined to 0."""
    pieces = []
    left = ring
    for _ in range(4):
        pieces.append(_flood(left & -left, ring))
        left = left & ~pieces[-1]
    reached = [_flood(piece, outer | ring) for piece in pieces[:3]]
    joins = np.zeros((512, 256), np.int32)
    for bit, (a, b) in enumerate(combinations(range(4), 2)):
        missing = (pieces[b] == 0) & (a == 0)
        joins |= (missing | (reached[a] & pieces[b] != 0)).astype(np.int32) << bit
    return joins


def _cut_off(outer: NDArray[np.int32], ring: NDArray[np.int32]) -> NDArray[np.int32]:
    """Bit 7: the outer plane is one piece and there is no ring, so it must be the only piece. Bit 6: else cut off."""
    lost = outer & ~_flood(ring, outer | ring)
    single = (lost != 0) & (ring == 0) & (_flood(lost & -lost, outer) == lost)
    return np.where(single, 128, np.where(lost != 0, 64, 0)).astype(np.int32)


def _euler_change(outer: NDArray[np.int32], ring: NDArray[np.int32]) -> NDArray[np.int32]:
    """Twice the part of one half in the change of the Euler number when the voxel goes.

    A voxel is a closed cube. With it go those of its corners, edges, sides and its inside that no other voxel shares;
    the Euler number counts them with alternating signs. The halves share what lies between them.
    """
    change = np.zeros((512, 256), np.int32)
    for z, y, x in product((0, 1), (-1, 0, 1), (-1, 0, 1)):  # where the step is 0, the part extends along the axis
        sharing = sum(1 << 3 * (b + 1) + a + 1 for b in {0, y} for a in {0, x})
        free = (ring >> 9 & sharing == 0) & (outer & sharing * z == 0)
        change += np.where(free, (1 + z) * (-1) ** abs(x + y + z), 0)
    return change
