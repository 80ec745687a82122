"""Number the lesions."""

import numpy as np
import torch
from torch import Tensor

import numba_kernels
from nnunet_imbal.ops import _run
from nnunet_imbal.ops._checks import spatial_axes, valid_connectivity

__all__ = ["component_labels"]


def component_labels(mask: Tensor, connectivity: int | None = None) -> Tensor:
    """Number the lesions, sample by sample and class by class.

    Args:
        mask: Bool tensor ``(B, C, *S)`` with 2 or 3 spatial axes, one channel per class.
        connectivity: 4 or 8 neighbours in 2-D, 6, 18 or 26 in 3-D make one lesion. Default: all (8 or 26).

    Returns:
        int32 ``(B, C, *S)`` on the device of ``mask``: ids 1..K of the connected components, in the order in which
        their first voxels come; 0 outside. K differs by sample and class. Not differentiable.

    Raises:
        ConfigError: ``mask`` has not 2 or 3 spatial axes, or the dimension has no such ``connectivity``.

    Example:
        >>> mask = torch.tensor([[[[True, True, False, True, False]]]])
        >>> component_labels(mask)[0, 0, 0].tolist()
        [1, 1, 0, 2, 0]
    """
    neighbours = valid_connectivity(connectivity, spatial_axes(mask))
    labels: Tensor = _component_labels(mask.bool(), neighbours)
    return labels


@torch.library.custom_op("imbal::component_labels", mutates_args=(), device_types="cpu")
def _component_labels(mask: Tensor, connectivity: int) -> Tensor:
    items = mask.flatten(0, 1).numpy()
    labels = np.empty(items.shape, np.int32)

    def fill(i: int) -> None:
        labels[i], _ = numba_kernels.connected_components(items[i], connectivity)

    _run.for_each(fill, range(len(items)))
    return torch.from_numpy(labels).reshape(mask.shape)


@_component_labels.register_kernel("cuda")
def _labels_on_gpu(mask: Tensor, connectivity: int) -> Tensor:
    kernels = _run.gpu_kernels("component_labels")
    if kernels is None:
        return _run.through_host(_component_labels, mask, connectivity)
    return kernels.component_labels(mask, connectivity)


@_component_labels.register_fake
def _labels_fake(mask: Tensor, connectivity: int) -> Tensor:
    return mask.new_empty(mask.shape, dtype=torch.int32)
