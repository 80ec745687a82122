"""The operators of ``ops`` on an NVIDIA GPU: the only module that knows both torch's memory and numba's launches.

Another compiler for GPUs would replace this module and ``numba_kernels.cuda``; nothing else knows of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numba import cuda
from torch import Tensor

from nnunet_imbal import ops  # noqa: F401 - registers the operators that a trial compares with
from numba_kernels import cuda as kernels
from numba_kernels.cuda.device import THREADS

__all__ = [
    "TorchDevice",
    "cell_overlap",
    "cell_overlap_backward",
    "class_contacts",
    "component_cells",
    "component_labels",
    "distance",
    "find_obstacle",
    "local_thickness",
    "skeletonize",
    "soft_skeleton",
    "soft_skeleton_backward",
    "tube",
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
    with _device_of(mask) as device:
        labels, _ = kernels.connected_components(device, _maps(mask), connectivity)
    return labels.reshape(mask.shape)


def component_cells(mask: Tensor, spacing: list[float], connectivity: int) -> Tensor:
    """Do :func:`nnunet_imbal.ops.component_cells` on the GPU of ``mask``, without waiting for it."""
    if mask.numel() == 0:
        return mask.new_zeros(mask.shape, dtype=torch.int32)
    with _device_of(mask) as device:
        components, _ = kernels.connected_components(device, _maps(mask), connectivity)
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


def class_contacts(labels: Tensor, num_classes: int, connectivity: int) -> Tensor:
    """Do :func:`nnunet_imbal.ops.class_contacts` on the GPU of ``labels``. Waits for it once, to check the labels.

    Raises:
        ValueError: A label lies outside 0..num_classes-1.
    """
    if labels.numel() == 0:
        return labels.new_zeros((labels.shape[0], num_classes, num_classes), dtype=torch.int64)
    lowest, highest = torch.stack(labels.aminmax()).tolist()
    if not 0 <= lowest <= highest < num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {lowest}..{highest}")
    with _device_of(labels) as device:
        contacts: Tensor = kernels.class_contacts(device, _maps(labels), num_classes, connectivity)
    return contacts


def skeletonize(labels: Tensor) -> Tensor:
    """Do :func:`nnunet_imbal.ops.skeletonize` on the GPU of ``labels``, without waiting for it."""
    return _map_by_map(kernels.skeletonize, labels).view(labels.dtype)


def tube(skeleton: Tensor, radius: int) -> Tensor:
    """Do :func:`nnunet_imbal.ops.tube` on the GPU of ``skeleton``, without waiting for it."""
    return _map_by_map(kernels.tube, skeleton, radius).bool()


def distance(mask: Tensor, spacing: list[float]) -> Tensor:
    """Do :func:`nnunet_imbal.ops.distance` on the GPU of ``mask``, without waiting for it."""
    return _map_by_map(kernels.distance, mask, spacing).float()


def local_thickness(mask: Tensor, spacing: list[float]) -> Tensor:
    """Do :func:`nnunet_imbal.ops.local_thickness` on the GPU of ``mask``, without waiting for it."""
    return _map_by_map(kernels.local_thickness, mask, spacing).float()


def soft_skeleton(probs: Tensor, iterations: Tensor) -> Tensor:
    """Do :func:`nnunet_imbal.ops.soft_skeleton` on the GPU of ``probs``.

    Waits once to learn the largest number of iterations, unless ``iterations`` lie on the CPU.
    """
    if probs.numel() == 0:
        return probs.new_zeros(probs.shape)
    return _map_by_map(kernels.soft_skeleton, probs, *_count(iterations, probs.device))


def soft_skeleton_backward(grad: Tensor, probs: Tensor, iterations: Tensor) -> Tensor:
    """Give the gradient of :func:`soft_skeleton` with respect to ``probs``; waits as that does."""
    if probs.numel() == 0:
        return probs.new_zeros(probs.shape)
    return _map_by_map(kernels.soft_skeleton_backward, grad, _maps(probs), *_count(iterations, probs.device))


def _map_by_map(kernel: Callable[..., Tensor], tensor: Tensor, *arguments: Any) -> Tensor:
    """Run a kernel that gives a map for each map of ``(B, C, *S)``."""
    if tensor.numel() == 0:
        return tensor.detach().clone()
    with _device_of(tensor) as device:
        return kernel(device, _maps(tensor), *arguments).reshape(tensor.shape)


def _count(iterations: Tensor, device: torch.device) -> tuple[Tensor, int]:
    """Iterations of each map on the GPU, and the largest number here.

    Raises:
        ValueError: A number is negative.
    """
    lowest, most = torch.stack(iterations.aminmax()).tolist()
    if lowest < 0:
        raise ValueError(f"iterations must be 0 or more, got {lowest}")
    return iterations.flatten().to(device), most


def find_obstacle(operator: str, device: str = "cuda") -> str:
    """Tell why an operator's kernels cannot do their work on this GPU, by trying them on a small volume.

    Args:
        operator: Name of one of the functions of this module.
        device: The GPU.

    Returns:
        What went wrong; empty if they run and give the CPU's answers.
    """
    arguments = _example(operator)
    expected = getattr(torch.ops.imbal, operator)(*arguments)
    try:
        there = [each.to(device) if isinstance(each, Tensor) else each for each in arguments]
        found = globals()[operator](*there).cpu()
    except Exception as error:  # whatever it is, training can go on without kernels on the GPU
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    agree = found.dtype == expected.dtype and torch.allclose(found.double(), expected.double(), 1e-4, 1e-6)
    return "" if agree else f"{operator} runs, but its answers differ from those of the CPU"


def _example(operator: str) -> tuple[Any, ...]:
    """Arguments for an operator: two classes of a small volume, one with thin and one with thick structures."""
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(1, 2, 4, 6, 7, generator=generator)
    mask = probs < torch.tensor([0.1, 0.8]).view(1, 2, 1, 1, 1)
    spacing, iterations = [2.0, 1.0, 1.0], torch.tensor([[1, 2]])
    cells = torch.randint(0, 5, mask.shape, generator=generator, dtype=torch.int32)
    examples: dict[str, tuple[Any, ...]] = {
        "cell_overlap": (probs, mask, cells),
        "cell_overlap_backward": (torch.rand(3, 1, 2, 5, generator=generator), mask, cells),
        "class_contacts": (cells[:, :1], 5, 26),
        "component_cells": (mask, spacing, 26),
        "component_labels": (mask, 26),
        "distance": (mask, spacing),
        "local_thickness": (mask, spacing),
        "skeletonize": (mask,),
        "soft_skeleton": (probs, iterations),
        "soft_skeleton_backward": (probs.flip(2), probs, iterations),
        "tube": (mask, 1),
    }
    return examples[operator]


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


def _maps(tensor: Tensor) -> Tensor:
    """(B, C, *S) -> (B*C, *S), contiguous, bool as bytes."""
    maps = tensor.detach().contiguous().flatten(0, 1)
    return maps.view(torch.uint8) if maps.dtype == torch.bool else maps
