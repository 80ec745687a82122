"""Connected components of label maps in 2-D and 3-D, all classes in one pass."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._runs import find_runs, paint

__all__ = ["connected_components"]


def connected_components(labels: NDArray[Any], connectivity: int | None = None) -> tuple[NDArray[np.int32], int]:
    """Number the separate pieces (lesions, organs, vessels) of a label map.

    Two voxels belong to one component if a chain of neighbouring voxels of the same non-zero label joins them, so
    touching lesions of different classes stay apart. Components are numbered 1..N in the order of their first voxel
    (last axis fastest); for a binary mask this is the numbering of ``scipy.ndimage.label``.

    Args:
        labels: Label map ``(Y, X)`` or ``(Z, Y, X)``, bool or any integer dtype, any memory order; 0 is background.
        connectivity: 4 or 8 neighbours in 2-D, 6, 18 or 26 in 3-D. Default: all neighbours (8 or 26).

    Returns:
        Component numbers, int32 of the same shape with 0 for background, and their count N. Without foreground
        the map is all zero and N is 0.

    Raises:
        TypeError: ``labels`` is neither bool nor integer.
        ValueError: ``labels`` is neither 2-D nor 3-D, or ``connectivity`` does not exist in that dimension.

    Example:
        >>> connected_components(np.array([[1, 0, 2], [0, 1, 2]]), connectivity=8)
        (array([[1, 0, 2],
               [0, 1, 2]], dtype=int32), 2)

    Source:
        Run-based union-find after He, Chao and Suzuki, "A run-based two-scan labeling algorithm", IEEE Trans. Image
        Process. 17 (2008), https://doi.org/10.1109/TIP.2008.919369.
    """
    runs = find_runs(labels, connectivity)
    components = np.zeros(np.shape(labels), np.int32)
    paint(runs.words, runs.numbers, components.reshape(-1))
    return components, runs.total
