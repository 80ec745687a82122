"""Sums of overlap, probability and truth inside each component or cell."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

import numba_kernels
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import _run

__all__ = ["cell_overlap"]


def cell_overlap(probs: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """Add up overlap, probability and truth inside each cell; differentiable with respect to ``probs``.

    ``out[:, b, c, k] = sum over voxels v with cells[b, c, v] == k of (probs[v] * target[v], probs[v], target[v])``.

    Args:
        probs: Probabilities ``(B, C, *S)``; half precision is raised to float32.
        target: Truth of the same shape, bool or numbers (soft labels are fine). Gets no gradient.
        cells: int32 of the same shape, as :func:`component_cells` returns them.

    Returns:
        ``(3, B, C, K+1)``, K being the largest id in the batch: overlap, probability mass and target mass in voxels.
        Index 0 holds voxels without a cell. float64 for float64 ``probs``, else float32; always added in float64.

    Raises:
        ConfigError: Shapes differ, ``probs`` is not floating point or ``cells`` is not integer.

    Example:
        >>> probs = torch.tensor([[[[0.5, 1.0, 0.25]]]])
        >>> target = torch.tensor([[[[True, True, False]]]])
        >>> cells = torch.tensor([[[[1, 1, 2]]]], dtype=torch.int32)
        >>> cell_overlap(probs, target, cells)[:, 0, 0]
        tensor([[0.0000, 1.5000, 0.0000],
                [0.0000, 1.5000, 0.2500],
                [0.0000, 2.0000, 0.0000]])
    """
    if not probs.shape == target.shape == cells.shape or probs.ndim < 2:
        shapes = [tuple(tensor.shape) for tensor in (probs, target, cells)]
        raise ConfigError("probs, target and cells must share one shape (B, C, ...), got {}, {}, {}".format(*shapes))
    if not probs.is_floating_point() or cells.is_floating_point():
        raise ConfigError(f"probs must be floating point and cells integer, got {probs.dtype} and {cells.dtype}")
    if probs.dtype != torch.float64:
        probs = probs.float()
    truth = target if target.dtype == torch.bool else target.to(probs.dtype)
    sums: Tensor = _cell_overlap(probs, truth.detach(), cells.int())
    return sums


@torch.library.custom_op("imbal::cell_overlap", mutates_args=(), device_types="cpu")
def _cell_overlap(probs: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    num_cells = int(cells.max()) if cells.numel() else 0
    lead = probs.shape[:2]
    sums = np.empty((3, lead.numel(), num_cells + 1))
    scores, truths, maps = _run.items(probs), _run.items(target), _run.items(cells)

    def fill(i: int) -> None:
        sums[:, i] = numba_kernels.cell_overlap(scores[i], truths[i], maps[i], num_cells)

    _run.for_each(fill, range(lead.numel()))
    return torch.from_numpy(sums).to(probs.dtype).reshape(3, *lead, num_cells + 1)


@_cell_overlap.register_kernel("cuda")
def _overlap_on_gpu(probs: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    kernels = _run.gpu_kernels("cell_overlap")
    if kernels is None or torch.are_deterministic_algorithms_enabled():  # the kernel adds in any order
        return _overlap_by_index_add(probs, target, cells)
    return kernels.cell_overlap(probs, target, cells)


def _overlap_by_index_add(probs: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    num_cells = int(cells.max()) if cells.numel() else 0
    lead = probs.shape[:2]
    offsets = torch.arange(lead.numel(), device=cells.device).view(-1, 1) * (num_cells + 1)
    bins = (cells.reshape(lead.numel(), -1) + offsets).flatten()
    values = (probs * target, probs, target)
    sums = torch.zeros(3, lead.numel() * (num_cells + 1), dtype=torch.float64, device=probs.device)
    for row, value in zip(sums, values, strict=True):
        row.index_add_(0, bins, value.double().flatten())
    return sums.to(probs.dtype).reshape(3, *lead, num_cells + 1)


@_cell_overlap.register_fake
def _overlap_fake(probs: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    bins = torch.library.get_ctx().new_dynamic_size()
    return probs.new_empty(3, *probs.shape[:2], bins)


@torch.library.custom_op("imbal::cell_overlap_backward", mutates_args=(), device_types="cpu")
def _cell_overlap_backward(grad: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    grads = grad.flatten(1, 2).numpy()
    truths, maps = _run.items(target), _run.items(cells)
    out = np.empty(maps.shape, grads.dtype)

    def fill(i: int) -> None:
        numba_kernels.cell_overlap_backward(grads[:, i], truths[i], maps[i], out[i])

    _run.for_each(fill, range(len(maps)))
    return torch.from_numpy(out).reshape(cells.shape)


@_cell_overlap_backward.register_kernel("cuda")
def _overlap_backward_on_gpu(grad: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    kernels = _run.gpu_kernels("cell_overlap_backward")
    if kernels is None:
        return _overlap_backward_by_gather(grad, target, cells)
    return kernels.cell_overlap_backward(grad, target, cells)


def _overlap_backward_by_gather(grad: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    bins = cells.flatten(2).long()
    overlap, mass = (row.gather(2, bins).reshape(cells.shape) for row in grad[:2])
    return overlap * target + mass


@_cell_overlap_backward.register_fake
def _overlap_backward_fake(grad: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    return grad.new_empty(cells.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _cell_overlap_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _cell_overlap_backward(grad.contiguous(), *ctx.saved_tensors), None, None


_cell_overlap.register_autograd(_cell_overlap_gradient, setup_context=_save_for_backward)
