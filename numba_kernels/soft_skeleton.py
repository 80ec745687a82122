"""Differentiable skeleton of probabilities, as used by the clDice loss, and the way back of its gradient."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._jit import kernel

__all__ = ["soft_skeleton", "soft_skeleton_backward"]

Volume = NDArray[np.float32]

ZERO, ONE = np.float32(0), np.float32(1)


def soft_skeleton(probs: NDArray[Any], iterations: int) -> Volume:
    """Give the ridge line of predicted vessels, so that a loss can ask whether they are connected.

    With ``E[0] = probs`` and ``E[i+1] = erode(E[i])``: ``ridge[i] = max(E[i] - dilate(E[i+1]), 0)``, ``S[0] =
    ridge[0]`` and ``S[i] = S[i-1] + max(ridge[i] - S[i-1] * ridge[i], 0)``; the result is ``S[iterations]``. Erosion
    is the minimum over a voxel and its 4 (2-D) or 6 neighbours, dilation the maximum over the 9 or 27 voxels around
    it. The edge of the array does not erode, so an all-ones volume has no skeleton.

    Args:
        probs: Probabilities ``(Y, X)`` or ``(Z, Y, X)``, float; values outside [0, 1] and NaN are not looked for.
        iterations: Number of erosions, 0 or more: at least the largest radius in voxels, else the skeleton of thick
            vessels is empty.

    Returns:
        float32 of the same shape in [0, 1] for probabilities; 0 or 1 for masks of 0 and 1.

    Raises:
        TypeError: ``probs`` is not float.
        ValueError: ``probs`` is neither 2-D nor 3-D, or ``iterations`` is negative.

    Example:
        >>> vessel = np.zeros((5, 7), np.float32)
        >>> vessel[1:4, :] = 0.5
        >>> soft_skeleton(vessel, iterations=1)[:, 3]
        array([0. , 0. , 0.5, 0. , 0. ], dtype=float32)

    Source:
        Shit et al., "clDice - a novel topology-preserving loss function for tubular structure segmentation", CVPR
        2021, https://arxiv.org/abs/2003.07311.
    """
    volume = _check(probs, iterations)
    if volume.size == 0:
        return np.zeros(probs.shape, np.float32)
    _, skeleton = _advance(volume.copy(), np.zeros_like(volume), iterations + 1)
    return skeleton.reshape(probs.shape)


def soft_skeleton_backward(grad: NDArray[Any], probs: NDArray[Any], iterations: int) -> Volume:
    """Give the gradient of :func:`soft_skeleton` with respect to ``probs``.

    Where several voxels are equally extreme, one of them takes the whole gradient: of the largest the first in
    memory order; of the smallest the middle voxel, else the first in memory order. A maximum with 0 passes nothing
    on at 0. The states on the way are computed again from about ``sqrt(iterations)`` of them that are kept, so memory
    is about ``4 * sqrt(iterations) + 7`` float32 volumes.

    Args:
        grad: Gradient of the skeleton, float of the shape of ``probs``.
        probs: As in :func:`soft_skeleton`.
        iterations: As in :func:`soft_skeleton`.

    Returns:
        Gradient, float32 of the shape of ``probs``.

    Raises:
        TypeError: ``probs`` or ``grad`` is not float.
        ValueError: Shapes differ, ``probs`` is neither 2-D nor 3-D, or ``iterations`` is negative.

    Example:
        >>> probs = np.array([[0.1, 0.9, 0.2]], np.float32)
        >>> soft_skeleton_backward(np.ones_like(probs), probs, iterations=0)
        array([[ 0.,  1., -1.]], dtype=float32)
    """
    if np.shape(grad) != np.shape(probs):
        raise ValueError(f"shapes must agree, got grad {np.shape(grad)}, probs {np.shape(probs)}")
    volume = _check(probs, iterations)
    grad_skeleton = _check(grad, iterations).copy()
    if volume.size == 0:
        return np.zeros(probs.shape, np.float32)
    stride = math.isqrt(iterations) + 1
    starts = range(0, iterations + 1, stride)
    kept = _states(volume, len(starts), stride)
    steps = np.empty((2, stride + 1, *volume.shape), np.float32)
    grad_volume, grad_eroded = np.zeros_like(volume), np.zeros_like(volume)
    for start in reversed(starts):
        count = min(stride, iterations + 1 - start)
        volumes, skeletons = steps[:, : count + 1]
        volumes[0], skeletons[0] = kept.pop()
        for i in range(count):
            _step(volumes[i], skeletons[i], volumes[i + 1], skeletons[i + 1])
        for i in reversed(range(count)):
            grad_eroded, grad_volume = grad_volume, grad_eroded
            _step_back(volumes[i], volumes[i + 1], skeletons[i], grad_skeleton, grad_eroded, grad_volume)
    return grad_volume.reshape(probs.shape)


def _check(probs: NDArray[Any], iterations: int) -> Volume:
    """Return the probabilities as a volume, contiguous and writable."""
    probs = np.asarray(probs)
    if probs.dtype.kind != "f":
        raise TypeError(f"probs and grad must be float, got {probs.dtype}; convert them with astype(np.float32)")
    if probs.ndim not in (2, 3):
        raise ValueError(f"probs must be 2-D or 3-D, got shape {probs.shape}; loop over samples and channels")
    if iterations < 0:
        raise ValueError(f"iterations must be 0 or more, got {iterations}")
    volume = probs[None] if probs.ndim == 2 else probs
    return np.require(volume, np.float32, ["C", "A", "W"])


def _states(volume: Volume, count: int, stride: int) -> list[tuple[Volume, Volume]]:
    """Eroded volumes and skeletons every so many steps, from the start."""
    states = [(volume, np.zeros_like(volume))]
    for _ in range(count - 1):
        eroded, skeleton = states[-1][0].copy(), states[-1][1].copy()
        states.append(_advance(eroded, skeleton, stride))
    return states


def _advance(volume: Volume, skeleton: Volume, steps: int) -> tuple[Volume, Volume]:
    """Erode the volume and add to the skeleton so many times; both arrays are used up."""
    spare = np.empty_like(volume)
    for _ in range(steps):
        _step(volume, skeleton, spare, skeleton)
        volume, spare = spare, volume
    return volume, skeleton


def _step(volume: Volume, skeleton: Volume, eroded: Volume, next_skeleton: Volume) -> None:
    _erode(volume, eroded)
    _add_ridges(volume, eroded, skeleton, next_skeleton)


@kernel
def _erode(volume: Volume, out: Volume) -> None:
    planes, height, _ = volume.shape
    for z in range(planes):
        for y in range(height):
            row = out[z, y]
            row[:] = volume[z, y]
            _lower(row, volume[max(z - 1, 0), y])
            _lower(row, volume[min(z + 1, planes - 1), y])
            _lower(row, volume[z, max(y - 1, 0)])
            _lower(row, volume[z, min(y + 1, height - 1)])
            _lower(row[1:], volume[z, y, :-1])
            _lower(row[:-1], volume[z, y, 1:])


@kernel
def _lower(row: Volume, other: Volume) -> None:
    for x in range(row.size):
        row[x] = min(row[x], other[x])


@kernel
def _raise(row: Volume, other: Volume) -> None:
    for x in range(row.size):
        row[x] = max(row[x], other[x])


@kernel
def _dilate_plane(plane: Volume, lines: Volume, squares: Volume) -> None:
    """Maximum over three voxels along x, and over the 3 x 3 of them in the plane."""
    height = plane.shape[0]
    for y in range(height):
        lines[y] = plane[y]
        _raise(lines[y, 1:], plane[y, :-1])
        _raise(lines[y, :-1], plane[y, 1:])
    for y in range(height):
        squares[y] = lines[y]
        _raise(squares[y], lines[max(y - 1, 0)])
        _raise(squares[y], lines[min(y + 1, height - 1)])


@kernel
def _dilate_around(volume: Volume, z: int, lines: Volume, squares: Volume, opened: Volume) -> None:
    """Dilate plane z of the volume; lines and squares keep what its three planes give, plane k at k % 3.

    Planes are taken in order: only the next one is new.
    """
    planes = volume.shape[0]
    if z == 0:
        _dilate_plane(volume[0], lines[0], squares[0])
    if z + 1 < planes:
        _dilate_plane(volume[z + 1], lines[(z + 1) % 3], squares[(z + 1) % 3])
    below, above = max(z - 1, 0) % 3, min(z + 1, planes - 1) % 3
    for y in range(volume.shape[1]):
        opened[y] = squares[z % 3, y]
        _raise(opened[y], squares[below, y])
        _raise(opened[y], squares[above, y])


@kernel
def _add_ridges(volume: Volume, eroded: Volume, skeleton: Volume, out: Volume) -> None:
    planes, height, width = volume.shape
    lines, squares = np.empty((3, height, width), np.float32), np.empty((3, height, width), np.float32)
    opened = np.empty((height, width), np.float32)
    for z in range(planes):
        _dilate_around(eroded, z, lines, squares, opened)
        for y in range(height):
            _add_row(volume[z, y], opened[y], skeleton[z, y], out[z, y])


@kernel
def _add_row(volume: Volume, opened: Volume, skeleton: Volume, out: Volume) -> None:
    for x in range(volume.size):
        ridge = max(volume[x] - opened[x], ZERO)
        out[x] = skeleton[x] + max(ridge - skeleton[x] * ridge, ZERO)


@kernel
def _step_back(
    volume: Volume, eroded: Volume, skeleton: Volume, grad_skeleton: Volume, grad_eroded: Volume, grad: Volume
) -> None:
    """Take one step back: fill in the gradient of the volume, and turn that of the skeleton into the one before."""
    planes, height, width = volume.shape
    lines, squares = np.empty((3, height, width), np.float32), np.empty((3, height, width), np.float32)
    grad_squares = np.zeros((3, height, width), np.float32)
    opened, rest = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    for z in range(planes):
        _dilate_around(eroded, z, lines, squares, opened)
        for y in range(height):
            _ridge_back(volume[z, y], opened[y], skeleton[z, y], grad_skeleton[z, y], grad[z, y])
            rest[y] = -grad[z, y]
            for k in (max(z - 1, 0), z, min(z + 1, planes - 1)):
                _hand_over(rest[y], opened[y], squares[k % 3, y], grad_squares[k % 3, y])
        if z > 0:
            k = (z - 1) % 3
            _dilate_back(eroded[z - 1], lines[k], squares[k], grad_squares[k], grad_eroded[z - 1])
    k = (planes - 1) % 3
    _dilate_back(eroded[planes - 1], lines[k], squares[k], grad_squares[k], grad_eroded[planes - 1])
    _erode_back(volume, eroded, grad_eroded, grad)


@kernel
def _ridge_back(volume: Volume, opened: Volume, skeleton: Volume, grad_skeleton: Volume, grad: Volume) -> None:
    for x in range(volume.size):
        ridge = volume[x] - opened[x]
        passes = (ridge > 0) & (ridge - skeleton[x] * ridge > 0)
        grad[x] = grad_skeleton[x] * (ONE - skeleton[x]) if passes else ZERO
        grad_skeleton[x] *= ONE - ridge if passes else ONE


@kernel
def _hand_over(rest: Volume, extreme: Volume, candidate: Volume, grad: Volume) -> None:
    """Give the gradient to the candidates that are the extreme; nothing of it is left for those that come later."""
    for x in range(rest.size):
        chosen = candidate[x] == extreme[x]
        grad[x] += rest[x] if chosen else ZERO
        rest[x] = ZERO if chosen else rest[x]


@kernel
def _dilate_back(plane: Volume, lines: Volume, squares: Volume, grad_squares: Volume, grad: Volume) -> None:
    """Hand the gradient of the squares of a plane to its lines and on to its voxels; none is left in the squares."""
    height = plane.shape[0]
    grad_lines = np.zeros_like(plane)
    for y in range(height):
        for j in (max(y - 1, 0), y, min(y + 1, height - 1)):
            _hand_over(grad_squares[y], squares[y], lines[j], grad_lines[j])
    for y in range(height):
        _hand_over(grad_lines[y, 1:], lines[y, 1:], plane[y, :-1], grad[y, :-1])
        _hand_over(grad_lines[y], lines[y], plane[y], grad[y])
        _hand_over(grad_lines[y, :-1], lines[y, :-1], plane[y, 1:], grad[y, 1:])


@kernel
def _erode_back(volume: Volume, eroded: Volume, grad_eroded: Volume, grad: Volume) -> None:
    planes, height, _ = volume.shape
    for z in range(planes):
        for y in range(height):
            rest, smallest, below, above = grad_eroded[z, y], eroded[z, y], max(z - 1, 0), min(z + 1, planes - 1)
            front, back = max(y - 1, 0), min(y + 1, height - 1)
            _hand_over(rest, smallest, volume[z, y], grad[z, y])
            _hand_over(rest, smallest, volume[below, y], grad[below, y])
            _hand_over(rest, smallest, volume[z, front], grad[z, front])
            _hand_over(rest[1:], smallest[1:], volume[z, y, :-1], grad[z, y, :-1])
            _hand_over(rest[:-1], smallest[:-1], volume[z, y, 1:], grad[z, y, 1:])
            _hand_over(rest, smallest, volume[z, back], grad[z, back])
            _hand_over(rest, smallest, volume[above, y], grad[above, y])
