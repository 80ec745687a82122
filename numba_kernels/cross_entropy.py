"""Cross-entropy of each class against all others from logits, block by block in the cache, and its gradient."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._elementary import exp32, log32
from numba_kernels._jit import kernel

__all__ = ["one_vs_rest_cross_entropy", "one_vs_rest_cross_entropy_backward"]

Line = NDArray[np.float32]  # (voxels,)
Lines = NDArray[np.float32]  # (channels, voxels)

_BLOCK = 512  # voxels
_SURE = np.float32(0.98)  # from here on 1 - p loses digits; such a mistake is computed one by one
ZERO, ONE = np.float32(0), np.float32(1)


def one_vs_rest_cross_entropy(
    logits: NDArray[np.float32], target: NDArray[np.bool_], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Ask of each class "this one or any other?" and give the cross-entropy of the answer in each voxel.

    With ``p = softmax(logits)``: ``-log(p[c])`` where class ``c`` is true, ``-log(1 - p[c])`` elsewhere; a confident
    mistake keeps its full cost, however confident it is.

    Args:
        logits: float32 ``(C, ...)`` of one sample, at least two channels.
        target: bool ``(C, ...)``, or ``(C-1, ...)`` without the background of channel 0.
        out: Array for the result: contiguous float32 of the shape of ``target``. Default: a new one.

    Returns:
        Nats, at least 0, finite for finite logits; float32 of the shape of ``target``.

    Raises:
        TypeError: ``logits`` is not float32 or ``target`` not bool.
        ValueError: Shapes do not fit, or ``out`` is not such an array.

    Example:
        >>> logits = np.array([[30, 0], [0, 0]], np.float32)
        >>> one_vs_rest_cross_entropy(logits, np.array([[True, True]])).round(4)
        array([[30.    ,  0.6931]], dtype=float32)
    """
    scores, truth = _lines(logits, target)
    out = _place(out, target.shape)
    _cross_entropy(scores, truth, out.reshape(truth.shape))
    return out


def one_vs_rest_cross_entropy_backward(
    grad: NDArray[np.float32],
    logits: NDArray[np.float32],
    target: NDArray[np.bool_],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Give the gradient of :func:`one_vs_rest_cross_entropy` with respect to the logits.

    Args:
        grad: Gradient of the cross-entropy, float32 of the shape of ``target``.
        logits: As in :func:`one_vs_rest_cross_entropy`.
        target: As in :func:`one_vs_rest_cross_entropy`.
        out: Array for the result: contiguous float32 of the shape of ``logits``. Default: a new one.

    Returns:
        Gradient, float32 of the shape of ``logits``; over the channels of a voxel it adds up to 0.

    Raises:
        TypeError: ``grad`` or ``logits`` is not float32 or ``target`` not bool.
        ValueError: Shapes do not fit, or ``out`` is not such an array.

    Example:
        >>> logits, target = np.zeros((2, 1), np.float32), np.array([[True]])
        >>> one_vs_rest_cross_entropy_backward(np.ones((1, 1), np.float32), logits, target)
        array([[ 0.5],
               [-0.5]], dtype=float32)
    """
    scores, truth = _lines(logits, target)
    if grad.shape != target.shape or grad.dtype != np.float32:
        raise ValueError(f"grad must be float32 {target.shape}, got {grad.dtype} {grad.shape}")
    out = _place(out, logits.shape)
    slopes = np.require(grad, requirements=["C", "A", "W"]).reshape(truth.shape)
    _gradient(slopes, scores, truth, out.reshape(scores.shape))
    return out


def _lines(logits: NDArray[Any], target: NDArray[Any]) -> tuple[Lines, NDArray[np.uint8]]:
    """(channels, voxels) of both, contiguous and writable (numba compiles read-only arrays separately)."""
    if logits.dtype != np.float32 or target.dtype != np.bool_:
        raise TypeError(f"logits must be float32 and target bool, got {logits.dtype} and {target.dtype}")
    fits = logits.shape[1:] == target.shape[1:] and 0 <= len(logits) - len(target) <= 1
    if logits.ndim < 2 or len(logits) < 2 or not fits:
        raise ValueError(
            f"logits must be (C, ...) and target the same or one channel less, got {logits.shape} and {target.shape}"
        )
    voxels = math.prod(logits.shape[1:])
    lines = (np.require(a, requirements=["C", "A", "W"]).reshape(len(a), voxels) for a in (logits, target))
    scores, truth = lines
    return scores, truth.view(np.uint8)


def _place(out: NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.carray:
        raise ValueError(f"out must be contiguous float32 {shape}, got {out.dtype} {out.shape}")
    return out


@kernel
def _cross_entropy(logits: Lines, target: NDArray[np.uint8], errors: Lines) -> None:
    first = len(logits) - len(target)
    exps, top, total = _buffers(len(logits))
    for start in range(0, logits.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, logits.shape[1]))
        _exponentials(logits, block, exps, top, total)
        for c in range(len(target)):
            truth, scores, out = target[c, block], logits[first + c, block], errors[c, block]
            if _errors_of_class(scores, truth, exps[first + c], top, total, out):
                _cost_of_mistakes(logits[:, block], first + c, truth, exps[first + c], total, out)


@kernel
def _buffers(channels: int) -> tuple[Lines, Line, Line]:
    """Exponentials of a block, the largest logit and the sum of the exponentials of each voxel."""
    return np.empty((channels, _BLOCK), np.float32), np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)


@kernel
def _exponentials(logits: Lines, block: slice, exps: Lines, top: Line, total: Line) -> None:
    """Softmax but for its division."""
    # Rows are cut out of the whole: only of such slices does numba know that they have no gaps, which vectors need.
    top[: block.stop - block.start] = logits[0, block]
    for c in range(1, len(logits)):
        scores = logits[c, block]
        for i in range(scores.size):
            top[i] = scores[i] if scores[i] > top[i] else top[i]
    total[:] = 0
    for c in range(len(logits)):
        scores, powers = logits[c, block], exps[c]
        for i in range(scores.size):
            power = exp32(scores[i] - top[i])
            powers[i] = power
            total[i] += power


@kernel
def _errors_of_class(scores: Line, truth: NDArray[np.uint8], exps: Line, top: Line, total: Line, out: Line) -> bool:
    """Cross-entropy of one class; tells whether sure mistakes are among them, which this leaves undone."""
    mistakes = np.int32(0)
    for i in range(scores.size):
        mine = truth[i] != 0
        sure = exps[i] > _SURE * total[i]
        mistakes |= np.int32(sure and not mine)
        rest = ONE if mine or sure else total[i] - exps[i]
        out[i] = log32(np.divide(total[i], rest)) + (top[i] - scores[i] if mine else ZERO)
    return mistakes != 0


@kernel
def _cost_of_mistakes(scores: Lines, c: int, truth: NDArray[np.uint8], exps: Line, total: Line, out: Line) -> None:
    for i in range(truth.size):
        if truth[i] == 0 and exps[i] > _SURE * total[i]:
            best, rest = _others(scores, c, i)
            lead = scores[c, i] - best - math.log(rest)
            out[i] = lead + math.log1p(math.exp(-lead))


@kernel
def _others(scores: Lines, c: int, i: int) -> tuple[float, float]:
    """The largest logit but that of class c, and the sum of the exponentials beside it."""
    best = -np.inf
    for k in range(len(scores)):
        if k != c and scores[k, i] > best:
            best = np.float64(scores[k, i])
    rest = 0.0
    for k in range(len(scores)):
        if k != c:
            rest += math.exp(scores[k, i] - best)
    return best, rest


@kernel
def _gradient(grad: Lines, logits: Lines, target: NDArray[np.uint8], out: Lines) -> None:
    """The slope of e_c is pull_c * (1 - p_c) for z_c and -pull_c * p_k for another z_k."""
    first = len(logits) - len(target)
    exps, pulled, total = _buffers(len(logits))
    for start in range(0, logits.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, logits.shape[1]))
        _exponentials(logits, block, exps, pulled, total)
        pulled[:] = 0
        out[:first, block] = 0
        mistakes = False
        for c in range(len(target)):
            pull = out[first + c, block]
            mistakes |= _pull_of_class(grad[c, block], target[c, block], exps[first + c], total, pull)
            for i in range(pull.size):
                pulled[i] += pull[i]
        _push_all(exps, total, pulled, out, block)
        if mistakes:
            _slopes_of_mistakes(grad[:, block], logits[:, block], target[:, block], exps, total, out[:, block])


@kernel
def _pull_of_class(grad: Line, truth: NDArray[np.uint8], exps: Line, total: Line, pull: Line) -> bool:
    """Pull of one class times its gradient; tells whether sure mistakes are among them, which get 0 here."""
    mistakes = np.int32(0)
    for i in range(grad.size):
        mine = truth[i] != 0
        sure = exps[i] > _SURE * total[i]
        mistakes |= np.int32(sure and not mine)
        odds = np.divide(ZERO if sure else exps[i], ONE if sure else total[i] - exps[i])
        pull[i] = grad[i] * (-ONE if mine else odds)
    return mistakes != 0


@kernel
def _push_all(exps: Lines, total: Line, pulled: Line, out: Lines, block: slice) -> None:
    """Take from each class its probability times what all were pulled."""
    for i in range(block.stop - block.start):
        pulled[i] = np.divide(pulled[i], total[i])
    for c in range(len(out)):
        row, powers = out[c, block], exps[c]
        for i in range(row.size):
            row[i] -= pulled[i] * powers[i]


@kernel
def _slopes_of_mistakes(
    grad: Lines, scores: Lines, target: NDArray[np.uint8], exps: Lines, total: Line, slopes: Lines
) -> None:
    """At most one class of a voxel: p of the slope goes to its logit, -p to the others by their softmax."""
    first = len(scores) - len(target)
    for c in range(len(target)):
        for i in range(target.shape[1]):
            if target[c, i] == 0 and exps[first + c, i] > _SURE * total[i]:
                push = grad[c, i] * exps[first + c, i] / total[i]
                best, rest = _others(scores, first + c, i)
                for k in range(len(scores)):
                    share = 1.0 if k == first + c else -math.exp(scores[k, i] - best) / rest
                    slopes[k, i] += push * share
