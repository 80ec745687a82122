"""Kernels: numpy arrays in, numpy arrays out."""

import numpy as np

from numba_kernels.component_max import component_max
from numba_kernels.component_stats import component_stats, largest_component, remove_small_components
from numba_kernels.component_sums import (
    cell_error_overlap,
    cell_error_overlap_backward,
    cell_overlap,
    cell_overlap_backward,
    cell_voxels,
)
from numba_kernels.connected_components import connected_components
from numba_kernels.contacts import class_contacts
from numba_kernels.cross_entropy import one_vs_rest_cross_entropy, one_vs_rest_cross_entropy_backward
from numba_kernels.distance import distance
from numba_kernels.euler import euler_number
from numba_kernels.local_thickness import local_thickness
from numba_kernels.nearest_component import nearest_component
from numba_kernels.skeleton import skeletonize, tube
from numba_kernels.soft_skeleton import soft_skeleton, soft_skeleton_backward

__distribution__ = "nnunet-imbal"
__all__ = [
    "cell_error_overlap",
    "cell_error_overlap_backward",
    "cell_overlap",
    "cell_overlap_backward",
    "cell_voxels",
    "class_contacts",
    "component_max",
    "component_stats",
    "connected_components",
    "distance",
    "euler_number",
    "largest_component",
    "local_thickness",
    "nearest_component",
    "one_vs_rest_cross_entropy",
    "one_vs_rest_cross_entropy_backward",
    "remove_small_components",
    "skeletonize",
    "soft_skeleton",
    "soft_skeleton_backward",
    "tube",
    "warmup",
]


def warmup() -> None:
    """Compile every kernel for every dtype now, or load it from disk, instead of at its first use.

    Call it in the parent process before data loaders fork: the children inherit the compiled code.

    Example:
        >>> warmup()
    """
    for dtype in (np.uint8, np.int32):
        cells, count = connected_components(np.array([[[1, 2]]], dtype))
        component_stats(cells, fields=[np.ones(cells.shape, np.float32), np.ones(cells.shape)])
    largest_component(cells)
    for spacing in ((1, 1, 1), (1, np.e, np.pi)):  # short and long keys
        nearest_component(cells, spacing)
    tube(skeletonize(cells))
    euler_number(cells)
    local_thickness(np.array([[0, 1]]))
    for num_classes in (2, 300):
        class_contacts(np.ones((2, 2), np.uint8), num_classes)
    pair = np.ones((1, 2), np.float32)
    soft_skeleton_backward(soft_skeleton(pair, 0), pair, 0)
    column, truth = np.zeros((2, 1), np.float32), np.ones((1, 1), bool)
    one_vs_rest_cross_entropy_backward(one_vs_rest_cross_entropy(column, truth), column, truth)
    for probs in (np.ones(cells.shape, np.float32), np.ones(cells.shape, np.float64)):
        component_max(probs, cells, count)
        for target in (cells.astype(np.uint8), probs):
            sums = cell_overlap(probs, target, cells, count)
            cell_overlap_backward(sums.astype(probs.dtype), target, cells)
    errors, mask = np.ones(cells.shape, np.float32), cells > 0
    both = cell_error_overlap(errors, mask, cells, count)
    cell_error_overlap_backward(both.astype(np.float32), errors, mask, cells)
    cell_voxels(cells, count)
