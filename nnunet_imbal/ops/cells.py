"""Which component is nearest to each voxel."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import numba_kernels
from nnunet_imbal.ops import _run
from nnunet_imbal.ops._checks import spatial_axes, valid_connectivity, valid_spacing

__all__ = ["component_cells"]


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
    ndim = spatial_axes(mask)
    steps, neighbours = valid_spacing(spacing, ndim), valid_connectivity(connectivity, ndim)
    cells: Tensor = _component_cells(mask.bool(), steps, neighbours)
    return cells


@torch.library.custom_op("imbal::component_cells", mutates_args=(), device_types="cpu")
def _component_cells(mask: Tensor, spacing: list[float], connectivity: int) -> Tensor:
    items = mask.flatten(0, 1).numpy()
    cells = np.zeros(items.shape, np.int32)

    def fill(i: int) -> None:
        if items[i].any():
            labels, _ = numba_kernels.connected_components(items[i], connectivity)
            cells[i] = numba_kernels.nearest_component(labels, spacing)

    _run.for_each(fill, range(len(items)))
    return torch.from_numpy(cells).reshape(mask.shape)


@_component_cells.register_kernel("cuda")
def _cells_on_gpu(mask: Tensor, spacing: list[float], connectivity: int) -> Tensor:
    kernels = _run.gpu_kernels("component_cells")
    if kernels is None:
        return _run.through_host(_component_cells, mask, spacing, connectivity)
    return kernels.component_cells(mask, spacing, connectivity)


@_component_cells.register_fake
def _cells_fake(mask: Tensor, spacing: list[float], connectivity: int) -> Tensor:
    return mask.new_empty(mask.shape, dtype=torch.int32)
