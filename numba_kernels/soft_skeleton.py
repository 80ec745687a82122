"""Differentiable skeleton of probabilities, as used by the clDice loss, and the way back of its gradient."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._jit import kernel

__all__ = ["soft_skeleton", "soft_skeleton_backward"]

Volume = NDArray[np.float32]

_KEPT = 10  # iterations whose states are all kept: up to 30 volumes, at most twice what the square root would take

ZERO, ONE = np.float32(0), np.float32(1)
UNIT = np.uint64(1)  # unsigned, as all places in a row: no test for negative ones inside the loops


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
    is about ``4 * sqrt(iterations) + 7`` float32 volumes; up to 10 iterations all are kept, ``2 * iterations + 9``.

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
    stride = max(math.isqrt(iterations), min(iterations, _KEPT)) + 1
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


# Rows are named by plane and number, not cut out as arrays of their own: a view costs as much as treating 100 voxels.


@kernel
def _erode(volume: Volume, out: Volume) -> None:
    planes, height, _ = volume.shape
    for z in range(planes):
        below, above = volume[max(z - 1, 0)], volume[min(z + 1, planes - 1)]
        _erode_plane(volume[z], below, above, out[z], height)


@kernel
def _erode_plane(plane: Volume, below: Volume, above: Volume, out: Volume, height: int) -> None:
    last = np.uint64(plane.shape[1] - 1)
    for row in range(height):
        y, front, back = np.uint64(row), np.uint64(max(row - 1, 0)), np.uint64(min(row + 1, height - 1))
        for x in range(last + UNIT):
            out[y, x] = min(min(plane[y, x], plane[front, x]), min(below[y, x], above[y, x]))
        for x in range(last):
            out[y, x] = min(out[y, x], min(plane[back, x], plane[y, x + UNIT]))
        out[y, last] = min(out[y, last], plane[back, last])
        for x in range(UNIT, last + UNIT):
            out[y, x] = min(out[y, x], plane[y, x - UNIT])


@kernel
def _dilate_plane(plane: Volume, lines: Volume, squares: Volume) -> None:
    """Maximum over three voxels along x, and over the 3 x 3 of them in the plane."""
    height, last = plane.shape[0], np.uint64(plane.shape[1] - 1)
    for row in range(height):
        y = np.uint64(row)
        for x in range(UNIT, last):
            lines[y, x] = max(plane[y, x - UNIT], max(plane[y, x], plane[y, x + UNIT]))
        lines[y, 0] = max(plane[y, 0], plane[y, min(UNIT, last)])
        lines[y, last] = max(plane[y, last], plane[y, last - min(UNIT, last)])
    for row in range(height):
        y, front, back = np.uint64(row), np.uint64(max(row - 1, 0)), np.uint64(min(row + 1, height - 1))
        for x in range(last + UNIT):
            squares[y, x] = max(lines[front, x], max(lines[y, x], lines[back, x]))


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
    _highest(squares[max(z - 1, 0) % 3], squares[z % 3], squares[min(z + 1, planes - 1) % 3], opened)


@kernel
def _highest(a: Volume, b: Volume, c: Volume, out: Volume) -> None:
    for y in range(np.uint64(out.shape[0])):
        for x in range(np.uint64(out.shape[1])):
            out[y, x] = max(a[y, x], max(b[y, x], c[y, x]))


@kernel
def _add_ridges(volume: Volume, eroded: Volume, skeleton: Volume, out: Volume) -> None:
    planes, height, width = volume.shape
    lines, squares = np.empty((3, height, width), np.float32), np.empty((3, height, width), np.float32)
    opened = np.empty((height, width), np.float32)
    for z in range(planes):
        _dilate_around(eroded, z, lines, squares, opened)
        _add_plane(volume[z], opened, skeleton[z], out[z])


@kernel
def _add_plane(volume: Volume, opened: Volume, skeleton: Volume, out: Volume) -> None:
    for y in range(np.uint64(out.shape[0])):
        for x in range(np.uint64(out.shape[1])):
            ridge = max(volume[y, x] - opened[y, x], ZERO)
            out[y, x] = skeleton[y, x] + max(ridge - skeleton[y, x] * ridge, ZERO)


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
        _ridge_back(volume[z], opened, skeleton[z], grad_skeleton[z], grad[z])
        rest[:] = -grad[z]
        for k in (max(z - 1, 0), z, min(z + 1, planes - 1)):
            own, own_grad = squares[k % 3], grad_squares[k % 3]
            for y in range(height):
                _hand_over(rest, opened, y, own, own_grad, y, 0)
        if z > 0:
            k = (z - 1) % 3
            _dilate_back(eroded[z - 1], lines[k], squares[k], grad_squares[k], grad_eroded[z - 1])
    k = (planes - 1) % 3
    _dilate_back(eroded[planes - 1], lines[k], squares[k], grad_squares[k], grad_eroded[planes - 1])
    _erode_back(volume, eroded, grad_eroded, grad)


@kernel
def _ridge_back(volume: Volume, opened: Volume, skeleton: Volume, grad_skeleton: Volume, grad: Volume) -> None:
    for y in range(np.uint64(grad.shape[0])):
        for x in range(np.uint64(grad.shape[1])):
            ridge = volume[y, x] - opened[y, x]
            passes = (ridge > 0) & (ridge - skeleton[y, x] * ridge > 0)
            grad[y, x] = grad_skeleton[y, x] * (ONE - skeleton[y, x]) if passes else ZERO
            grad_skeleton[y, x] *= ONE - ridge if passes else ONE


@kernel
def _hand_over(rest: Volume, extreme: Volume, y: int, candidate: Volume, grad: Volume, j: int, shift: int) -> None:
    """Give the gradient of row y to voxels of row j, moved by ``shift``, where those are the extreme.

    Nothing of it is left for those that come later.
    """
    own, other = np.uint64(y), np.uint64(j)
    to, at = np.uint64(max(shift, 0)), np.uint64(max(-shift, 0))
    for x in range(np.uint64(rest.shape[1] - abs(shift))):
        chosen = candidate[other, x + to] == extreme[own, x + at]
        grad[other, x + to] += rest[own, x + at] if chosen else ZERO
        rest[own, x + at] = ZERO if chosen else rest[own, x + at]


@kernel
def _dilate_back(plane: Volume, lines: Volume, squares: Volume, grad_squares: Volume, grad: Volume) -> None:
    """Hand the gradient of the squares of a plane to its lines and on to its voxels; none is left in the squares."""
    height = plane.shape[0]
    grad_lines = np.zeros_like(plane)
    for y in range(height):
        for j in (max(y - 1, 0), y, min(y + 1, height - 1)):
            _hand_over(grad_squares, squares, y, lines, grad_lines, j, 0)
    for y in range(height):
        for shift in (-1, 0, 1):
            _hand_over(grad_lines, lines, y, plane, grad, y, shift)


@kernel
def _erode_back(volume: Volume, eroded: Volume, grad_eroded: Volume, grad: Volume) -> None:
    """Hand the gradient to the smallest of a voxel and its neighbours: itself, then the others in memory order."""
    planes, height, _ = volume.shape
    for z in range(planes):
        rest, smallest, plane, own = grad_eroded[z], eroded[z], volume[z], grad[z]
        before, after = max(z - 1, 0), min(z + 1, planes - 1)
        below, above, grad_below, grad_above = volume[before], volume[after], grad[before], grad[after]
        for y in range(height):
            _hand_over(rest, smallest, y, plane, own, y, 0)
            _hand_over(rest, smallest, y, below, grad_below, y, 0)
            _hand_over(rest, smallest, y, plane, own, max(y - 1, 0), 0)
            _hand_over(rest, smallest, y, plane, own, y, -1)
            _hand_over(rest, smallest, y, plane, own, y, 1)
            _hand_over(rest, smallest, y, plane, own, min(y + 1, height - 1), 0)
            _hand_over(rest, smallest, y, above, grad_above, y, 0)
