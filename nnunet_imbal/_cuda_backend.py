"""The operators of ``ops`` on an NVIDIA GPU: the only module that knows both torch's memory and numba's launches.

Another compiler for GPUs would replace this module and ``numba_kernels.cuda``; nothing else knows of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numba import cuda
from torch import Tensor

import numba_kernels
from numba_kernels import cuda as kernels
from numba_kernels.cuda.device import THREADS

__all__ = [
    "TorchDevice",
    "cell_overlap",
    "cell_overlap_backward",
    "component_cells",
    "component_labels",
    "find_obstacle",
]

_MOST_ITEMS = 65535  # largest second dimension of a grid
_LEAST_BLOCKS = 128  # with fewer blocks numba warns of an idle GPU, and blocks without work cost nothing


class TorchDevice:
    """Memory from torch, and kernels started in the stream in which torch works at this moment.

    Torch hands freed memory out again in the order of that stream, so scratch memory may be dropped while kernels that
    use it still wait.

    Args:
        device: The GPU. It must be torch's current one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = cuda.external_stream(torch.cuda.current_stream(device).cuda_stream)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        """Give memory that holds anything."""
        return torch.empty(shape, dtype=_as_dtype(dtype), device=self.device)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        """Give memory filled with 0."""
        return torch.zeros(shape, dtype=_as_dtype(dtype), device=self.device)

    def cumulate(self, counts: Tensor) -> Tensor:
        """Add up, each element included."""
        return counts.cumsum(0, dtype=torch.int32)

    def launch(self, kernel: Any, blocks: int | tuple[int, int], *arguments: Any, threads: int = THREADS) -> None:
        """Queue a kernel in torch's stream."""
        across, items = blocks if isinstance(blocks, tuple) else (blocks, 1)
        grid = max(across, -(-_LEAST_BLOCKS // items)), min(items, _MOST_ITEMS)
        kernel[grid, threads, self.stream](*(_share(argument) for argument in arguments))


def component_labels(mask: Tensor, connectivity: int) -> Tensor:
    """Do :func:`nnunet_imbal.ops.component_labels` on the GPU of ``mask``, without waiting for it."""
    if mask.numel() == 0:
        return mask.new_zeros(mask.shape, dtype=torch.int32)
    items = mask.contiguous().flatten(0, 1).view(torch.uint8)
    with _device_of(mask) as device:
        labels, _ = kernels.connected_components(device, items, connectivity)
    return labels.reshape(mask.shape)


def component_cells(mask: Tensor, spacing: list[float], connectivity: int) -> Tensor:
    """Do :func:`nnunet_imbal.ops.component_cells` on the GPU of ``mask``, without waiting for it."""
    if mask.numel() == 0:
        return mask.new_zeros(mask.shape, dtype=torch.int32)
    labels = mask.contiguous().flatten(0, 1).view(torch.uint8)
    with _device_of(mask) as device:
        components, _ = kernels.connected_components(device, labels, connectivity)
        cells: Tensor = kernels.nearest_component(device, components, spacing)
    return cells.reshape(mask.shape)


def cell_overlap(probs: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """Do :func:`nnunet_imbal.ops.cell_overlap` on the GPU of ``cells``. Waits for it once, to learn how many there are.

    Raises:
        ValueError: A cell is negative.
    """
    if cells.numel() == 0:
        return probs.new_zeros(3, *probs.shape[:2], 1)
    lowest, num_cells = torch.stack(cells.aminmax()).tolist()
    if lowest < 0:
        raise ValueError(f"cells must lie in 0..{num_cells}, got {lowest}..{num_cells}")
    with _device_of(cells) as device:
        sums: Tensor = kernels.cell_overlap(device, _items(probs), _items(target), _items(cells), num_cells)
    return sums.to(probs.dtype).reshape(3, *probs.shape[:2], num_cells + 1)


def cell_overlap_backward(grad: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """Give the gradient of :func:`cell_overlap` with respect to ``probs``."""
    if cells.numel() == 0:
        return grad.new_zeros(cells.shape)
    grads = grad.detach().contiguous().flatten(1, 2)
    with _device_of(cells) as device:
        gradient: Tensor = kernels.cell_overlap_backward(device, grads, _items(target), _items(cells))
    return gradient.reshape(cells.shape)


def find_obstacle(device: str = "cuda") -> str:
    """Tell why the kernels cannot do their work on this GPU, by trying them on a small volume.

    Returns:
        What went wrong; empty if they run and give the CPU's answers.
    """
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1, 2, 7, 9, 11, generator=generator) < 0.1
    probs = torch.rand(mask.shape, generator=generator)
    try:
        cells = component_cells(mask.to(device), [2.0, 1.0, 1.0], 26)
        sums = cell_overlap(probs.to(device), mask.to(device), cells)
        gradient = cell_overlap_backward(sums, mask.to(device), cells)
        agree = _equal_cpu(probs, mask, cells.cpu(), sums.cpu(), gradient.cpu())
    except Exception as error:  # whatever it is, training can go on without kernels on the GPU
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "" if agree else "they run, but their answers differ from those of the CPU"


def _equal_cpu(probs: Tensor, mask: Tensor, cells: Tensor, sums: Tensor, gradient: Tensor) -> bool:
    for c in range(mask.shape[1]):
        components, count = numba_kernels.connected_components(mask[0, c].numpy(), 26)
        here = numba_kernels.nearest_component(components, (2.0, 1.0, 1.0))
        if not np.array_equal(cells[0, c].numpy(), here):
            return False
        truth = mask[0, c].numpy()
        expected = numba_kernels.cell_overlap(probs[0, c].numpy(), truth, here, count)
        way_back = numba_kernels.cell_overlap_backward(expected.astype(np.float32), truth, here)
        found = sums[:, 0, c, : count + 1].numpy()
        if not (np.allclose(found, expected) and np.allclose(gradient[0, c].numpy(), way_back)):
            return False
    return True


@contextmanager
def _device_of(tensor: Tensor) -> Iterator[TorchDevice]:
    with torch.cuda.device(tensor.device):
        yield TorchDevice(tensor.device)


def _as_dtype(dtype: Any) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return found


def _share(argument: Any) -> Any:
    """Let numba see a tensor's memory. Torch tells no stream with it, so there is nothing to wait for."""
    return cuda.as_cuda_array(argument.detach(), sync=False) if isinstance(argument, Tensor) else argument


def _items(tensor: Tensor) -> Tensor:
    """(B, C, *S) -> (B*C, voxels), contiguous, bool as bytes."""
    lines = tensor.detach().contiguous().reshape(tensor.shape[:2].numel(), -1)
    return lines.view(torch.uint8) if lines.dtype == torch.bool else lines
