"""Cross-entropy of each class against all others, exact also where the network is sure and wrong.

float32 on the CPU has a kernel; float64 and the GPU take the formula in torch.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import numba_kernels
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import _run

__all__ = ["one_vs_rest_cross_entropy", "probabilities_behind"]

# The answer counts as sure from here on: 1 - p then loses digits and, near 1, becomes 0.
_SURE = 0.98
_PIECE = 1 << 17  # numbers treated at a time, so that what lies between input and output stays in the cache


def one_vs_rest_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    r"""Ask of each class "this one or any other?" and give the cross-entropy of the answer in each voxel.

    With :math:`p = \mathrm{softmax}(z)`: :math:`e_c = -\log p_c` where class :math:`c` is true, else
    :math:`-\log(1 - p_c)`. The complement comes from the other logits where :math:`1 - p_c` would round to 0, so a
    confident mistake keeps its full cost and gradient.

    Args:
        logits: ``(B, C, *S)``, at least two channels; half precision is raised to float32.
        target: bool ``(B, C, *S)``, or ``(B, C-1, *S)`` without the background of channel 0. Gets no gradient.

    Returns:
        Nats, of the shape of ``target``, at least 0, finite for finite logits. float64 for float64 ``logits``, else
        float32. For the logits of a sigmoid torch's own ``binary_cross_entropy_with_logits`` does the same.

    Raises:
        ConfigError: Shapes do not fit, or the dtypes are not floating point and bool.

    Example:
        >>> logits = torch.tensor([[[[30.0, 0.0]], [[0.0, 0.0]]]])
        >>> one_vs_rest_cross_entropy(logits, torch.tensor([[[[True, True]]]]))
        tensor([[[[30.0000,  0.6931]]]])
    """
    channels = logits.shape[1] if logits.ndim > 2 else 0
    if channels < 2 or target.shape not in (logits.shape, (len(logits), channels - 1, *logits.shape[2:])):
        shapes = tuple(logits.shape), tuple(target.shape)
        raise ConfigError(
            "logits must be (B, C, ...) and target the same or one channel less, got {} and {}".format(*shapes)
        )
    if not logits.is_floating_point() or target.dtype != torch.bool:
        raise ConfigError(f"logits must be floating point and target bool, got {logits.dtype} and {target.dtype}")
    if logits.dtype != torch.float64:
        logits = logits.float()
    errors: Tensor = _cross_entropy(logits, target)
    return errors


def probabilities_behind(errors: Tensor, target: Tensor) -> Tensor:
    """Probabilities from their cross-entropy: ``exp(-errors)`` where ``target`` is true, else 1 less that."""
    probs: Tensor = _Probabilities.apply(errors, target)
    return probs


class _Probabilities(torch.autograd.Function):
    """Undo the logarithm of the cross-entropy; autograd's own graph would keep twice as much memory."""

    @staticmethod
    def forward(errors: Tensor, target: Tensor) -> Tensor:
        wrong = errors.neg().expm1_().neg_()
        return wrong.mul_(torch.where(target, -1.0, 1.0)).add_(target)  # 1 - wrong where the target is true

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        errors, target = ctx.saved_tensors
        return errors.neg().exp_().mul_(grad).mul_(torch.where(target, -1.0, 1.0)), None


@torch.library.custom_op("imbal::one_vs_rest_cross_entropy", mutates_args=())
def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    errors = logits.new_empty(target.shape)
    if _has_kernel(logits):
        _run.for_each_sample(numba_kernels.one_vs_rest_cross_entropy, logits, target, errors)
    else:
        _formula(logits, target, errors)
    return errors


def _has_kernel(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and logits.dtype == torch.float32


def _formula(logits: Tensor, target: Tensor, errors: Tensor) -> None:
    first = logits.shape[1] - target.shape[1]
    for scores, truth, out in _pieces(logits, target, errors):
        probs = torch.softmax(scores, 0)[first:]
        right = torch.where(truth, probs, 1 - probs)
        torch.log(right, out=out).neg_()
        rows, voxels = (right < 1 - _SURE).nonzero(as_tuple=True)
        own, rest = _own_and_rest(scores[:, voxels], rows + first)
        out[rows, voxels] = F.softplus(torch.where(truth[rows, voxels], rest - own, own - rest))


@_cross_entropy.register_fake
def _cross_entropy_fake(logits: Tensor, target: Tensor) -> Tensor:
    return logits.new_empty(target.shape)


@torch.library.custom_op("imbal::one_vs_rest_cross_entropy_backward", mutates_args=())
def _cross_entropy_backward(grad: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if _has_kernel(logits):
        _run.for_each_sample(numba_kernels.one_vs_rest_cross_entropy_backward, grad, logits, target, result)
    else:
        _formula_backward(grad, logits, target, result)
    return result


def _formula_backward(grad: Tensor, logits: Tensor, target: Tensor, result: Tensor) -> None:
    first = logits.shape[1] - target.shape[1]
    for scores, truth, slope, out in _pieces(logits, target, grad, result):
        probs = torch.softmax(scores, 0)
        mine = probs[first:]
        # The slope of e_c is pull_c * (1 - p_c) for z_c and -pull_c * p_k for another z_k.
        pull = torch.where(truth, -1, mine / (1 - mine))
        sure = pull > _SURE / (1 - _SURE)
        pull.masked_fill_(sure, 0).mul_(slope)
        torch.mul(probs, -pull.sum(0, keepdim=True), out=out)
        out[first:] += pull
        rows, voxels = sure.nonzero(as_tuple=True)  # at most one class of a voxel, whose pull may be too big to hold
        push = slope[rows, voxels] * mine[rows, voxels]
        out[:, voxels] -= push * _shares_of_rest(scores[:, voxels], rows + first)
        out[rows + first, voxels] += push


@_cross_entropy_backward.register_fake
def _cross_entropy_backward_fake(grad: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views (channels, n) of the same voxels of each (B, channels, *S); on a GPU whole samples."""
    lines = [tensor.reshape(*tensor.shape[:2], tensor.shape[2:].numel()) for tensor in tensors]
    voxels = lines[0].shape[2]
    step = _PIECE // lines[0].shape[1] + 1 if lines[0].device.type == "cpu" else max(voxels, 1)
    for sample in zip(*lines, strict=True):
        for start in range(0, voxels, step):
            yield tuple(line[:, start : start + step] for line in sample)


def _own_and_rest(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logit of one class of each column (C, n), and the logarithm of the summed exponentials of the others."""
    own = scores.gather(0, rows.unsqueeze(0))
    return own[0], _without(scores, rows).logsumexp(0)


def _shares_of_rest(scores: Tensor, rows: Tensor) -> Tensor:
    """Softmax of each column (C, n) without one of its classes."""
    return torch.softmax(_without(scores, rows), 0)


def _without(scores: Tensor, rows: Tensor) -> Tensor:
    return scores.scatter(0, rows.unsqueeze(0), -torch.inf)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _cross_entropy_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _cross_entropy_backward(grad, *ctx.saved_tensors), None


_cross_entropy.register_autograd(_cross_entropy_gradient, setup_context=_save_for_backward)
