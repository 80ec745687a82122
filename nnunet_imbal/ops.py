"""Operators on tensors that run as numba kernels: the only place where torch meets numba.

They are registered with torch (namespace ``imbal``), so they work under ``torch.compile`` and autograd. For tensors on
a GPU there are kernels in ``_cuda_backend`` and, where those do not run, torch formulas or a way through the CPU.
"""

import functools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import numba_kernels
from nnunet_imbal.errors import ConfigError

__all__ = ["cell_overlap", "component_cells"]

logger = logging.getLogger(__name__)


def component_cells(mask: Tensor, spacing: Sequence[float] | None = None, connectivity: int | None = None) -> Tensor:
    """Tell for each voxel which lesion is nearest, sample by sample and class by class.

    Args:
        mask: Bool tensor ``(B, C, *S)`` with 2 or 3 spatial axes, one channel per class.
        spacing: Voxel size in mm along the spatial axes, in array order. Default: 1 mm.
        connectivity: 4 or 8 neighbours in 2-D, 6, 18 or 26 in 3-D make one lesion. Default: all (8 or 26).

    Returns:
        int32 ``(B, C, *S)`` on the device of ``mask``: the id 1..K of the nearest connected component, K per sample
        and class; 0 everywhere where the class is absent. Not differentiable.

    Raises:
        ConfigError: ``mask`` has not 2 or 3 spatial axes, ``spacing`` is not one positive number per axis, or the
            dimension has no such ``connectivity``.

    Example:
        >>> mask = torch.tensor([[[[True, False, False, False, True]]]])
        >>> component_cells(mask)[0, 0, 0].tolist()
        [1, 1, 1, 2, 2]
    """
    ndim = mask.ndim - 2
    if ndim not in (2, 3):
        raise ConfigError(f"mask must be (B, C, Y, X) or (B, C, Z, Y, X), got shape {tuple(mask.shape)}")
    steps = [1.0] * ndim if spacing is None else [float(step) for step in spacing]
    if len(steps) != ndim or not all(0 < step < float("inf") for step in steps):
        raise ConfigError(f"spacing must be {ndim} positive numbers (mm per voxel, in array order), got {spacing}")
    neighbours = {2: (8, 4), 3: (26, 18, 6)}[ndim]
    if connectivity is not None and connectivity not in neighbours:
        raise ConfigError(f"connectivity in {ndim}-D must be one of {neighbours}, got {connectivity}")
    cells: Tensor = _component_cells(mask.bool(), steps, connectivity or neighbours[0])
    return cells


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


# ------------------------------------------------------------------------------------------------ component_cells


@torch.library.custom_op("imbal::component_cells", mutates_args=(), device_types="cpu")
def _component_cells(mask: Tensor, spacing: list[float], connectivity: int) -> Tensor:
    items = mask.flatten(0, 1).numpy()
    cells = np.zeros(items.shape, np.int32)

    def fill(i: int) -> None:
        if items[i].any():
            labels, _ = numba_kernels.connected_components(items[i], connectivity)
            cells[i] = numba_kernels.nearest_component(labels, spacing)

    _for_each(fill, range(len(items)))
    return torch.from_numpy(cells).reshape(mask.shape)


@_component_cells.register_kernel("cuda")
def _cells_on_gpu(mask: Tensor, spacing: list[float], connectivity: int) -> Tensor:
    kernels = _gpu_kernels()
    if kernels is None:
        return _cells_through_host(mask, spacing, connectivity)
    return kernels.component_cells(mask, spacing, connectivity)


def _cells_through_host(mask: Tensor, spacing: list[float], connectivity: int) -> Tensor:
    cells: Tensor = _component_cells(mask.cpu(), spacing, connectivity)
    return cells.to(mask.device)


@_component_cells.register_fake
def _cells_fake(mask: Tensor, spacing: list[float], connectivity: int) -> Tensor:
    return mask.new_empty(mask.shape, dtype=torch.int32)


# --------------------------------------------------------------------------------------------------- cell_overlap


@torch.library.custom_op("imbal::cell_overlap", mutates_args=(), device_types="cpu")
def _cell_overlap(probs: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    num_cells = int(cells.max()) if cells.numel() else 0
    lead = probs.shape[:2]
    sums = np.empty((3, lead.numel(), num_cells + 1))
    scores, truths, maps = _items(probs), _items(target), _items(cells)

    def fill(i: int) -> None:
        sums[:, i] = numba_kernels.cell_overlap(scores[i], truths[i], maps[i], num_cells)

    _for_each(fill, range(lead.numel()))
    return torch.from_numpy(sums).to(probs.dtype).reshape(3, *lead, num_cells + 1)


@_cell_overlap.register_kernel("cuda")
def _overlap_on_gpu(probs: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    kernels = _gpu_kernels()
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
    truths, maps = _items(target), _items(cells)
    out = np.empty(maps.shape, grads.dtype)

    def fill(i: int) -> None:
        out[i] = numba_kernels.cell_overlap_backward(grads[:, i], truths[i], maps[i])

    _for_each(fill, range(len(maps)))
    return torch.from_numpy(out).reshape(cells.shape)


@_cell_overlap_backward.register_kernel("cuda")
def _overlap_backward_on_gpu(grad: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    kernels = _gpu_kernels()
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


# -------------------------------------------------------------------------------------------------------- helpers


def _items(tensor: Tensor) -> NDArray[Any]:
    """(B, C, *S) -> numpy (B*C, voxels)."""
    lead = tensor.shape[:2].numel()
    return tensor.detach().reshape(lead, tensor.shape[2:].numel()).numpy()


def _for_each(work: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Do independent work in threads (kernels release the GIL), or here where threads would only be in the way."""
    # numba's dial for threads, not torch's, which nnU-Net turns down to 1 on a GPU. Loader processes are daemons.
    threads = numba.config.NUMBA_NUM_THREADS
    if threads == 1 or multiprocessing.current_process().daemon:
        for number in numbers:
            work(number)
    else:
        list(_thread_pool(os.getpid(), threads).map(work, numbers))


@functools.lru_cache(maxsize=1)
def _thread_pool(pid: int, threads: int) -> ThreadPoolExecutor:
    """One pool per process: the threads of a parent do not exist in its forked child."""
    return ThreadPoolExecutor(threads, thread_name_prefix="imbal")


@functools.cache
def _gpu_kernels() -> ModuleType | None:
    """The kernels for the GPU, or None where they do not run; the reason is said once."""
    try:
        from nnunet_imbal import _cuda_backend  # imports numba's CUDA half, of no use without a GPU

        obstacle = _cuda_backend.find_obstacle()
    except ImportError as error:
        obstacle = str(error)
    if not obstacle:
        return _cuda_backend
    logger.warning(
        "the GPU kernels do not run, so masks are copied to the CPU and back (see docs/gpu.md): %s", obstacle
    )
    return None
