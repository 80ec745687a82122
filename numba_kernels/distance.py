"""Exact Euclidean distance from the voxels of a mask to its outside, in mm."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._checks import as_label_map
from numba_kernels.nearest_component import nearest_component

__all__ = ["distance"]


def distance(
    mask: NDArray[Any], spacing: Sequence[float] | None = None, *, signed: bool = False
) -> NDArray[np.float32]:
    """Tell how deep each voxel lies inside an organ or lesion, in mm.

    ``distance[v] = min over u with mask[u] == 0 of ||spacing * (v - u)||`` inside and 0 outside, from voxel centre
    to voxel centre. What lies beyond the edge of the array is unknown and counts as neither in nor out.

    Args:
        mask: Mask or label map ``(Y, X)`` or ``(Z, Y, X)``, bool or any integer dtype; everything but 0 is inside.
        spacing: Voxel size in mm along each axis of the array. Default: 1 mm.
        signed: Also measure the outside: minus the distance to the nearest voxel of the mask. Losses that want the
            inside negative take ``-distance(mask, spacing, signed=True)``.

    Returns:
        Distance in mm, float32 of the same shape: >= 0, or negative outside with ``signed``; never 0 with ``signed``.
        A full mask is infinitely deep (inf); an empty one is 0 everywhere, with ``signed`` -inf.

    Raises:
        TypeError: ``mask`` is neither bool nor integer.
        ValueError: ``mask`` is neither 2-D nor 3-D, or ``spacing`` is not one positive finite number per axis.

    Example:
        >>> distance(np.array([[0, 1, 1, 1, 1, 0, 0]]), spacing=(1.0, 0.5))
        array([[0. , 0.5, 1. , 1. , 0.5, 0. , 0. ]], dtype=float32)
        >>> distance(np.array([[0, 1, 1, 1, 1, 0, 0]]), signed=True)
        array([[-1.,  1.,  2.,  2.,  1., -1., -2.]], dtype=float32)
    """
    inside = as_label_map(mask) != 0
    depth = _to_nearest(~inside, spacing)
    return depth - _to_nearest(inside, spacing) if signed else depth


def _to_nearest(mask: NDArray[np.bool_], spacing: Sequence[float] | None) -> NDArray[np.float32]:
    return nearest_component(mask, spacing, return_distance=True)[1]
