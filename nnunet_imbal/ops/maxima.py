"""The highest value inside each component."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

import numba_kernels
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import _run

__all__ = ["component_max"]


def component_max(values: Tensor, labels: Tensor) -> Tensor:
    """Find the highest value inside each lesion; its gradient goes to the one voxel where it stands.

    ``out[b, c, k] = max over voxels v with labels[b, c, v] == k of values[b, c, v]``.

    Args:
        values: ``(B, C, *S)``, for example probabilities; half precision is raised to float32.
        labels: int32 of the same shape, as :func:`component_labels` returns them.

    Returns:
        ``(B, C, K+1)``, K being the largest id in the batch; index 0 holds voxels without a component, ids without a
        voxel give -inf. float64 for float64 ``values``, else float32. Of equal voxels the first in memory order counts;
        NaN counts as highest.

    Raises:
        ConfigError: Shapes differ, ``values`` is not floating point or ``labels`` is not integer.

    Example:
        >>> values = torch.tensor([[[[0.5, 1.0, 0.25]]]])
        >>> labels = torch.tensor([[[[1, 1, 2]]]], dtype=torch.int32)
        >>> component_max(values, labels)[0, 0]
        tensor([  -inf, 1.0000, 0.2500])
    """
    if values.shape != labels.shape or values.ndim < 2:
        shapes = tuple(values.shape), tuple(labels.shape)
        raise ConfigError("values and labels must share one shape (B, C, ...), got {} and {}".format(*shapes))
    if not values.is_floating_point() or labels.is_floating_point():
        raise ConfigError(f"values must be floating point and labels integer, got {values.dtype} and {labels.dtype}")
    if values.dtype != torch.float64:
        values = values.float()
    maxima: Tensor = _component_max(values, labels.int())[0]
    return maxima


@torch.library.custom_op("imbal::component_max", mutates_args=(), device_types="cpu")
def _component_max(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    num_components = int(labels.max()) if labels.numel() else 0
    lead = values.shape[:2]
    numbers, maps = _run.items(values), _run.items(labels)
    maxima = np.empty((len(maps), num_components + 1), numbers.dtype)
    places = np.empty(maxima.shape, np.int64)

    def fill(i: int) -> None:
        maxima[i], places[i] = numba_kernels.component_max(numbers[i], maps[i], num_components)

    _run.for_each(fill, range(len(maps)))
    shape = (*lead, num_components + 1)
    return torch.from_numpy(maxima).reshape(shape), torch.from_numpy(places).reshape(shape)


@_component_max.register_kernel("cuda")
def _max_by_scatter(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    lead, voxels = values.shape[:2], values.shape[2:].numel()
    shape = (lead.numel(), int(labels.max()) + 1 if labels.numel() else 1)
    numbers, bins = values.reshape(shape[0], voxels), labels.reshape(shape[0], voxels).long()
    maxima = numbers.new_full(shape, float("-inf")).scatter_reduce(1, bins, numbers, "amax")
    highest = (numbers == maxima.gather(1, bins)) | numbers.isnan()
    order = torch.arange(voxels, device=bins.device).where(highest, voxels)
    places = bins.new_full(shape, voxels).scatter_reduce(1, bins, order, "amin")
    places = places.masked_fill(places == voxels, -1)
    return maxima.reshape(*lead, -1), places.reshape(*lead, -1)


@_component_max.register_fake
def _max_fake(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    shape = (*values.shape[:2], torch.library.get_ctx().new_dynamic_size())
    return values.new_empty(shape), values.new_empty(shape, dtype=torch.int64)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.shape = inputs[0].shape


def _max_gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
    (places,) = ctx.saved_tensors
    items, voxels = ctx.shape[:2].numel(), ctx.shape[2:].numel()
    exists = places >= 0
    starts = torch.arange(items, device=places.device).view(*ctx.shape[:2], 1) * voxels
    positions = (places.clamp(min=0) + starts).flatten()
    line = grad.new_zeros(items * voxels)
    # One dimension, because only there torch promises a fixed order of sums on a GPU.
    line = line.scatter_add(0, positions, torch.where(exists, grad, 0).flatten()) if voxels else line
    return line.reshape(ctx.shape), None


_component_max.register_autograd(_max_gradient, setup_context=_save_for_backward)
