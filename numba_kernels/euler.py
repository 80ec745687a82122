"""The Euler number of a mask: pieces minus tunnels plus cavities, from one pass over its bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bit_volume import Layout, pack
from numba_kernels._bits import count_ones
from numba_kernels._checks import as_label_map
from numba_kernels._jit import kernel

__all__ = ["euler_number"]

_CONNECTIVITIES = {2: (4, 8), 3: (6, 26)}  # 18 has no plain complex of cubes behind it
ONE, TOP = np.uint64(1), np.uint64(63)


def euler_number(mask: NDArray[Any], connectivity: int | None = None) -> int:
    """Count pieces minus tunnels plus cavities of a mask; in 2-D, pieces minus holes.

    With all neighbours (26 or 8), voxels are closed cubes that touch at corners:
    ``χ = corners - edges + faces - cubes``, each counted once however many voxels share it (2-D: without the last).
    With face neighbours (6 or 4), voxels are points: ``χ = voxels - pairs of face neighbours + 2 x 2 squares -
    2 x 2 x 2 blocks``, all of foreground. The background has the other neighbourhood: 6 for 26, 26 for 6.
    With Betti numbers: ``χ = b0 - b1 + b2``.

    Args:
        mask: ``(Y, X)`` or ``(Z, Y, X)``, bool or any integer dtype, any memory order; not 0 is foreground. Voxels
            beyond the array count as background.
        connectivity: 4 or 8 neighbours in 2-D, 6 or 26 in 3-D. Default: all neighbours (8 or 26).

    Returns:
        Any integer; 0 if the mask is empty.

    Raises:
        TypeError: ``mask`` is neither bool nor integer.
        ValueError: ``mask`` is neither 2-D nor 3-D, or ``connectivity`` is none of the two.

    Example:
        >>> ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
        >>> euler_number(ring), euler_number(np.eye(2, dtype=int)), euler_number(np.eye(2, dtype=int), 4)
        (0, 1, 2)

    Source:
        Kong and Rosenfeld, "Digital topology: introduction and survey", CVGIP 48 (1989),
        https://doi.org/10.1016/0734-189X(89)90147-3. Counting 64 voxels at a time is ours.
    """
    mask = as_label_map(mask)
    faces_only, all_neighbours = _CONNECTIVITIES[mask.ndim]
    if connectivity not in (None, faces_only, all_neighbours):
        raise ValueError(f"connectivity in {mask.ndim}-D must be {faces_only} or {all_neighbours}, got {connectivity}")
    bits, layout = pack((mask[None] if mask.ndim == 2 else mask) != 0)
    # Duality: the background as closed cubes has the Euler number of the foreground as points. The frame of ones
    # adds nothing, because 1 - 3 + 3 - 1 = 0 for every voxel in its inside.
    return int(_closed_cubes(~bits if connectivity == faces_only else bits, layout))


@kernel
def _closed_cubes(bits: NDArray[np.uint64], layout: Layout) -> int:
    """Corners - edges + faces - cubes; each belongs to the voxel of the eight around it with the highest indices.

    ``a, b, c, d`` hold 64 voxels each of four neighbouring rows, and ``_spread`` unites neighbours along x.
    """
    total = 0
    previous = np.zeros(4, np.uint64)
    for i in range(bits.size - layout.plane - layout.row):
        a = bits[i]
        ab, ac = a | bits[i + layout.row], a | bits[i + layout.plane]
        abcd = ab | ac | bits[i + layout.plane + layout.row]
        if abcd | previous[3] == 0:
            continue
        total += count_ones(_spread(abcd, previous[3])) - count_ones(abcd)
        total -= count_ones(_spread(ab, previous[1])) - count_ones(ab)
        total -= count_ones(_spread(ac, previous[2])) - count_ones(ac)
        total += count_ones(_spread(a, previous[0])) - count_ones(a)
        previous[0], previous[1], previous[2], previous[3] = a, ab, ac, abcd
    return total


@kernel
def _spread(word: np.uint64, previous: np.uint64) -> np.uint64:
    return word | word << ONE | previous >> TOP
