"""How deep voxels lie inside a structure, and how thick it is around them, in mm."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import numba_kernels
from nnunet_imbal.ops import _run
from nnunet_imbal.ops._checks import spatial_axes, valid_spacing

__all__ = ["distance", "local_thickness"]


def distance(mask: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Tell how deep each voxel lies inside a structure: the distance to its outside in mm.

    Args:
        mask: Bool tensor ``(B, C, *S)`` with 2 or 3 spatial axes.
        spacing: Voxel size in mm along the spatial axes, in array order. Default: 1 mm.

    Returns:
        float32 ``(B, C, *S)`` on the device of ``mask``: mm, 0 outside; inf where a channel has no outside at all.
        Not differentiable.

    Raises:
        ConfigError: ``mask`` has not 2 or 3 spatial axes, or ``spacing`` is not one positive number per axis.

    Example:
        >>> distance(torch.tensor([[[[False, True, True, True]]]]), spacing=(1.0, 0.5))
        tensor([[[[0.0000, 0.5000, 1.0000, 1.5000]]]])
    """
    depth: Tensor = _distance(mask.bool(), valid_spacing(spacing, spatial_axes(mask)))
    return depth


def local_thickness(mask: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Give each voxel the radius of the vessel it belongs to, in mm: that of the largest ball inside that reaches it.

    See :func:`numba_kernels.local_thickness` for the formula.

    Args:
        mask: Bool tensor ``(B, C, *S)`` with 2 or 3 spatial axes.
        spacing: Voxel size in mm along the spatial axes, in array order. Default: 1 mm.

    Returns:
        float32 ``(B, C, *S)`` on the device of ``mask``: mm, 0 outside; inf where a channel has no outside at all.
        Not differentiable.

    Raises:
        ConfigError: ``mask`` has not 2 or 3 spatial axes, or ``spacing`` is not one positive number per axis.

    Example:
        >>> local_thickness(torch.tensor([[[[0, 1, 1, 1, 0, 1, 0]]]]).bool())
        tensor([[[[0., 2., 2., 2., 0., 1., 0.]]]])
    """
    radii: Tensor = _local_thickness(mask.bool(), valid_spacing(spacing, spatial_axes(mask)))
    return radii


def _measure(kernel: Callable[..., NDArray[Any]], mask: Tensor, spacing: list[float]) -> Tensor:
    items = mask.flatten(0, 1).numpy()
    values = np.empty(items.shape, np.float32)

    def fill(i: int) -> None:
        values[i] = kernel(items[i], spacing)

    _run.for_each(fill, range(len(items)))
    return torch.from_numpy(values).reshape(mask.shape)


@torch.library.custom_op("imbal::distance", mutates_args=(), device_types="cpu")
def _distance(mask: Tensor, spacing: list[float]) -> Tensor:
    return _measure(numba_kernels.distance, mask, spacing)


@_distance.register_kernel("cuda")
def _distance_on_gpu(mask: Tensor, spacing: list[float]) -> Tensor:
    kernels = _run.gpu_kernels("distance")
    return _run.through_host(_distance, mask, spacing) if kernels is None else kernels.distance(mask, spacing)


@_distance.register_fake
def _distance_fake(mask: Tensor, spacing: list[float]) -> Tensor:
    return mask.new_empty(mask.shape, dtype=torch.float32)


@torch.library.custom_op("imbal::local_thickness", mutates_args=(), device_types="cpu")
def _local_thickness(mask: Tensor, spacing: list[float]) -> Tensor:
    return _measure(numba_kernels.local_thickness, mask, spacing)


@_local_thickness.register_kernel("cuda")
def _local_thickness_on_gpu(mask: Tensor, spacing: list[float]) -> Tensor:
    kernels = _run.gpu_kernels("local_thickness")
    if kernels is None:
        return _run.through_host(_local_thickness, mask, spacing)
    return kernels.local_thickness(mask, spacing)


@_local_thickness.register_fake
def _local_thickness_fake(mask: Tensor, spacing: list[float]) -> Tensor:
    return mask.new_empty(mask.shape, dtype=torch.float32)
