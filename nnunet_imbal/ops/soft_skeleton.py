"""Differentiable ridge lines of probabilities, and how many erosions they need."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool3d, relu

import numba_kernels
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import _run
from nnunet_imbal.ops._checks import spatial_axes

__all__ = ["erosion_depth", "soft_skeleton"]


def soft_skeleton(probs: Tensor, iterations: int | Tensor) -> Tensor:
    """Ridge lines of predicted vessels, channel by channel; differentiable, in memory of a few volumes.

    See :func:`numba_kernels.soft_skeleton` for the formula and for ties. float64 takes a plain chain of poolings that
    keeps every step in memory: it serves numerical checks.

    Args:
        probs: Probabilities ``(B, C, *S)`` with 2 or 3 spatial axes; half precision is raised to float32.
        iterations: Number of erosions, one for all or integers ``(B, C)``, for example from :func:`erosion_depth`. At
            least the largest radius in voxels, else the skeleton of thick vessels is empty.

    Returns:
        ``(B, C, *S)`` in [0, 1], float64 for float64 ``probs``, else float32. A volume without any outside has none.

    Raises:
        ConfigError: ``probs`` is not floating point or has not 2 or 3 spatial axes, or ``iterations`` does not fit.

    Example:
        >>> vessel = torch.zeros(1, 1, 5, 7)
        >>> vessel[:, :, 1:4] = 0.5
        >>> soft_skeleton(vessel, 1)[0, 0, :, 3]
        tensor([0.0000, 0.0000, 0.5000, 0.0000, 0.0000])

    Source:
        Shit et al., "clDice", CVPR 2021, https://arxiv.org/abs/2003.07311.
    """
    spatial_axes(probs)
    if not probs.is_floating_point():
        raise ConfigError(f"probs must be floating point, got {probs.dtype}; convert them with .float()")
    counts = _counts(iterations, probs)
    if probs.dtype == torch.float64:
        return _by_pooling(probs, counts)
    skeleton: Tensor = _soft_skeleton(probs.float(), counts)
    return skeleton


def erosion_depth(mask: Tensor) -> Tensor:
    """How many erosions it takes until nothing is left of each vessel tree: the iterations its skeleton needs.

    Erosion takes away what touches the outside along an axis; the edge of the array does not erode. The depth is the
    largest number of axis-parallel steps from a voxel to the outside.

    Args:
        mask: Bool tensor ``(B, C, *S)`` with 2 or 3 spatial axes.

    Returns:
        int64 ``(B, C)`` on the device of ``mask``, in voxels; 0 for an empty mask, and for one without any outside.

    Raises:
        ConfigError: ``mask`` has not 2 or 3 spatial axes.

    Example:
        >>> erosion_depth(torch.tensor([[[[False, True, True, True, False]]]]))
        tensor([[2]])
    """
    spatial_axes(mask)
    depth: Tensor = _erosion_depth(mask.bool())
    return depth


def _counts(iterations: int | Tensor, probs: Tensor) -> Tensor:
    if isinstance(iterations, Tensor):
        if iterations.shape != probs.shape[:2] or iterations.is_floating_point():
            found = f"{iterations.dtype} of shape {tuple(iterations.shape)}"
            raise ConfigError(f"iterations must be integers of shape {tuple(probs.shape[:2])}, got {found}")
        return iterations.long()
    if iterations < 0:
        raise ConfigError(f"iterations must be 0 or more, got {iterations}")
    return torch.full(probs.shape[:2], iterations, dtype=torch.int64)  # on the CPU: a GPU would be waited for


def _channels(tensor: Tensor) -> list[NDArray[np.float32]]:
    """Views of all channels: to flatten probabilities that lack their background would copy them."""
    return [channel.numpy() for sample in tensor.detach() for channel in sample]


@torch.library.custom_op("imbal::soft_skeleton", mutates_args=(), device_types="cpu")
def _soft_skeleton(probs: Tensor, iterations: Tensor) -> Tensor:
    out = torch.empty_like(probs, memory_format=torch.contiguous_format)
    items, slots, counts = _channels(probs), _channels(out), iterations.flatten().tolist()

    def fill(i: int) -> None:
        slots[i][:] = numba_kernels.soft_skeleton(items[i], counts[i])

    _run.for_each(fill, range(len(items)))
    return out


@_soft_skeleton.register_kernel("cuda")
def _soft_skeleton_on_gpu(probs: Tensor, iterations: Tensor) -> Tensor:
    kernels = _run.gpu_kernels("soft_skeleton")
    if kernels is None:
        return _run.through_host(_soft_skeleton, probs, iterations)
    return kernels.soft_skeleton(probs, iterations)


@_soft_skeleton.register_fake
def _soft_skeleton_fake(probs: Tensor, iterations: Tensor) -> Tensor:
    return torch.empty_like(probs, memory_format=torch.contiguous_format)


@torch.library.custom_op("imbal::soft_skeleton_backward", mutates_args=(), device_types="cpu")
def _soft_skeleton_backward(grad: Tensor, probs: Tensor, iterations: Tensor) -> Tensor:
    out = torch.empty_like(probs, memory_format=torch.contiguous_format)
    grads, items, slots = _channels(grad), _channels(probs), _channels(out)
    counts = iterations.flatten().tolist()

    def fill(i: int) -> None:
        slots[i][:] = numba_kernels.soft_skeleton_backward(grads[i], items[i], counts[i])

    # Each item needs a dozen volumes meanwhile: a quarter at a time costs no more than three times all items.
    few = max(len(items) // 4, 1)
    for first in range(0, len(items), few):
        _run.for_each(fill, range(first, min(first + few, len(items))))
    return out


@_soft_skeleton_backward.register_kernel("cuda")
def _soft_skeleton_backward_on_gpu(grad: Tensor, probs: Tensor, iterations: Tensor) -> Tensor:
    kernels = _run.gpu_kernels("soft_skeleton_backward")
    if kernels is None:
        return _run.through_host(_soft_skeleton_backward, grad, probs, iterations)
    return kernels.soft_skeleton_backward(grad, probs, iterations)


@_soft_skeleton_backward.register_fake
def _soft_skeleton_backward_fake(grad: Tensor, probs: Tensor, iterations: Tensor) -> Tensor:
    return torch.empty_like(probs, memory_format=torch.contiguous_format)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _soft_skeleton_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _soft_skeleton_backward(grad.contiguous(), *ctx.saved_tensors), None


_soft_skeleton.register_autograd(_soft_skeleton_gradient, setup_context=_save_for_backward)


@torch.library.custom_op("imbal::erosion_depth", mutates_args=(), device_types="cpu")
def _erosion_depth(mask: Tensor) -> Tensor:
    items = mask.flatten(0, 1).numpy()
    depths = np.zeros(len(items), np.int64)

    def fill(i: int) -> None:
        depths[i] = _depth(items[i])

    _run.for_each(fill, range(len(items)))
    return torch.from_numpy(depths).reshape(mask.shape[:2])


@_erosion_depth.register_kernel("cuda")
def _erosion_depth_on_gpu(mask: Tensor) -> Tensor:
    """Steps to the outside along one axis after the other, by running minima: the GPU is not waited for."""
    if mask.numel() == 0:
        return mask.new_zeros(mask.shape[:2], dtype=torch.int64)
    far = sum(mask.shape[2:])
    steps = mask.int() * far
    for axis in range(2, mask.ndim):
        place = torch.arange(mask.shape[axis], dtype=torch.int32, device=mask.device)
        place = place.view(-1, *(1,) * (mask.ndim - 1 - axis))
        before = (steps - place).cummin(axis).values + place
        after = (steps + place).flip(axis).cummin(axis).values.flip(axis) - place
        steps = torch.minimum(before, after)
    depth = steps.flatten(2).amax(2)
    return depth.masked_fill(depth >= far, 0).long()


@_erosion_depth.register_fake
def _erosion_depth_fake(mask: Tensor) -> Tensor:
    return mask.new_empty(mask.shape[:2], dtype=torch.int64)


def _depth(mask: NDArray[np.bool_]) -> int:
    if mask.all() or not mask.any():
        return 0
    outside = ~mask[_box(mask)]
    depth = 0
    while not outside.all():
        outside = numba_kernels.tube(outside, 1)
        depth += 1
    return depth


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Bounding box with the layer of outside around it."""
    lines = (mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)) for axis in range(mask.ndim))
    ends = (np.flatnonzero(line)[[0, -1]] for line in lines)
    return tuple(slice(max(int(first) - 1, 0), int(last) + 2) for first, last in ends)


def _by_pooling(probs: Tensor, iterations: Tensor) -> Tensor:
    if probs.numel() == 0:
        return probs.clone()
    counts = iterations.flatten().tolist()
    items = [_skeleton_of_one(item, count) for item, count in zip(probs.flatten(0, 1), counts, strict=True)]
    return torch.stack(items).reshape(probs.shape)


def _skeleton_of_one(probs: Tensor, iterations: int) -> Tensor:
    flat = probs.ndim == 2
    volume = probs.reshape(1, 1, *(1,) * flat, *probs.shape)
    skeleton = torch.zeros_like(volume)
    for _ in range(iterations + 1):
        eroded = _erode(volume)
        ridge = relu(volume - max_pool3d(eroded, 3, 1, 1))
        skeleton = skeleton + relu(ridge - skeleton * ridge)
        volume = eroded
    return skeleton.reshape(probs.shape)


def _erode(volume: Tensor) -> Tensor:
    lines = ((3, 1, 1), (1, 3, 1), (1, 1, 3))
    lowest = [-max_pool3d(-volume, line, 1, tuple(n // 2 for n in line)) for line in lines]
    return torch.minimum(torch.minimum(lowest[0], lowest[1]), lowest[2])
