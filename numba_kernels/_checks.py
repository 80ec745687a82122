"""Checks that more than one kernel makes of its input."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["as_label_map", "neighbour_rank"]

# How many coordinates may differ by one between two neighbours, per dimension and connectivity.
_RANK = {2: {4: 1, 8: 2}, 3: {6: 1, 18: 2, 26: 3}}


def as_label_map(labels: ArrayLike) -> NDArray[Any]:
    """Return the label map as an array, or say why it is none."""
    array = np.asarray(labels)
    if array.dtype.kind not in "biu":
        raise TypeError(f"labels must be bool or integer, got {array.dtype}; threshold or round them first")
    if array.ndim not in (2, 3):
        raise ValueError(f"labels must be 2-D or 3-D, got shape {array.shape}; loop over samples and channels")
    return array


def neighbour_rank(ndim: int, connectivity: int | None) -> int:
    """Return in how many coordinates neighbours may differ, or say which connectivities exist."""
    ranks = _RANK[ndim]
    if connectivity is None:
        return ndim
    if connectivity not in ranks:
        raise ValueError(f"connectivity in {ndim}-D must be one of {sorted(ranks)}, got {connectivity}")
    return ranks[connectivity]
