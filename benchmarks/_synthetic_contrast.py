"""Magnetic resonance images made from label maps, as SynthSeg describes it (Billot 2023, 10.1016/j.media.2023.102789).

One Gaussian of random mean and spread per structure, the same on both sides of the head; blur, partial volume from
halving the resolution, a smooth bias field, noise. Unlike there, the cases of one seed share a contrast: they stand
for scans of one protocol, of which a few are labelled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

__all__ = ["STRUCTURES", "Contrast", "draw_contrast", "merged", "read_labels", "synthesise"]

# FreeSurfer's numbers, left and right in one class. 136, 137, 163 and 164 lie in the lateral ventricles and their
# inferior horns; "choroid plexus" is our reading of them. All others, those outside the skull too, are background.
STRUCTURES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "cerebral white matter": (2, 41),
        "cerebral cortex": (3, 42),
        "lateral ventricle": (4, 43, 72),
        "inferior lateral ventricle": (5, 44),
        "cerebellar white matter": (7, 46),
        "cerebellar cortex": (8, 47),
        "thalamus": (10, 49),
        "caudate": (11, 50),
        "putamen": (12, 51),
        "pallidum": (13, 52),
        "third ventricle": (14,),
        "fourth ventricle": (15,),
        "brain stem": (16,),
        "hippocampus": (17, 53),
        "amygdala": (18, 54),
        "cerebrospinal fluid": (24,),
        "lesion": (25, 57),
        "accumbens": (26, 58),
        "ventral diencephalon": (28, 60),
        "vessel": (30, 62),
        "optic chiasm": (85,),
        "choroid plexus": (136, 137, 163, 164),
    }
)
_LARGEST_LABEL = 600
_FIRST_OUTSIDE_THE_SKULL = 500
_FLUID = 24
_MARGIN = 8
_PAIRS = (*(pair for pair in STRUCTURES.values() if len(pair) == 2), (4, 43), (136, 163), (137, 164))


@dataclass(frozen=True)
class Contrast:
    """Mean and standard deviation of the grey values of each label, float64, shape (600,)."""

    means: NDArray[np.float64]
    spreads: NDArray[np.float64]


def draw_contrast(rng: np.random.Generator) -> Contrast:
    """Draw what each structure looks like under one protocol; air is dark."""
    means, spreads = rng.uniform(25, 225, _LARGEST_LABEL), rng.uniform(5, 20, _LARGEST_LABEL)
    for left, right in _PAIRS:
        means[right], spreads[right] = means[left], spreads[left]
    means[0], spreads[0] = 5.0, 3.0
    return Contrast(means, spreads)


def read_labels(path: Path) -> NDArray[np.int16]:
    """Return a label map in axes Z, Y, X (X to the right), cut to the brain and 8 mm around it.

    Raises:
        ValueError: The file has voxels other than 1 mm, or holds no brain.
    """
    image: Any = nib.as_closest_canonical(nib.load(path))
    if not np.allclose(image.header.get_zooms(), 1.0, atol=0.01):
        raise ValueError(f"{path} has voxels of {image.header.get_zooms()} mm; expected 1 mm label maps of SynthSeg")
    labels = np.asarray(image.dataobj).astype(np.int16).T
    # The fluid around the spinal cord would drag the box down the neck.
    brain = np.argwhere((labels > 0) & (labels < _FIRST_OUTSIDE_THE_SKULL) & (labels != _FLUID))
    if not len(brain):
        raise ValueError(f"{path} holds no label from 1 to {_FIRST_OUTSIDE_THE_SKULL - 1}; is it a SynthSeg label map?")
    low = np.maximum(brain.min(axis=0) - _MARGIN, 0)
    high = np.minimum(brain.max(axis=0) + 1 + _MARGIN, labels.shape)
    size = (high - low) // 2 * 2  # even, so that it can be halved
    return labels[tuple(slice(start, start + n) for start, n in zip(low, size, strict=True))]


def merged(labels: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Return the classes of `STRUCTURES` at 2 mm: of the eight voxels in a block the most frequent class wins."""
    table = np.zeros(_LARGEST_LABEL, dtype=np.uint8)
    for number, values in enumerate(STRUCTURES.values(), start=1):
        table[list(values)] = number
    fine = table[labels]
    votes = [_halved((fine == number).astype(np.float32)) for number in range(len(STRUCTURES) + 1)]
    return np.argmax(votes, axis=0).astype(np.uint8)


def synthesise(rng: np.random.Generator, labels: NDArray[np.int16], contrast: Contrast) -> NDArray[np.float32]:
    """Return a 2 mm image of 1 mm labels with mean 0 and standard deviation 1."""
    means = contrast.means + rng.normal(0, 4, _LARGEST_LABEL)  # no two patients are alike
    image = means[labels] + contrast.spreads[labels] * rng.standard_normal(labels.shape, dtype=np.float32)
    image = _halved(gaussian_filter(image, rng.uniform(0.4, 1.0)))
    image = image * _bias(rng, image.shape) + rng.normal(0, rng.uniform(2, 6), image.shape)
    return ((image - image.mean()) / image.std()).astype(np.float32)


def _bias(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    coarse = rng.normal(0, rng.uniform(0.05, 0.3), (4, 4, 4))
    return np.exp(zoom(coarse, [n / 4 for n in shape], order=3, mode="nearest", grid_mode=True))


def _halved(fine: NDArray[Any]) -> NDArray[Any]:
    z, y, x = (n // 2 for n in fine.shape)
    return fine.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5))
