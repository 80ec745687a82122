"""Sums of probability and cross-entropy inside each cell, from the cross-entropy alone."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

import numba_kernels
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import _run
from nnunet_imbal.ops.cross_entropy import probabilities_behind
from nnunet_imbal.ops.overlap import cell_overlap

__all__ = ["cell_error_overlap"]


def cell_error_overlap(errors: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """Do :func:`cell_overlap` of the probabilities behind a cross-entropy, and of the cross-entropy itself.

    The probability is ``exp(-errors)`` where ``target`` is true, ``1 - exp(-errors)`` elsewhere. Differentiable with
    respect to ``errors``. float32 on the CPU has a kernel; float64 and the GPU take the formula in torch.

    Args:
        errors: Cross-entropy of each class against the rest, ``(B, C, *S)``, at least 0; half precision is raised to
            float32.
        target: Truth of the same shape, bool.
        cells: int32 of the same shape, as :func:`component_cells` returns them.

    Returns:
        ``(2, 3, B, C, K+1)``: what :func:`cell_overlap` gives for the probabilities and for ``errors``.

    Raises:
        ConfigError: Shapes differ, or the dtypes are not floating point, bool and integer.

    Example:
        >>> errors = -torch.tensor([[[[0.5, 1.0, 0.75]]]]).log()
        >>> target = torch.tensor([[[[True, True, False]]]])
        >>> cells = torch.tensor([[[[1, 1, 2]]]], dtype=torch.int32)
        >>> cell_error_overlap(errors, target, cells)[:, 1, 0, 0]
        tensor([[0.0000, 1.5000, 0.2500],
                [0.0000, 0.6931, 0.2877]])
    """
    if not errors.shape == target.shape == cells.shape or errors.ndim < 2:
        shapes = [tuple(tensor.shape) for tensor in (errors, target, cells)]
        raise ConfigError("errors, target and cells must share one shape (B, C, ...), got {}, {}, {}".format(*shapes))
    if not errors.is_floating_point() or target.dtype != torch.bool or cells.is_floating_point():
        kinds = errors.dtype, target.dtype, cells.dtype
        raise ConfigError("errors must be floating point, target bool and cells integer, got {}, {}, {}".format(*kinds))
    if errors.device.type != "cpu" or errors.dtype == torch.float64:
        errors = errors if errors.dtype == torch.float64 else errors.float()
        probs = probabilities_behind(errors, target)
        return torch.stack([cell_overlap(values, target, cells) for values in (probs, errors)])
    sums: Tensor = _cell_error_overlap(errors.float(), target, cells.int())
    return sums


@torch.library.custom_op("imbal::cell_error_overlap", mutates_args=(), device_types="cpu")
def _cell_error_overlap(errors: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    num_cells = int(cells.max()) if cells.numel() else 0
    lead = errors.shape[:2]
    sums = np.empty((2, 3, lead.numel(), num_cells + 1))
    values, truths, maps = _run.items(errors), _run.items(target), _run.items(cells)

    def fill(i: int) -> None:
        sums[:, :, i] = numba_kernels.cell_error_overlap(values[i], truths[i], maps[i], num_cells)

    _run.for_each(fill, range(lead.numel()))
    return torch.from_numpy(sums).float().reshape(2, 3, *lead, num_cells + 1)


@_cell_error_overlap.register_fake
def _error_overlap_fake(errors: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    bins = torch.library.get_ctx().new_dynamic_size()
    return errors.new_empty(2, 3, *errors.shape[:2], bins)


@torch.library.custom_op("imbal::cell_error_overlap_backward", mutates_args=(), device_types="cpu")
def _cell_error_overlap_backward(grad: Tensor, errors: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    grads = grad.flatten(2, 3).numpy()
    values, truths, maps = _run.items(errors), _run.items(target), _run.items(cells)
    out = np.empty(maps.shape, np.float32)

    def fill(i: int) -> None:
        numba_kernels.cell_error_overlap_backward(grads[:, :, i], values[i], truths[i], maps[i], out[i])

    _run.for_each(fill, range(len(maps)))
    return torch.from_numpy(out).reshape(cells.shape)


@_cell_error_overlap_backward.register_fake
def _error_overlap_backward_fake(grad: Tensor, errors: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    return grad.new_empty(cells.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _error_overlap_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _cell_error_overlap_backward(grad.contiguous(), *ctx.saved_tensors), None, None


_cell_error_overlap.register_autograd(_error_overlap_gradient, setup_context=_save_for_backward)
