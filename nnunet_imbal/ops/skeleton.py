"""Centre lines of vessels and tubes around them."""

import numpy as np
import torch
from torch import Tensor

import numba_kernels
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import _run
from nnunet_imbal.ops._checks import spatial_axes

__all__ = ["skeletonize", "tube"]


def skeletonize(labels: Tensor) -> Tensor:
    """Reduce each vessel to its centre line, one voxel thin, without breaking or losing any.

    See :func:`numba_kernels.skeletonize` for the rule. No object vanishes, however small.

    Args:
        labels: ``(B, C, *S)`` with 2 or 3 spatial axes: one bool mask per channel, or integer label maps, of which
            every class is thinned on its own.

    Returns:
        Same shape, dtype and device: the labels on the centre lines, 0 elsewhere. Empty stays empty. Not
        differentiable.

    Raises:
        ConfigError: ``labels`` is floating point or has not 2 or 3 spatial axes.

    Example:
        >>> vessel = torch.ones(1, 1, 3, 6, dtype=torch.bool)
        >>> skeletonize(vessel)[0, 0].int().sum(1)
        tensor([0, 5, 0])
    """
    spatial_axes(labels)
    if labels.is_floating_point():
        raise ConfigError(f"labels must be bool or integer, got {labels.dtype}; convert them with .long() or > 0.5")
    skeletons: Tensor = _skeletonize(labels)
    return skeletons


def tube(skeleton: Tensor, radius: int = 2) -> Tensor:
    """Give centre lines some thickness: all voxels within ``radius`` steps along the axes.

    Args:
        skeleton: Bool mask or integer label map ``(B, C, *S)`` with 2 or 3 spatial axes.
        radius: Steps in voxels, 0 or more; 2 turns one voxel into 13 (2-D) or 25 (3-D).

    Returns:
        bool ``(B, C, *S)`` on the device of ``skeleton``. Empty stays empty. Not differentiable.

    Raises:
        ConfigError: ``skeleton`` has not 2 or 3 spatial axes, or ``radius`` is negative.

    Example:
        >>> tube(torch.tensor([[[[0, 0, 1, 0, 0]]]]), radius=1).int()
        tensor([[[[0, 1, 1, 1, 0]]]], dtype=torch.int32)
    """
    spatial_axes(skeleton)
    if radius < 0:
        raise ConfigError(f"radius must be 0 voxels or more, got {radius}")
    thick: Tensor = _tube(skeleton != 0, radius)
    return thick


@torch.library.custom_op("imbal::skeletonize", mutates_args=(), device_types="cpu")
def _skeletonize(labels: Tensor) -> Tensor:
    items = labels.flatten(0, 1).numpy()
    skeletons = np.empty(items.shape, items.dtype)

    def fill(i: int) -> None:
        skeletons[i] = numba_kernels.skeletonize(items[i])

    _run.for_each(fill, range(len(items)))
    return torch.from_numpy(skeletons).reshape(labels.shape)


@_skeletonize.register_kernel("cuda")
def _skeletonize_on_gpu(labels: Tensor) -> Tensor:
    kernels = _run.gpu_kernels("skeletonize")
    return _run.through_host(_skeletonize, labels) if kernels is None else kernels.skeletonize(labels)


@_skeletonize.register_fake
def _skeletonize_fake(labels: Tensor) -> Tensor:
    return labels.new_empty(labels.shape)


@torch.library.custom_op("imbal::tube", mutates_args=(), device_types="cpu")
def _tube(skeleton: Tensor, radius: int) -> Tensor:
    items = skeleton.flatten(0, 1).numpy()
    tubes = np.empty(items.shape, np.bool_)

    def fill(i: int) -> None:
        tubes[i] = numba_kernels.tube(items[i], radius)

    _run.for_each(fill, range(len(items)))
    return torch.from_numpy(tubes).reshape(skeleton.shape)


@_tube.register_kernel("cuda")
def _tube_on_gpu(skeleton: Tensor, radius: int) -> Tensor:
    kernels = _run.gpu_kernels("tube")
    return _run.through_host(_tube, skeleton, radius) if kernels is None else kernels.tube(skeleton, radius)


@_tube.register_fake
def _tube_fake(skeleton: Tensor, radius: int) -> Tensor:
    return skeleton.new_empty(skeleton.shape, dtype=torch.bool)
