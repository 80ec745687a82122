"""Which classes touch which."""

import numpy as np
import torch
from torch import Tensor

import numba_kernels
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import _run
from nnunet_imbal.ops._checks import spatial_axes, valid_connectivity

__all__ = ["class_contacts"]


def class_contacts(labels: Tensor, num_classes: int, connectivity: int | None = None) -> Tensor:
    """Count where classes touch, sample by sample: pairs of neighbouring voxels with different labels.

    Args:
        labels: Integer label maps ``(B, 1, *S)`` with 2 or 3 spatial axes, values 0..num_classes-1.
        num_classes: Number of classes C, background included.
        connectivity: 4 or 8 neighbours in 2-D, 6, 18 or 26 in 3-D. Default: all (8 or 26).

    Returns:
        int64 ``(B, C, C)`` on the device of ``labels``: symmetric, pairs of voxels, 0 on the diagonal and where no
        classes meet. Not differentiable.

    Raises:
        ConfigError: ``labels`` is not ``(B, 1, *S)`` or floating point, or the dimension has no such ``connectivity``.
        ValueError: a label lies outside 0..C-1.

    Example:
        >>> class_contacts(torch.tensor([[[[1, 1, 2], [0, 1, 2]]]]), 3, connectivity=4)
        tensor([[[0, 2, 0],
                 [2, 0, 2],
                 [0, 2, 0]]])
    """
    neighbours = valid_connectivity(connectivity, spatial_axes(labels))
    if labels.shape[1] != 1 or labels.is_floating_point():
        raise ConfigError(f"labels must be integers (B, 1, ...), got {labels.dtype} of shape {tuple(labels.shape)}")
    contacts: Tensor = _class_contacts(labels, num_classes, neighbours)
    return contacts


@torch.library.custom_op("imbal::class_contacts", mutates_args=(), device_types="cpu")
def _class_contacts(labels: Tensor, num_classes: int, connectivity: int) -> Tensor:
    items = labels.flatten(0, 1).numpy()
    contacts = np.empty((len(items), num_classes, num_classes), np.int64)

    def fill(i: int) -> None:
        contacts[i] = numba_kernels.class_contacts(items[i], num_classes, connectivity)

    _run.for_each(fill, range(len(items)))
    return torch.from_numpy(contacts)


@_class_contacts.register_kernel("cuda")
def _contacts_on_gpu(labels: Tensor, num_classes: int, connectivity: int) -> Tensor:
    kernels = _run.gpu_kernels("class_contacts")
    if kernels is None:
        return _run.through_host(_class_contacts, labels, num_classes, connectivity)
    return kernels.class_contacts(labels, num_classes, connectivity)


@_class_contacts.register_fake
def _contacts_fake(labels: Tensor, num_classes: int, connectivity: int) -> Tensor:
    return labels.new_empty((labels.shape[0], num_classes, num_classes), dtype=torch.int64)
