"""FLAIR-like images made from label maps of healthy brains, with the lesions of real patients painted in.

The label maps are SynthSeg's, the lesion masks those of `open_ms_data` in MNI space. A brain is scaled to the extent
of brains in that space; this is no registration, so a lesion may lie in cortex or in a ventricle. It is then painted
with a rim of white matter. Grey values are random around what a FLAIR looks like: fluid dark, cortex brighter than
white matter and uneven, a bright rim around the ventricles, lesions brighter still.
"""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from _synthetic_contrast import STRUCTURES
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, binary_dilation, gaussian_filter, zoom

from numba_kernels import connected_components

__all__ = ["AFFINE", "GRID", "read_brain", "read_mask", "read_scan", "synthesise_flair"]

GRID = (182, 218, 182)  # voxels of 1 mm along X, Y, Z of MNI space
# All images are cut to this box around the white matter. It holds 98 % of the voxels of each training mask.
BOX = (slice(36, 146), slice(42, 172), slice(36, 132))
_CORNER = np.array([36.0, 42.0, 36.0])
AFFINE = np.array([[-1.0, 0, 0, 90 - 36], [0, 1, 0, 42 - 126], [0, 0, 1, 36 - 72], [0, 0, 0, 1]])
# Where the brains of MNI space begin and end (1st and 99th percentile of their voxels).
_LOW, _HIGH = np.array([33.0, 36.0, 25.0]), np.array([148.0, 181.0, 136.0])
_LARGEST_LABEL = 600
_FLUID = ("lateral ventricle", "inferior lateral ventricle", "third ventricle", "fourth ventricle")
_FLUID_LABELS = (24, *(label for name in _FLUID for label in STRUCTURES[name]))
_CORTEX_LABELS = (*STRUCTURES["cerebral cortex"], *STRUCTURES["cerebellar cortex"])
_DEEP = ("thalamus", "caudate", "putamen", "pallidum", "hippocampus", "amygdala", "accumbens", "choroid plexus")
_DEEP_LABELS = tuple(label for name in _DEEP for label in STRUCTURES[name])
_ALL_LABELS = tuple(label for labels in STRUCTURES.values() for label in labels)
_WHITE_LABELS = STRUCTURES["cerebral white matter"]


def read_scan(path: Path) -> NDArray[np.float32]:
    """Return the box of an image in MNI space.

    Raises:
        ValueError: The file has another grid.
    """
    scan = np.asarray(nib.load(path).dataobj, np.float32)
    if scan.shape != GRID:
        raise ValueError(f"{path} has {scan.shape} voxels; expected an image in MNI space of {GRID}")
    return scan[BOX]


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return the lesions of one patient in the box."""
    return read_scan(path) > 0.5


def read_brain(path: Path) -> NDArray[np.int16]:
    """Return the labels of one brain, scaled to MNI space, in the box; axes X (to the left, as in the masks), Y, Z."""
    image: Any = nib.as_closest_canonical(nib.load(path))
    labels = np.asarray(image.dataobj).astype(np.int16)[::-1]
    tissue = np.isin(labels, [label for label in _ALL_LABELS if label != 24])
    low, high = np.percentile(np.argwhere(tissue), [1, 99], axis=0)
    scale = (high - low) / (_HIGH - _LOW)
    shape = tuple(side.stop - side.start for side in BOX)
    return affine_transform(labels, scale, low + scale * (_CORNER - _LOW), output_shape=shape, order=0)


def synthesise_flair(
    rng: np.random.Generator, labels: NDArray[np.int16], lesions: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return a brain-extracted FLAIR-like image; white matter is about 100, what is not brain 0.

    Args:
        rng: Decides contrast, blur, bias field and noise.
        labels: SynthSeg's labels, shape (X, Y, Z).
        lesions: Where the lesions are, same shape.
    """
    inner = np.isin(labels, [label for label in _ALL_LABELS if label != 24])
    rim = binary_dilation(lesions, iterations=2)
    brain = (binary_dilation(inner, iterations=2) & (labels > 0) & (labels < 500)) | rim
    tissue = np.where(rim & ~np.isin(labels, _CORTEX_LABELS), _WHITE_LABELS[0], labels)
    image = _tissue_means(rng)[tissue] * (1 + _texture(rng, np.isin(tissue, _CORTEX_LABELS)))
    image[_rim_of_fluid(tissue)] *= rng.uniform(1.0, 1.25)
    contrast = _lesion_contrast(rng, lesions)
    image = np.where(contrast > 0, 100 * contrast, image) * brain
    image = gaussian_filter(image, rng.uniform(0.4, 0.8)) * _bias(rng, labels.shape)
    image += rng.normal(0, rng.uniform(1, 4), labels.shape)
    return (image * brain).astype(np.float32)


def _tissue_means(rng: np.random.Generator) -> NDArray[np.float64]:
    means = np.full(_LARGEST_LABEL, rng.uniform(15, 45))
    means[list(_ALL_LABELS)] = rng.normal(100, 2, len(_ALL_LABELS))
    means[list(_CORTEX_LABELS)] = rng.uniform(108, 130) + rng.normal(0, 1, len(_CORTEX_LABELS))
    means[list(_DEEP_LABELS)] = rng.uniform(98, 118) + rng.normal(0, 4, len(_DEEP_LABELS))
    means[list(_FLUID_LABELS)] = rng.uniform(15, 45)
    return means


def _lesion_contrast(rng: np.random.Generator, lesions: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Brightness of each lesion over white matter, 0 outside; blur then makes a lesion of a few voxels fainter."""
    numbers, count = connected_components(lesions)
    each = 1 + rng.uniform(0.35, 0.7) * rng.uniform(0.8, 1.2, count)
    return np.concatenate([[0.0], each])[numbers]


def _rim_of_fluid(labels: NDArray[np.int16]) -> NDArray[np.bool_]:
    """White matter that touches a ventricle; in a FLAIR it is often bright."""
    return binary_dilation(np.isin(labels, _FLUID_LABELS)) & np.isin(labels, _WHITE_LABELS)


def _texture(rng: np.random.Generator, cortex: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Tissue is not even: smooth variation of a few percent at about 2 and 8 mm, cortex less even than the rest."""
    fine = gaussian_filter(rng.standard_normal(cortex.shape, dtype=np.float32), 1.0)
    coarse = gaussian_filter(rng.standard_normal(cortex.shape, dtype=np.float32), 3.0)
    strength = rng.uniform(0.01, 0.04) * (1 + cortex)
    return strength * coarse / coarse.std() + rng.uniform(0.005, 0.015) * fine / fine.std()


def _bias(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    coarse = rng.normal(0, rng.uniform(0.02, 0.12), (4, 4, 4))
    return np.exp(zoom(coarse, [n / 4 for n in shape], order=3, mode="nearest", grid_mode=True))
