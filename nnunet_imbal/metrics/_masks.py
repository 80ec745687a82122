"""What all metrics do with masks: check them, and look only where something is."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "Mask", "bounding_box", "check_pair", "check_spacing", "grow_box", "join_boxes", "voxels_for"]

Mask = NDArray[np.bool_]
Box = tuple[slice, ...]


def check_pair(pred: NDArray[Any], ref: NDArray[Any]) -> None:
    """Refuse what is not two bool masks on one grid.

    Raises:
        ValueError: The shapes differ or a mask is not bool.
    """
    if pred.shape != ref.shape:
        raise ValueError(f"prediction {pred.shape} and reference {ref.shape} differ in shape; expected the same grid")
    if pred.dtype != bool or ref.dtype != bool:
        raise ValueError(f"expected bool masks, got {pred.dtype} and {ref.dtype}; compare labels first: array == 1")


def check_spacing(spacing: Sequence[float], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Give mm per voxel along each axis as an array.

    Raises:
        ValueError: There is not one positive finite number per axis.
    """
    step = np.asarray(spacing, np.float64)
    if step.shape != (len(shape),) or not (np.isfinite(step) & (step > 0)).all():
        raise ValueError(f"spacing {spacing}: expected {len(shape)} positive numbers, one per axis of {shape}")
    return step


def bounding_box(mask: Mask) -> Box:
    """Smallest box around the mask; an empty box for an empty mask."""
    box = []
    for _ in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(range(1, mask.ndim))))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
        mask = np.asarray(mask.any(axis=0))  # the other axes need only its shadow
    return tuple(box)


def grow_box(box: NDArray[np.int64], voxels: int, shape: tuple[int, ...]) -> Box:
    """Box ``(ndim, 2)`` of first and last-plus-one index, wider on all sides but inside the image."""
    return tuple(
        slice(max(int(low) - voxels, 0), min(int(high) + voxels, size))
        for (low, high), size in zip(box, shape, strict=True)
    )


def join_boxes(boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Smallest box ``(ndim, 2)`` around all boxes ``(n, ndim, 2)``."""
    return np.stack([boxes[..., 0].min(axis=0), boxes[..., 1].max(axis=0)], axis=-1)


def voxels_for(volume_mm3: float, spacing: Sequence[float], shape: tuple[int, ...]) -> int:
    """Fewest voxels that fill a volume, at least 1; what misses it by a rounding error fills it.

    Raises:
        ValueError: There is not one positive spacing per axis.

    Example:
        >>> voxels_for(3, (1.0, 0.5, 0.5), (9, 9, 9)), voxels_for(0, (1.0, 0.5, 0.5), (9, 9, 9))
        (12, 1)
    """
    return max(1, math.ceil(volume_mm3 / float(np.prod(check_spacing(spacing, shape))) - 1e-6))
