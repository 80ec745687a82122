"""Pairs of truth and prediction to compare metrics on: made from a seed, or from a public mask by a seed.

Needs numpy, scipy and (for masks on disk) nibabel only, so that it runs in the environment of any other package.
"""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["PATIENTS", "RANDOM_2D", "RANDOM_3D", "Case", "checksum", "large_case", "random_case", "real_case"]

Mask = NDArray[np.bool_]
PATIENTS = (*range(1, 19), 20, 26)
RANDOM_3D = range(60)
RANDOM_2D = range(100, 112)
SPACINGS = ((1.0, 1.0, 1.0), (3.0, 0.5, 0.8), (1.0, 1.0, 2.5))
WINDOW = 72  # voxels along each axis of the part that is cut out of a public mask


class Case(NamedTuple):
    """A prediction, a truth (bool, one shape), and mm per voxel along each axis."""

    pred: Mask
    ref: Mask
    spacing: tuple[float, ...]


def random_case(seed: int) -> Case:
    """Lesions of 1 to some hundred voxels on a small grid; 3-D, from seed 100 on 2-D.

    Seed 0 has neither lesion nor prediction, seed 1 no lesion, seed 2 no prediction.
    """
    rng = np.random.default_rng(seed)
    ndim = 2 if seed >= RANDOM_2D.start else 3
    shape = tuple(int(n) for n in rng.integers(20, 40, ndim))
    ref = _scatter(rng, shape, int(rng.integers(1, 10)), 6.0)
    pred = spoil(ref, rng)
    if seed in (0, 1):
        ref = np.zeros_like(ref)
    if seed in (0, 2):
        pred = np.zeros_like(pred)
    return Case(pred, ref, SPACINGS[seed % len(SPACINGS)][:ndim])


def real_case(folder: str | Path, patient: int) -> Case:
    """Window around the lesions of a patient of open_ms_data; the prediction is that mask, spoilt with his number."""
    import nibabel

    image: Any = nibabel.load(Path(folder) / f"patient{patient:02d}_gold.nii.gz")
    mask = np.asarray(image.dataobj) > 0.5
    middle = np.median(np.argwhere(mask), axis=0).astype(int)
    ref = mask[tuple(slice(max(m - WINDOW // 2, 0), m + WINDOW // 2) for m in middle)]
    return Case(spoil(ref, np.random.default_rng(patient)), ref, (1.0, 1.0, 1.0))


def large_case(shape: tuple[int, int, int] = (240, 240, 155), lesions: int = 100) -> Case:
    """A brain-sized grid with many round lesions of 1 to about 2000 voxels, half of them below 30."""
    rng = np.random.default_rng(0)
    ref = np.zeros(shape, bool)
    for radius in 0.6 * 13 ** rng.random(lesions) ** 1.5:
        size = int(radius) + 1
        middle = [int(rng.integers(30, n - 30)) for n in shape]
        grid = np.indices([2 * size + 1] * 3) - size
        ref[tuple(slice(m - size, m + size + 1) for m in middle)] |= (grid**2).sum(axis=0) <= radius**2
    pred = np.zeros_like(ref)
    inside = tuple(slice(20, n - 20) for n in shape)
    pred[inside] = spoil(ref[inside], rng)
    return Case(pred, ref, (1.0, 1.0, 1.0))


def spoil(ref: Mask, rng: np.random.Generator) -> Mask:
    """A plausible prediction: lesions lost, moved, grown, shrunk and cut, and some false positives."""
    pred = _scatter(rng, ref.shape, int(rng.integers(0, 5)), 2.5)
    lesions, _ = ndimage.label(ref, np.ones([3] * ref.ndim))
    for number, box in enumerate(ndimage.find_objects(lesions), start=1):
        fate, move = rng.random(), rng.integers(-1, 2, ref.ndim)
        if fate < 0.2:
            continue
        wide = tuple(slice(max(side.start - 3, 0), side.stop + 3) for side in box)
        part = np.roll(lesions[wide] == number, tuple(int(m) for m in move), tuple(range(ref.ndim)))
        if fate < 0.4:
            part = ndimage.binary_dilation(part)
        elif fate < 0.6:
            part = ndimage.binary_erosion(part) if part.sum() > 30 else part
        elif fate < 0.7:
            part[part.shape[0] // 2] = False
        pred[wide] |= part
    return pred


def checksum(case: Case) -> int:
    """Tells whether another version of numpy or scipy made other voxels from the same seed."""
    return zlib.crc32(np.packbits(case.pred).tobytes() + np.packbits(case.ref).tobytes())


def _scatter(rng: np.random.Generator, shape: tuple[int, ...], count: int, largest: float) -> Mask:
    mask = np.zeros(shape, bool)
    grid = np.indices(shape)
    for _ in range(count):
        middle = rng.integers(0, shape)
        radii = rng.uniform(0.6, largest, len(shape))
        away = [(axis - m) / r for axis, m, r in zip(grid, middle, radii, strict=True)]
        mask |= sum(each**2 for each in away) <= 1
    return mask
