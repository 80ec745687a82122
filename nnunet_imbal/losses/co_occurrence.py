"""Which classes may touch, and what happens where they do: the two adjacency terms of AG-TAL-R."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from nnunet_imbal.losses._vessels import box_mean
from nnunet_imbal.ops import surroundings, tube

__all__ = ["co_occurrence_loss", "junction_loss", "junction_mask"]


def co_occurrence_loss(
    probs: Tensor, forbidden: Tensor, *, voxel_weights: Tensor | None = None, smooth: float = 1e-5
) -> Tensor:
    r"""Price of predicting classes next to each other that never touch in anatomy. Looks at no truth.

    With :math:`m_c` the mean of :math:`w\,p_c` over the 3 x 3 (x 3) voxels around, :math:`G = m m^\top` summed over
    voxels and the forbidden pairs :math:`A`,
    :math:`L = \frac{1}{BC} \sum_{b,i} \frac{\sum_j A_{ij} G_{ij}}{\sum m_i + s}`.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities of exclusive classes, background left out, 0 where
            ignored.
        forbidden: ``(C, C)`` from 0 (may touch) to 1 (never), see `nnunet_imbal.adjacency.Adjacency.forbidden`.
        voxel_weights: ``(B, 1, *S)`` of `radius_weights`; None = 1.
        smooth: :math:`s`.

    Returns:
        Range 0 (no forbidden neighbours) to e, or to 1 without weights.

    Note:
        Source: the code released with AG-TAL (arXiv 2604.27357; no readable paper) builds a tensor over pairs and
        voxels and fails on it; the product of two matrices, the mean and the division by the box are ours.

    Example:
        >>> probs = torch.tensor([[[[1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0]]]])
        >>> [round(co_occurrence_loss(probs, pairs).item(), 4) for pairs in (torch.zeros(2, 2), 1 - torch.eye(2))]
        [0.0, 0.1167]
    """
    weights = torch.ones_like(probs[:, :1]) if voxel_weights is None else voxel_weights
    samples = zip(probs.split(1), weights.split(1), strict=True)
    prices = [checkpoint(_prices, *sample, forbidden, smooth, use_reentrant=False) for sample in samples]
    return torch.cat(prices).mean()


def _prices(probs: Tensor, weights: Tensor, forbidden: Tensor, smooth: float) -> Tensor:
    """What each class pays for its neighbours: ``(B, C)``."""
    around = box_mean(probs * weights).flatten(2)
    # fp16 overflows here soon, and autocast would lower a product of matrices to it.
    with torch.autocast(probs.device.type, enabled=False):
        shared = around @ around.transpose(1, 2)
    return (shared * forbidden.to(shared.dtype)).sum(2) / (around.sum(2) + smooth)


def junction_mask(target: Tensor, groups: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Where vessels of different classes meet: contact voxels, two voxels wider, inside the vessels.

    Args:
        target: ``(B, C, *S)`` bool, exclusive classes, background left out.
        groups: classes (1..C) that meet at one junction; only contacts inside a group count. None = all contacts.

    Returns:
        bool ``(B, 1, *S)``.

    Example:
        >>> target = torch.tensor([[[[1, 1, 1, 1, 0, 0]], [[0, 0, 0, 0, 1, 1]]]]) > 0
        >>> junction_mask(target)[0, 0].int()
        tensor([[0, 1, 1, 1, 1, 1]], dtype=torch.int32)
    """
    classes = target.shape[1]
    numbers = torch.arange(1, classes + 1, dtype=torch.int16, device=target.device)
    labels = (target * numbers.view(1, -1, *[1] * (target.ndim - 2))).amax(1, keepdim=True)
    contacts = torch.zeros_like(labels, dtype=torch.bool)
    for group in [range(1, classes + 1)] if groups is None else groups:
        belongs = torch.zeros_like(contacts)
        for number in group:
            belongs |= labels == number
        contacts |= _touching(labels * belongs, classes + 1)
    return tube(contacts) & (labels > 0)


def _touching(labels: Tensor, none: int) -> Tensor:
    """Voxels with another label than 0 around them."""
    # Labels counted from above: the highest of these is the lowest label.
    reverse = (none - labels).masked_fill(labels == 0, 0)
    return (labels > 0) & ((_highest(labels) != labels) | (_highest(reverse) != reverse))


def _highest(values: Tensor) -> Tensor:
    """Maximum over the 3 x 3 (x 3) voxels around, 0 beyond the edge; torch's pooling takes no integers."""
    for axis in range(2, values.ndim):
        before, after = _neighbours(values, axis)
        values = torch.maximum(torch.maximum(before, after), values)
    return values


def junction_loss(probs: Tensor, target: Tensor, junctions: Tensor) -> Tensor:
    r"""Price of edges in the wrong place, and of background, where vessels of different classes meet.

    With :math:`g` the Sobel gradient magnitude and the mask :math:`K` of `junction_mask`,
    :math:`L = 0.1\,[\mathrm{mean}_{b,c,v} (g(pK) - g(yK))^2 + \frac{\sum p_0 K}{\max(\sum K, 1)}]`.

    Args:
        probs: ``(B, C, *S)`` float32 or float64 probabilities of exclusive classes, background left out, 0 where
            ignored.
        target: ``(B, C, *S)`` bool.
        junctions: ``(B, 1, *S)`` bool.

    Returns:
        At least 0; 0 for the truth itself and where there are no junctions. The first part is a mean over all voxels
        of samples with a junction.

    Note:
        Source: the code released with AG-TAL (arXiv 2604.27357; no readable paper), which cuts out the prediction but
        not the truth and divides by the number of junction voxels even if it is 0. Corrected here.

    Example:
        >>> target = torch.tensor([[[[1, 1, 0, 0]], [[0, 0, 1, 1]]]]) > 0
        >>> junction_loss(target.float(), target, junction_mask(target)).item()
        0.0
    """
    around = surroundings(junctions)
    difference = _edges(probs, around) - _edges(target, around)
    affected = junctions.flatten(1).any(1).sum().clamp(min=1)
    error = difference.square().sum() / (target[0].numel() * affected)
    background = torch.where(junctions, 1 - probs.sum(1, keepdim=True), 0).sum() / junctions.sum().clamp(min=1)
    return 0.1 * (error + background)


def _edges(values: Tensor, around: Tensor) -> Tensor:
    """Sobel gradient magnitude ``(N, C)`` at the voxels of `surroundings`, of values that are 0 outside its mask."""
    size, keep = values.shape[2:].numel(), around >= 0
    places = around.clamp(min=0)
    patches = values.flatten(2)[places // size, :, places % size]  # (N, 9 or 27, C)
    patches = torch.where(keep.unsqueeze(-1), patches, 0).to(torch.promote_types(values.dtype, torch.float32))
    squares = [(patches * kernel.to(patches).view(1, -1, 1)).sum(1).square() for kernel in _sobel(values.ndim - 2)]
    return (torch.stack(squares).sum(0) + 1e-8).sqrt()


def _sobel(ndim: int) -> list[Tensor]:
    """One kernel for each axis: difference along it, smoothing across."""
    difference, smooth = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])
    kernels = []
    for axis in range(ndim):
        kernel = torch.ones(())
        for other in range(ndim):
            kernel = torch.outer(kernel.flatten(), difference if other == axis else smooth)
        kernels.append(kernel.flatten())
    return kernels


def _neighbours(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The voxels before and after each voxel along an axis, 0 beyond the edge."""
    padding = [0, 0] * (values.ndim - axis - 1) + [1, 1]
    padded, size = pad(values, padding), values.shape[axis]
    return padded.narrow(axis, 0, size), padded.narrow(axis, 2, size)
