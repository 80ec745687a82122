"""Centre lines of vessels and other thin structures, and tubes around them, in 2-D and 3-D."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bit_volume import dilate, pack, unpack, voxels
from numba_kernels._checks import as_label_map
from numba_kernels._jit import kernel
from numba_kernels._thinning import thin

__all__ = ["skeletonize", "tube"]

_MOST_LABELS = 1 << 16  # beyond, labels are numbered anew instead of indexing a table


def skeletonize(labels: NDArray[Any], *, compat: Literal["skimage-0.26"] | None = None) -> NDArray[Any]:
    """Reduce each vessel (or any other structure) to its centre line, one voxel thin.

    Every class of a label map is thinned on its own, as if the others were background. The skeleton has the topology
    of the input: as many pieces (26-connected; 8-connected in 2-D), tunnels and cavities, so no object vanishes,
    however small; and no voxel of it but the ends of lines could still go.

    Rule: for each border direction y-1, x+1, z+1, y+1, x-1, z-1 in turn, mark the voxels that lack this neighbour, are
    simple (topology stays when they go) and have two neighbours or more; then visit the marked ones in eight turns,
    by (z odd, y odd, x odd) counting up, and delete those that still are simple and no line's end. Repeat until
    nothing changes. Voxels of one turn are no neighbours: the result does not depend on the order within a turn.
    In 2-D, and where Z is 1, the directions along z are left out.

    Args:
        labels: Label map ``(Y, X)`` or ``(Z, Y, X)``, bool or any integer dtype, any memory order; 0 is background.
        compat: "skimage-0.26" gives the very voxels of ``skimage.morphology.skeletonize(method="lee")`` of
            scikit-image 0.26 for each class. It loses whole objects of even thickness (a box of 2 x 2 x 2 voxels
            leaves nothing): for comparisons only.

    Returns:
        Label map of the same shape and dtype that keeps the labels on the skeletons. Empty stays empty.

    Raises:
        TypeError: ``labels`` is neither bool nor integer.
        ValueError: ``labels`` is neither 2-D nor 3-D, or ``compat`` is unknown.

    Example:
        >>> skeletonize(np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]))
        array([[0, 0, 0, 0, 0],
               [1, 1, 1, 1, 0],
               [0, 0, 0, 0, 0]])

    Source:
        Border directions and criterion: Lee, Kashyap and Chu, "Building skeleton models via 3-D medial surface/axis
        thinning algorithms", CVGIP 56 (1994), https://doi.org/10.1006/cgip.1994.1042. Eight turns: Bertrand and
        Aktouf, "A three-dimensional thinning algorithm using subfields", Vision Geometry III, SPIE 2356 (1995).
    """
    labels = as_label_map(labels)
    if compat not in (None, "skimage-0.26"):
        raise ValueError(f'compat must be None or "skimage-0.26", got {compat!r}')
    volume = labels[None] if labels.ndim == 2 else labels
    settings = {"flat": len(volume) == 1, "sequential": compat is not None}
    if volume.dtype == np.bool_:
        bits, layout = pack(volume)
        thin(bits, layout, **settings)
        return unpack(bits, volume.shape).reshape(labels.shape)
    skeletons = np.zeros(volume.shape, labels.dtype)
    for start, mask, label in _classes(volume):
        bits, layout = pack(mask)
        thin(bits, layout, **settings)
        z, y, x = (voxels(bits, layout) + start).T
        skeletons[z, y, x] = label
    return skeletons.reshape(labels.shape)


def tube(skeleton: NDArray[Any], radius: int = 2) -> NDArray[np.bool_]:
    """Give centre lines some thickness: all voxels within ``radius`` steps along the axes.

    ``tube = {v : min over u with skeleton[u] != 0 of |v - u|_1 <= radius}``. With radius 2 and cut to the labels,
    ``labels * tube(skeletonize(labels))``, this is the target of the Skeleton Recall loss.

    Args:
        skeleton: Mask or label map ``(Y, X)`` or ``(Z, Y, X)``, bool or any integer dtype, any memory order.
        radius: Steps in voxels, 0 or more; 2 turns one voxel into 13 (2-D) or 25 (3-D).

    Returns:
        bool mask of the same shape. Empty stays empty.

    Raises:
        TypeError: ``skeleton`` is neither bool nor integer.
        ValueError: ``skeleton`` is neither 2-D nor 3-D, or ``radius`` is negative.

    Example:
        >>> tube(np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]), radius=1).astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 0, 0],
               [1, 0, 0, 0]])

    Source:
        Kirchhoff et al., "Skeleton Recall Loss for connectivity conserving and resource efficient segmentation of
        thin tubular structures", ECCV 2024, https://arxiv.org/abs/2404.03010.
    """
    skeleton = as_label_map(skeleton)
    if radius < 0:
        raise ValueError(f"radius must be 0 voxels or more, got {radius}")
    volume = skeleton[None] if skeleton.ndim == 2 else skeleton
    bits, layout = pack(volume if volume.dtype == np.bool_ else volume != 0)
    for _ in range(radius):
        bits = dilate(bits, volume.shape, layout)
    return unpack(bits, volume.shape).reshape(skeleton.shape)


def _classes(labels: NDArray[Any]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_], Any]]:
    """Give each class's box, cut from the volume: first voxel, mask and label.

    Boxes start at even coordinates, so that odd and even stay what they are in the whole volume.
    """
    values, numbers = _number(labels)
    for value, (low, high) in zip(values, _boxes(numbers, len(values)), strict=True):
        if value != 0 and high[0] > 0:
            low &= ~1
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            yield low, labels[box] == value, value


def _number(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Labels that may occur and each voxel's index among them."""
    if labels.size and labels.min() >= 0 and labels.max() < _MOST_LABELS:
        return np.arange(int(labels.max()) + 1).astype(labels.dtype), np.array(labels, np.int32, order="C")
    values, numbers = np.unique(labels, return_inverse=True)
    return values, numbers.reshape(labels.shape).astype(np.int32)


@kernel
def _boxes(numbers: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """First voxel of each number's box and the voxel after its last one, ``(count, 2, 3)``; 0 where there is none."""
    boxes = np.zeros((count, 2, 3), np.int64)
    boxes[:, 0] = numbers.size
    for z in range(numbers.shape[0]):
        for y in range(numbers.shape[1]):
            row = numbers[z, y]
            start = 0
            for x in range(1, row.size + 1):
                if x == row.size or row[x] != row[start]:
                    _include(boxes, row[start], (z, y, start), (z + 1, y + 1, x))
                    start = x
    return boxes


@kernel
def _include(boxes: NDArray[np.int64], k: int, first: tuple[int, int, int], last: tuple[int, int, int]) -> None:
    for axis in range(3):
        boxes[k, 0, axis] = min(boxes[k, 0, axis], first[axis])
        boxes[k, 1, axis] = max(boxes[k, 1, axis], last[axis])
