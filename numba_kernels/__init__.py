"""Kernels: numpy arrays in, numpy arrays out."""

import numpy as np

from numba_kernels.component_sums import cell_overlap, cell_overlap_backward
from numba_kernels.connected_components import connected_components
from numba_kernels.contacts import class_contacts
from numba_kernels.distance import distance
from numba_kernels.local_thickness import local_thickness
from numba_kernels.nearest_component import nearest_component
from numba_kernels.skeleton import skeletonize, tube

__distribution__ = "nnunet-imbal"
__all__ = [
    "cell_overlap",
    "cell_overlap_backward",
    "class_contacts",
    "connected_components",
    "distance",
    "local_thickness",
    "nearest_component",
    "skeletonize",
    "tube",
    "warmup",
]


def warmup() -> None:
    """Compile every kernel for every dtype now, or load it from disk, instead of at its first use.

    Call it in the parent process before data loaders fork: the children inherit the compiled code.

    Example:
        >>> warmup()
    """
    for dtype in (np.int8, np.int16, np.int32, np.int64):
        cells, count = connected_components(np.ones((1, 1, 2), dtype))
    nearest_component(cells)
    tube(skeletonize(cells))
    local_thickness(np.array([[0, 1]]))
    for num_classes in (2, 300):
        class_contacts(np.ones((2, 2), np.uint8), num_classes)
    for probs in (np.ones(cells.shape, np.float32), np.ones(cells.shape, np.float64)):
        for target in (cells.astype(np.uint8), probs):
            sums = cell_overlap(probs, target, cells, count)
            cell_overlap_backward(sums.astype(probs.dtype), target, cells)
