"""Voxels of each component or cell."""

import numpy as np
import torch
from torch import Tensor

import numba_kernels
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import _run

__all__ = ["cell_voxels"]


def cell_voxels(cells: Tensor) -> Tensor:
    """Count the voxels of each component or cell.

    Args:
        cells: Integer ids ``(B, C, *S)``, as :func:`component_cells` returns them.

    Returns:
        int64 ``(B, C, K+1)``, K being the largest id in the batch. Index 0 holds voxels without a cell.

    Raises:
        ConfigError: ``cells`` is not integer or has no sample and channel axes.

    Example:
        >>> cell_voxels(torch.tensor([[[1, 1, 0, 3]]]))
        tensor([[[1, 2, 0, 1]]])
    """
    if cells.is_floating_point() or cells.ndim < 2:
        raise ConfigError(f"cells must be integer (B, C, ...), got {cells.dtype} {tuple(cells.shape)}")
    counts: Tensor = _cell_voxels(cells.int())
    return counts


@torch.library.custom_op("imbal::cell_voxels", mutates_args=())
def _cell_voxels(cells: Tensor) -> Tensor:
    num_cells = int(cells.max()) if cells.numel() else 0
    lead = cells.shape[:2]
    if cells.device.type != "cpu":
        return _voxels_by_index_add(cells, num_cells)
    maps = _run.items(cells)
    counts = np.empty((len(maps), num_cells + 1), np.int64)

    def fill(i: int) -> None:
        counts[i] = numba_kernels.cell_voxels(maps[i], num_cells)

    _run.for_each(fill, range(len(maps)))
    return torch.from_numpy(counts).reshape(*lead, num_cells + 1)


def _voxels_by_index_add(cells: Tensor, num_cells: int) -> Tensor:
    lead = cells.shape[:2]
    offsets = torch.arange(lead.numel(), device=cells.device).view(-1, 1) * (num_cells + 1)
    bins = (cells.reshape(lead.numel(), cells.shape[2:].numel()) + offsets).flatten()
    counts = bins.new_zeros(lead.numel() * (num_cells + 1))
    return counts.index_add_(0, bins, torch.ones_like(bins)).reshape(*lead, num_cells + 1)


@_cell_voxels.register_fake
def _voxels_fake(cells: Tensor) -> Tensor:
    bins = torch.library.get_ctx().new_dynamic_size()
    return cells.new_empty(*cells.shape[:2], bins, dtype=torch.int64)
