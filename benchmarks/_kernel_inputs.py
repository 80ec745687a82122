"""Volumes for the kernel benchmark, made from seeds: what radiology gives, and the worst cases."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["blobs", "lesions", "noise", "organs", "vessels"]

Mask = NDArray[np.uint8]


def vessels(n: int, seed: int = 0) -> Mask:
    """Three random walks that branch, thinner with every branch: about 2 % of the volume."""
    rng = np.random.default_rng(seed)
    distance_to = np.ones((n, n, n), bool)
    radii = np.zeros((n, n, n), np.float32)
    branches = [(rng.uniform(0.3, 0.7, 3) * n * (0, 1, 1), np.array([1.0, 0, 0]), n / 25, 0) for _ in range(3)]
    while branches:
        place, direction, radius, depth = branches.pop()
        for _ in range(int(n * 0.3 * 0.85**depth)):
            direction = direction + rng.normal(0, 0.1, 3)
            direction /= np.linalg.norm(direction)
            place = place + direction
            voxel = tuple(np.round(place).astype(int))
            if not all(0 <= v < n for v in voxel):
                break
            distance_to[voxel], radii[voxel] = False, max(radii[voxel], radius)
        else:
            if depth < 6:
                branches += [(place, direction + rng.normal(0, 0.6, 3), max(radius * 0.75, 1), depth + 1)] * 2
    distance, nearest = ndimage.distance_transform_edt(distance_to, return_indices=True)
    return (distance <= radii[tuple(nearest)]).astype(np.uint8)


def lesions(n: int, count: int = 200, seed: int = 1) -> Mask:
    """Ellipsoids of log-normal size: about 1 % of the volume."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((n, n, n), np.uint8)
    for _ in range(count):
        centre = rng.uniform(0, n, 3)
        radius = np.clip(rng.lognormal(np.log(n / 50), 0.45, 3), 1, n / 12)
        box = tuple(slice(max(int(c - r), 0), int(c + r) + 2) for c, r in zip(centre, radius, strict=True))
        grid = np.ogrid[box]
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) <= 1
        mask[box] |= inside[: mask[box].shape[0], : mask[box].shape[1], : mask[box].shape[2]]
    return mask


def noise(n: int, density: float, seed: int = 2) -> Mask:
    """White noise: the worst case for everything that counts pieces."""
    return (np.random.default_rng(seed).random((n, n, n)) < density).astype(np.uint8)


def blobs(n: int) -> Mask:
    """The highest fifth of a smooth random field."""
    field = _smooth(n, 3, seed=3)
    return (field > np.quantile(field, 0.8)).astype(np.uint8)


def organs(n: int, classes: int = 15) -> Mask:
    """For each voxel the highest of smooth random fields; the background has an advantage."""
    fields = [_smooth(n, n / 16, seed=10 + c) for c in range(classes)]
    scores = np.stack([field / field.std() + (1.5 if c == 0 else 0) for c, field in enumerate(fields)])
    return scores.argmax(axis=0).astype(np.uint8)


def _smooth(n: int, sigma: float, seed: int) -> NDArray[np.float32]:
    field = np.random.default_rng(seed).standard_normal((n, n, n)).astype(np.float32)
    return ndimage.gaussian_filter(field, sigma, mode="wrap")
