"""Sums over centre lines in which a vessel's calibre counts: what the cbDice loss is made of."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops._checks import spatial_axes, valid_spacing
from nnunet_imbal.ops.soft_skeleton import erosion_depth, soft_skeleton
from nnunet_imbal.ops.thickness import distance

__all__ = ["calibre_sums"]


def calibre_sums(probs: Tensor, target: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Compare the centre lines and calibres of truth and prediction; differentiable with respect to ``probs``.

    A mask has the distance D to its outside in units of the smallest spacing, and on its centre line the radius R = D,
    with the largest M = max(1, max R). In n dimensions, let ``d = min(D, M) / M``, ``r = R / M`` and
    ``i = ((M - R + 1) / M) ** (n - 1)`` on the line, r and i 0 elsewhere, for the truth (t) and for what is predicted
    above one half (p).

    Args:
        probs: Probabilities ``(B, C, *S)``, float32 or float64, with 2 or 3 spatial axes.
        target: Bool tensor of the same shape.
        spacing: Voxel size in mm along the spatial axes, in array order. Default: isotropic.

    Returns:
        ``(4, B, C)``, dtype of ``probs``: the sums over voxels of ``i_p P d_t``; of ``i_p P r_t``, or ``i_p P r_p P``
        where ``r_t`` is 0; of ``i_t d_p P``; of ``i_t r_p P``, or ``i_t r_t`` where ``r_p`` is 0; P being ``probs``.
        Lines and distances are constants for the gradient. Nothing but the arguments is kept for the way back.

    Raises:
        ConfigError: shapes differ, there are not 2 or 3 spatial axes, or ``spacing`` does not fit them.

    Example:
        >>> target = torch.tensor([[[[False, True, True, True, False]]]])
        >>> calibre_sums(target.float(), target)[:, 0, 0].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    steps = valid_spacing(spacing, spatial_axes(probs))
    if probs.shape != target.shape:
        raise ConfigError(f"probs and target must share one shape, got {tuple(probs.shape)} and {tuple(target.shape)}")
    sums: Tensor = _calibre_sums(probs, target.bool(), steps)
    return sums


class _Calibre(NamedTuple):
    """Centre line of one sample, and depth relative to the largest radius: on the line, a relative radius."""

    line: Tensor
    depth: Tensor
    largest: Tensor

    def slimness(self) -> Tensor:
        """Largest where the vessel is thinnest; 0 off the line. A new tensor each time: memory is short here."""
        slimness = (1 - self.depth).add_(1 / self.largest)
        return slimness.pow_(self.line.ndim - 3).mul_(self.line)


def _calibre(mask: Tensor, spacing: list[float]) -> _Calibre:
    line = soft_skeleton(mask.float(), erosion_depth(mask)) > 0
    depth = distance(mask, spacing).div_(min(spacing))
    largest = depth.masked_fill(~line, 0).flatten(2).amax(2).clamp(min=1).view(*mask.shape[:2], *[1] * (mask.ndim - 2))
    return _Calibre(line, torch.minimum(depth, largest).div_(largest), largest)


@torch.library.custom_op("imbal::calibre_sums", mutates_args=())
def _calibre_sums(probs: Tensor, target: Tensor, spacing: list[float]) -> Tensor:
    sums = probs.new_zeros((4, *probs.shape[:2]))
    if probs.numel():
        for b in range(len(probs)):  # one sample at a time: the maps are many
            sums[:, b] = _sums_of_one(probs[b : b + 1], target[b : b + 1], spacing)
    return sums


def _sums_of_one(probs: Tensor, target: Tensor, spacing: list[float]) -> Tensor:
    truth, guess = _calibre(target, spacing), _calibre(probs > 0.5, spacing)
    claimed = guess.slimness() * probs
    wanted = truth.slimness()
    return torch.stack(
        [
            _total(claimed * truth.depth),
            _total(claimed * torch.where(truth.line, truth.depth, guess.depth * probs)),
            _total(wanted * guess.depth * probs),
            _total(wanted * torch.where(guess.line, guess.depth * probs, truth.depth)),
        ]
    )


def _total(values: Tensor) -> Tensor:
    return values.flatten(2).sum(2)[0]


@_calibre_sums.register_fake
def _sums_fake(probs: Tensor, target: Tensor, spacing: list[float]) -> Tensor:
    return probs.new_empty((4, *probs.shape[:2]))


@torch.library.custom_op("imbal::calibre_sums_backward", mutates_args=())
def _calibre_sums_backward(grad: Tensor, probs: Tensor, target: Tensor, spacing: list[float]) -> Tensor:
    out = torch.zeros_like(probs)
    if probs.numel():
        for b in range(len(probs)):
            _fill_gradient(out[b : b + 1], grad[:, b : b + 1], probs[b : b + 1], target[b : b + 1], spacing)
    return out


def _fill_gradient(out: Tensor, grad: Tensor, probs: Tensor, target: Tensor, spacing: list[float]) -> None:
    truth, guess = _calibre(target, spacing), _calibre(probs > 0.5, spacing)
    hits, claims, found, wanted = grad.view(4, *grad.shape[1:], *[1] * (probs.ndim - 2))
    out += (guess.slimness() * hits).mul_(truth.depth)
    out += (guess.slimness() * claims).mul_(torch.where(truth.line, truth.depth, 2 * guess.depth * probs))
    out += (truth.slimness() * found).mul_(guess.depth)
    out += (truth.slimness() * wanted).mul_(guess.depth).mul_(guess.line)


@_calibre_sums_backward.register_fake
def _sums_backward_fake(grad: Tensor, probs: Tensor, target: Tensor, spacing: list[float]) -> Tensor:
    return torch.empty_like(probs)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, list[float]], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.spacing = inputs[2]


def _calibre_sums_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _calibre_sums_backward(grad.contiguous(), *ctx.saved_tensors, ctx.spacing), None, None


_calibre_sums.register_autograd(_calibre_sums_gradient, setup_context=_save_for_backward)
