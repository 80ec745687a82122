"""Checks that more than one kernel makes of its input."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["as_label_map"]


def as_label_map(labels: ArrayLike) -> NDArray[Any]:
    """Return the label map as an array, or say why it is none."""
    array = np.asarray(labels)
    if array.dtype.kind not in "biu":
        raise TypeError(f"labels must be bool or integer, got {array.dtype}; threshold or round them first")
    if array.ndim not in (2, 3):
        raise ValueError(f"labels must be 2-D or 3-D, got shape {array.shape}; loop over samples and channels")
    return array
