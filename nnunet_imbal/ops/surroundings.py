"""The few voxels around a mask, so that a filter need not visit the whole volume."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, max_pool3d

from nnunet_imbal.ops._checks import spatial_axes

__all__ = ["surroundings"]


def surroundings(mask: Tensor) -> Tensor:
    """List every voxel in or beside a mask with the 3 x 3 (x 3) voxels around it that belong to the mask.

    What a filter of this width says about an image that is 0 outside the mask differs from 0 only there.

    Args:
        mask: Bool tensor ``(B, 1, *S)`` with 2 or 3 spatial axes.

    Returns:
        int64 ``(N, 9)`` or ``(N, 27)``, one row for each of the N voxels in or beside the mask: places in
        ``mask.flatten()`` of the voxels around it in C order, itself in the middle; -1 for those that lie beyond the
        edge or outside the mask. On a GPU, N is known only after waiting for it.

    Raises:
        ConfigError: ``mask`` has not 2 or 3 spatial axes.

    Example:
        >>> surroundings(torch.tensor([[[[True, False, False]]]]))[:, 3:6]
        tensor([[-1,  0, -1],
                [ 0, -1, -1]])
    """
    spatial_axes(mask)
    places: Tensor = _surroundings(mask.bool())
    return places


@torch.library.custom_op("imbal::surroundings", mutates_args=())
def _surroundings(mask: Tensor) -> Tensor:
    shape, device = mask.shape[2:], mask.device
    pool = max_pool2d if len(shape) == 2 else max_pool3d
    near = pool(mask.float(), 3, 1, 1)[:, 0].nonzero()
    steps = torch.cartesian_prod(*[torch.arange(-1, 2, device=device)] * len(shape))
    at = near[:, None, 1:] + steps
    inside = ((at >= 0) & (at < torch.tensor(shape, device=device))).all(-1)
    places = near[:, :1].expand(inside.shape)
    for axis, size in enumerate(shape):
        places = places * size + at[..., axis].clamp(0, size - 1)
    return torch.where(inside & mask.flatten()[places], places, -1)


@_surroundings.register_fake
def _surroundings_fake(mask: Tensor) -> Tensor:
    rows = torch.library.get_ctx().new_dynamic_size()
    return mask.new_empty((rows, 3 ** (mask.ndim - 2)), dtype=torch.int64)
