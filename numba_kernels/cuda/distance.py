"""Exact Euclidean distance from the voxels of many masks to their outside, in mm, on the GPU."""

import math
from collections.abc import Sequence
from typing import Any

from numba import cuda

from numba_kernels.cuda._jit import kernel
from numba_kernels.cuda.device import THREADS, Device
from numba_kernels.cuda.nearest_component import nearest_component

__all__ = ["distance"]


def distance(device: Device, masks: Any, spacing: Sequence[float] | None = None, *, signed: bool = False) -> Any:
    """Tell how deep each voxel lies inside a structure, as :func:`numba_kernels.distance` does for one mask.

    Args:
        device: Where the arrays live.
        masks: Masks or label maps ``(N, Y, X)`` or ``(N, Z, Y, X)``, bool or integer within int32, contiguous and not
            empty; everything but 0 is inside.
        spacing: Voxel size in mm along each axis of a mask. Default: 1 mm.
        signed: Also measure the outside: minus the distance to the nearest voxel of the mask.

    Returns:
        Distance in mm, float32 of the same shape: >= 0, or negative outside with ``signed``. Full and empty masks give
        what they give on the CPU: inf and 0, with ``signed`` inf and -inf.

    Raises:
        ValueError: ``spacing`` is not one positive finite number per axis.
    """
    shape, blocks = tuple(masks.shape), -(-math.prod(masks.shape) // THREADS)
    outside = device.empty(shape, "uint8")
    device.launch(_invert, blocks, masks.reshape(-1), outside.reshape(-1))
    _, depth = nearest_component(device, outside, spacing, return_distance=True)
    if signed:
        _, height = nearest_component(device, masks, spacing, return_distance=True)
        device.launch(_subtract, blocks, depth.reshape(-1), height.reshape(-1))
    return depth


@kernel
def _invert(masks: Any, outside: Any) -> None:
    for i in range(cuda.grid(1), masks.size, cuda.gridsize(1)):
        outside[i] = masks[i] == 0


@kernel
def _subtract(depth: Any, height: Any) -> None:
    for i in range(cuda.grid(1), depth.size, cuda.gridsize(1)):
        depth[i] -= height[i]
