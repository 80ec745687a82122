"""Betti numbers: how many pieces, tunnels and cavities, and how many too many or too few."""

from typing import NamedTuple

import numpy as np

from nnunet_imbal.metrics._masks import Mask, bounding_box, check_pair
from numba_kernels import connected_components, euler_number

__all__ = ["BettiNumbers", "betti_errors", "betti_numbers"]

_BACKGROUND = {26: 6, 6: 26}


class BettiNumbers(NamedTuple):
    """Counts of `betti_numbers`, or their differences from `betti_errors`.

    Attributes:
        b0: Pieces (connected components).
        b1: Tunnels in 3-D, holes in 2-D; a ring has one.
        b2: Cavities, closed on all sides; always 0 in 2-D.
    """

    b0: int
    b1: int
    b2: int


def betti_numbers(mask: Mask, connectivity: int | None = None) -> BettiNumbers:
    """Count the pieces, tunnels and cavities of a structure: a healthy vessel tree is one piece without tunnels.

    ``b0`` = components of the foreground, ``b2`` = components of the background - 1, ``b1 = b0 + b2 - χ`` with the
    Euler number χ. Foreground and background need opposite neighbourhoods, else a line could cross another without
    touching it: 26 and 6 (8 and 4 in 2-D), or the other way round.

    Args:
        mask: bool, ``(Y, X)`` or ``(Z, Y, X)``; beyond the array there is background.
        connectivity: Neighbours of the foreground: 6 or 26 in 3-D, 4 or 8 in 2-D. Default: all (26 or 8). The
            background gets 26 for 6, 6 for 26 and so on; 18 is not offered.

    Returns:
        Three counts; (0, 0, 0) for an empty mask.

    Raises:
        TypeError: The mask is neither bool nor integer.
        ValueError: There are not 2 or 3 axes, or the connectivity is none of the two.

    Example:
        >>> ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
        >>> betti_numbers(ring)
        BettiNumbers(b0=1, b1=1, b2=0)

    Source:
        Kong and Rosenfeld, CVGIP 48 (1989), https://doi.org/10.1016/0734-189X(89)90147-3, published.
    """
    euler = euler_number(mask, connectivity)  # checks the input
    mask = mask[bounding_box(mask != 0)] != 0
    _, pieces = connected_components(mask, connectivity)
    cavities = _cavities(mask, connectivity or 26) if mask.ndim == 3 else 0
    return BettiNumbers(pieces, pieces + cavities - euler, cavities)


def betti_errors(pred: Mask, ref: Mask, connectivity: int | None = None) -> BettiNumbers:
    """Count by how many pieces, tunnels and cavities prediction and truth differ.

    ``|b_k(P) - b_k(R)|`` for k = 0, 1, 2. Only numbers are compared: one vessel broken and one of two real pieces
    missing gives 0. So read it beside `cldice`.

    Args:
        pred: Predicted voxels of one class, bool, ``(Y, X)`` or ``(Z, Y, X)``.
        ref: True voxels, bool, same shape.
        connectivity: See `betti_numbers`.

    Returns:
        0 or more each. If one mask is empty, the numbers of the other; (0, 0, 0) if both are.

    Raises:
        ValueError: The shapes differ, a mask is not bool, there are not 2 or 3 axes, or the connectivity is none of
            the two.

    Example:
        >>> vessel = np.ones((3, 9), bool)
        >>> broken = vessel.copy()
        >>> broken[:, 4] = False
        >>> betti_errors(broken, vessel)
        BettiNumbers(b0=1, b1=0, b2=0)
    """
    check_pair(pred, ref)
    found, true = betti_numbers(pred, connectivity), betti_numbers(ref, connectivity)
    return BettiNumbers(*(abs(a - b) for a, b in zip(found, true, strict=True)))


def _cavities(mask: Mask, connectivity: int) -> int:
    """Pieces of the background but for the outside, which the frame joins to one."""
    return connected_components(np.pad(~mask, 1, constant_values=True), _BACKGROUND[connectivity])[1] - 1
