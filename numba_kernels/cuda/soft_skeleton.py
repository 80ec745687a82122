"""Differentiable skeleton of probabilities on the GPU, and the way back of its gradient without atomic additions."""

import math
from typing import Any

import numpy as np
from numba import cuda

from numba_kernels.cuda._batches import around, as_volumes, contains, count_rows, in_parts, locate
from numba_kernels.cuda._jit import inlined, kernel
from numba_kernels.cuda.device import Device

__all__ = ["soft_skeleton", "soft_skeleton_backward"]

_FORWARD_BYTES = 3 * 4  # scratch memory per voxel
_LOWEST, ZERO, ONE = np.float32(-math.inf), np.float32(0), np.float32(1)
_FACES = ((1, -1, 0, 0), (2, 0, -1, 0), (3, 0, 0, -1), (4, 0, 0, 1), (5, 0, 1, 0), (6, 1, 0, 0))  # in memory order


def soft_skeleton(device: Device, probs: Any, iterations: Any, most: int) -> Any:
    """Give the ridge line of predicted vessels, as :func:`numba_kernels.soft_skeleton` does for one volume.

    Args:
        device: Where the arrays live.
        probs: Probabilities ``(N, Y, X)`` or ``(N, Z, Y, X)``, float32, contiguous and not empty.
        iterations: Number of erosions of each map, integers ``(N,)``, 0 or more.
        most: The largest of them. The host needs to know it, and nobody here waits for the GPU to tell.

    Returns:
        float32 of the same shape. Equal to the CPU's but for the last digits: a GPU's compiler rounds a product and a
        sum that follows it once instead of twice. Masks of 0 and 1 give equal skeletons.

    Raises:
        ValueError: ``most`` is negative.
    """
    _check(most)
    out = device.empty(tuple(probs.shape), "float32")
    for part in in_parts(probs.shape, _FORWARD_BYTES):
        volumes, skeletons = as_volumes(probs[part]), as_volumes(out[part])
        nothing = device.zeros(tuple(volumes.shape), "float32")
        _advance(device, volumes, nothing, skeletons, iterations[part], range(most + 1))
    return out


def soft_skeleton_backward(device: Device, grad: Any, probs: Any, iterations: Any, most: int) -> Any:
    """Give the gradient of :func:`soft_skeleton` with respect to ``probs``, by the rules of the CPU.

    Every voxel fetches what the voxels around it owe it, so nothing depends on the order of threads. As on the CPU
    the states on the way are computed again from about ``sqrt(most)`` of them that are kept: up to
    ``4 * sqrt(most) + 11`` float32 volumes are in use, for as many items at once as fit into 256 MiB, but for one
    at least.

    Args:
        device: Where the arrays live.
        grad: Gradient of the skeletons, float32 of the shape of ``probs``, contiguous.
        probs: As in :func:`soft_skeleton`.
        iterations: As in :func:`soft_skeleton`.
        most: As in :func:`soft_skeleton`.

    Returns:
        Gradient, float32 of the shape of ``probs``.

    Raises:
        ValueError: ``most`` is negative.
    """
    _check(most)
    out = device.zeros(tuple(probs.shape), "float32")
    for part in in_parts(probs.shape, 4 * (4 * math.isqrt(most) + 11)):
        grads, volumes, result = (as_volumes(array[part]) for array in (grad, probs, out))
        _go_back(device, grads, volumes, result, iterations[part], most)
    return out


def _check(most: int) -> None:
    if most < 0:
        raise ValueError(f"iterations must be 0 or more, got {most}")


def _step(device: Device, before: tuple[Any, Any], after: tuple[Any, Any], iterations: Any, number: int) -> None:
    """Erode the volumes, and add their ridges to the skeletons of maps with so many iterations."""
    (volumes, skeletons), (eroded, next_skeletons) = before, after
    rows = count_rows(volumes)
    device.launch(_erode, rows, volumes, eroded)
    device.launch(_add_ridges, rows, volumes, eroded, skeletons, next_skeletons, iterations, number)


def _advance(device: Device, volumes: Any, skeletons: Any, out: Any, iterations: Any, numbers: range) -> Any:
    """Take several steps. The skeletons go to ``out``, the eroded volumes are returned."""
    spare = [device.empty(tuple(volumes.shape), "float32") for _ in numbers[:2]]
    for number in numbers:
        eroded = spare[number % len(spare)]
        _step(device, (volumes, skeletons), (eroded, out), iterations, number)
        volumes, skeletons = eroded, out
    return volumes


def _go_back(device: Device, grad: Any, probs: Any, out: Any, iterations: Any, most: int) -> None:
    """Take the steps of the forward pass in reverse. ``out`` comes as zeros and ends as the gradient of ``probs``."""
    shape = tuple(probs.shape)
    stride = math.isqrt(most) + 1
    starts = range(0, most + 1, stride)
    kept = _states(device, probs, iterations, starts, stride)
    places = device.empty(shape, "uint8"), device.empty(shape, "uint8")
    grad_skeletons = device.empty(shape, "float32")
    grads = [out, device.zeros(shape, "float32")]  # the last step writes to the first of them
    for start in reversed(starts):
        numbers = range(start, min(start + stride, most + 1))
        states = _trace(device, kept.pop(), iterations, numbers)
        for number in reversed(numbers):
            (volumes, skeletons), eroded = states[number - start], states[number - start + 1][0]
            arrays = volumes, eroded, skeletons, grad, grad_skeletons, iterations, number
            _step_back(device, arrays, places, grads[(number + 1) % 2], grads[number % 2])
            grad = grad_skeletons


def _states(device: Device, probs: Any, iterations: Any, starts: range, stride: int) -> list[tuple[Any, Any]]:
    """Eroded volumes and skeletons before some of the steps."""
    states = [(probs, device.zeros(tuple(probs.shape), "float32"))]
    for start in starts[:-1]:
        skeletons = device.empty(tuple(probs.shape), "float32")
        eroded = _advance(device, *states[-1], skeletons, iterations, range(start, start + stride))
        states.append((eroded, skeletons))
    return states


def _trace(device: Device, state: tuple[Any, Any], iterations: Any, numbers: range) -> list[tuple[Any, Any]]:
    """Eroded volumes and skeletons before each of the steps and after the last."""
    states, shape = [state], tuple(state[0].shape)
    for number in numbers:
        states.append((device.empty(shape, "float32"), device.empty(shape, "float32")))
        _step(device, states[-2], states[-1], iterations, number)
    return states


def _step_back(device: Device, arrays: tuple[Any, ...], places: tuple[Any, Any], grad_eroded: Any, grad: Any) -> None:
    """Fill in the gradient of the volumes, and turn that of the skeletons into the one before."""
    rows = count_rows(grad)
    device.launch(_ridge_back, rows, *arrays, grad, *places)
    device.launch(_dilate_back, rows, grad, places[0], grad_eroded)
    device.launch(_erode_back, rows, grad_eroded, places[1], grad)


@kernel
def _erode(volumes: Any, eroded: Any) -> None:
    items, planes, height, width = volumes.shape
    for row in range(cuda.blockIdx.x, items * planes * height, cuda.gridDim.x):
        item, z, y = locate(row, planes, height)
        for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            eroded[item, z, y, x], _ = _find_smallest(volumes[item], z, y, x)


@kernel
def _add_ridges(volumes: Any, eroded: Any, skeletons: Any, out: Any, iterations: Any, number: int) -> None:
    items, planes, height, width = volumes.shape
    for row in range(cuda.blockIdx.x, items * planes * height, cuda.gridDim.x):
        item, z, y = locate(row, planes, height)
        for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            skeleton = skeletons[item, z, y, x]
            if number <= iterations[item]:
                opened, _ = _find_largest(eroded[item], z, y, x)
                ridge = _positive(volumes[item, z, y, x] - opened)
                skeleton += _positive(ridge - skeleton * ridge)
            out[item, z, y, x] = skeleton


@inlined
def _positive(number: Any) -> Any:
    return number if number > ZERO else ZERO


@inlined
def _find_smallest(volume: Any, z: int, y: int, x: int) -> tuple[Any, int]:
    """Minimum over a voxel and its six neighbours, and who has it: 0 is the voxel itself, the rest see ``_FACES``."""
    smallest, place = volume[z, y, x], 0
    for k, dz, dy, dx in _FACES:
        if contains(volume, z + dz, y + dy, x + dx) and volume[z + dz, y + dy, x + dx] < smallest:
            smallest, place = volume[z + dz, y + dy, x + dx], k
    return smallest, place


@inlined
def _find_largest(volume: Any, z: int, y: int, x: int) -> tuple[Any, int]:
    """Maximum over the voxels around one, itself included, and which of the 27 places in memory order has it first."""
    planes, height, width = volume.shape
    largest, place = _LOWEST, 13
    (first_z, end_z), (first_y, end_y), (first_x, end_x) = around(z, planes), around(y, height), around(x, width)
    for k in range(first_z, end_z):
        for j in range(first_y, end_y):
            for i in range(first_x, end_x):
                if volume[k, j, i] > largest:
                    largest, place = volume[k, j, i], _place(k - z, j - y, i - x)
    return largest, place


@inlined
def _place(dz: int, dy: int, dx: int) -> int:
    return 13 + 9 * dz + 3 * dy + dx


@kernel
def _ridge_back(
    volumes: Any,
    eroded: Any,
    skeletons: Any,
    grad_skeletons: Any,
    new_grad_skeletons: Any,
    iterations: Any,
    number: int,
    grad: Any,
    largest: Any,
    smallest: Any,
) -> None:
    """Gradient of the volume as far as it comes straight from the ridges, and who takes the rest of it."""
    items, planes, height, width = volumes.shape
    for row in range(cuda.blockIdx.x, items * planes * height, cuda.gridDim.x):
        item, z, y = locate(row, planes, height)
        for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            opened, largest[item, z, y, x] = _find_largest(eroded[item], z, y, x)
            _, smallest[item, z, y, x] = _find_smallest(volumes[item], z, y, x)
            ridge, skeleton = volumes[item, z, y, x] - opened, skeletons[item, z, y, x]
            passes = number <= iterations[item] and ridge > ZERO and ridge - skeleton * ridge > ZERO
            given = grad_skeletons[item, z, y, x]
            grad[item, z, y, x] = given * (ONE - skeleton) if passes else ZERO
            new_grad_skeletons[item, z, y, x] = given * (ONE - ridge) if passes else given


@kernel
def _dilate_back(grad: Any, largest: Any, grad_eroded: Any) -> None:
    """Take the gradient of every voxel around that found its maximum here. The dilated volume was subtracted."""
    items, planes, height, width = grad.shape
    for row in range(cuda.blockIdx.x, items * planes * height, cuda.gridDim.x):
        item, z, y = locate(row, planes, height)
        for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            grad_eroded[item, z, y, x] -= _owed_by_largest(grad[item], largest[item], z, y, x)


@inlined
def _owed_by_largest(grad: Any, largest: Any, z: int, y: int, x: int) -> Any:
    planes, height, width = grad.shape
    total = ZERO
    (first_z, end_z), (first_y, end_y), (first_x, end_x) = around(z, planes), around(y, height), around(x, width)
    for k in range(first_z, end_z):
        for j in range(first_y, end_y):
            for i in range(first_x, end_x):
                if largest[k, j, i] == _place(z - k, y - j, x - i):
                    total += grad[k, j, i]
    return total


@kernel
def _erode_back(grad_eroded: Any, smallest: Any, grad: Any) -> None:
    """Take the gradient of every voxel around that found its minimum here."""
    items, planes, height, width = grad.shape
    for row in range(cuda.blockIdx.x, items * planes * height, cuda.gridDim.x):
        item, z, y = locate(row, planes, height)
        for x in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            total = grad[item, z, y, x]
            if smallest[item, z, y, x] == 0:
                total += grad_eroded[item, z, y, x]
            for place, dz, dy, dx in _FACES:
                if contains(grad[item], z - dz, y - dy, x - dx) and smallest[item, z - dz, y - dy, x - dx] == place:
                    total += grad_eroded[item, z - dz, y - dy, x - dx]
            grad[item, z, y, x] = total
