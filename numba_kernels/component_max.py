"""The highest value inside each component, and where it stands."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._jit import kernel

__all__ = ["component_max"]


def component_max(
    values: NDArray[Any], labels: NDArray[np.int32], num_components: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Find the brightest voxel of each lesion.

    Args:
        values: float32 or float64, any shape.
        labels: Component of each voxel, int32 of the same shape, 0..num_components; 0 = no component.
        num_components: Number of components K.

    Returns:
        Maxima ``(K+1,)`` in the dtype of ``values`` and their places ``(K+1,)``, int64 positions in C order, the first
        of several. Index 0 belongs to the voxels without a component. An id without a voxel has -inf at place -1.
        NaN counts as higher than any number, so it stays visible.

    Raises:
        ValueError: Shapes differ, or a label lies outside 0..num_components.

    Example:
        >>> maxima, places = component_max(np.array([0.5, 0.9, 0.7]), np.array([1, 1, 2], np.int32), 2)
        >>> maxima.tolist(), places.tolist()
        ([-inf, 0.9, 0.7], [-1, 1, 2])
    """
    if values.shape != labels.shape:
        raise ValueError(f"shapes must agree, got values {values.shape}, labels {labels.shape}")
    maxima = np.full(num_components + 1, -np.inf, values.dtype)
    places = np.full(num_components + 1, -1)
    if not _find_maxima(_flat(values), _flat(labels), maxima, places):
        raise ValueError(f"labels must lie in 0..{num_components}, got {labels.min()}..{labels.max()}")
    return maxima, places


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    return np.require(array, requirements=["C", "A", "W"]).reshape(-1)


@kernel
def _find_maxima(
    values: NDArray[Any], labels: NDArray[np.int32], maxima: NDArray[Any], places: NDArray[np.int64]
) -> bool:
    for i in range(labels.size):
        label, value = labels[i], values[i]
        if label < 0 or label >= maxima.size:
            return False
        highest = maxima[label]
        first_nan = value != value and highest == highest
        if value > highest or first_nan or places[label] < 0:
            maxima[label], places[label] = value, i
    return True
