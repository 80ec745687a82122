"""Two small real spine scans (one CT, one MR) and virtual patients made from them."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from nnunet_imbal.errors import DataError
from nnunet_imbal.phantoms._case import Case, generator

__all__ = ["SpinePhantom"]

_SCANS = ("ct", "mri")

# TPTBox's numbers (class Location) -> ours. Left and right share a class because nnU-Net mirrors its patches, and
# so do rim (49) and inside (50) of the vertebral body because the MR scan does not separate them.
_CLASSES: dict[str, tuple[int, ...]] = {
    "arcus_vertebrae": (41,),
    "spinosus_process": (42,),
    "costal_process": (43, 44),
    "superior_articular": (45, 46),
    "inferior_articular": (47, 48),
    "vertebra_corpus": (49, 50),
    "spinal_cord": (60,),
    "spinal_canal": (61,),
    "endplate": (62,),
    "vertebra_disc": (100,),
}


class SpinePhantom:
    """Virtual patients from one real CT and one real MR scan of the spine, with ten classes.

    Training cases are the two scans in turn, bent smoothly by 4 to 6 voxels at most, with another bias field,
    gamma and noise. The two test cases are the untouched scans. So this shows that the software runs on real
    images; **it does not measure generalisation**, because every training case comes from a test case.

    The classes are the union of both scans. The CT has no labels for cord, canal, endplates and discs: there
    these are background. Source: TPTBox 1.1.0, Apache-2.0 (see NOTICE).

    Example:
        >>> case = SpinePhantom().test_case(seed=0, index=0)
        >>> case.image.shape, int((case.label == 6).sum())
        ((73, 47, 73), 22349)
    """

    title: ClassVar[str] = "Spine"
    # Not "CT": nnU-Net would normalise the MR scans by the statistics of Hounsfield units.
    channel: ClassVar[str] = "CT_or_T2w"
    licence: ClassVar[str] = "Apache-2.0; scans and labels from TPTBox 1.1.0 (Robert Graf and colleagues)"
    labels: ClassVar[Mapping[str, int]] = {
        "background": 0,
        **{name: value for value, name in enumerate(_CLASSES, start=1)},
    }
    description: ClassVar[str] = (
        "Virtual patients: smooth random deformations of one real CT and one real MR scan of the spine. The test "
        "cases are the two untouched scans. This shows that the software runs on real images; it does NOT measure "
        "generalisation, because every training case was made from a test case. Cord, canal, endplates and discs "
        "are labelled in the MR scan only."
    )

    def training_case(self, seed: int, index: int) -> Case:
        """Return virtual patient number ``index``: even numbers from the CT, odd ones from the MR scan."""
        scan = _SCANS[index % len(_SCANS)]
        rng = generator(seed, 2, index)
        original = _load(scan)
        shifts = _shifts(rng, original.image.shape)
        return Case(
            image=_acquire(rng, _warp(original.image, shifts, order=1)),
            label=_warp(original.label, shifts, order=0),
            instances=_warp(original.instances, shifts, order=0),
            affine=original.affine,
            truth={"seed": seed, "made_from": scan, "largest_shift_voxels": float(np.abs(shifts).max())},
        )

    def test_case(self, seed: int, index: int) -> Case | None:
        """Return the CT (0), the MR scan (1), or None: there are only two scans. The seed changes nothing."""
        return _load(_SCANS[index]) if index < len(_SCANS) else None


@cache
def _load(scan: str) -> Case:
    image, affine = _read(f"{scan}_image.nii.gz")
    subregions, _ = _read(f"{scan}_subregions.nii.gz")
    vertebrae, _ = _read(f"{scan}_vertebrae.nii.gz")
    return Case(
        image=image.astype(np.int16),
        label=_renumbered(subregions),
        instances=vertebrae.astype(np.uint16),
        affine=affine,
        truth={"made_from": scan, "largest_shift_voxels": 0.0},
    )


def _read(name: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    source = resources.files("nnunet_imbal.phantoms") / "spine_data" / name
    with resources.as_file(source) as path:
        if not path.is_file():
            raise DataError(f"{name} is missing from the installation. Install nnunet-imbal again.")
        image = nib.load(path)
        return np.asarray(image.dataobj), image.affine


def _renumbered(subregions: NDArray[Any]) -> NDArray[np.uint8]:
    table = np.zeros(256, dtype=np.uint8)
    for value, sources in enumerate(_CLASSES.values(), start=1):
        table[list(sources)] = value
    return table[subregions]


def _shifts(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Smooth displacement in voxels, shape (3, X, Y, Z), at most 4 to 6 along each axis."""
    sigma, largest = rng.uniform(8, 12), rng.uniform(4, 6)
    fields = np.stack([gaussian_filter(rng.normal(size=shape), sigma) for _ in range(3)])
    return fields * (largest / np.abs(fields).max())


def _warp(volume: NDArray[Any], shifts: NDArray[np.float64], order: int) -> NDArray[Any]:
    grid = np.indices(volume.shape) + shifts
    return map_coordinates(volume, grid, order=order, mode="nearest")


def _acquire(rng: np.random.Generator, image: NDArray[Any]) -> NDArray[np.int16]:
    """Another scanner: bias field, gamma and noise, within the grey values of the original."""
    low, high = float(image.min()), float(image.max())
    bias = gaussian_filter(rng.normal(size=image.shape), 15)
    scaled = ((image - low) / (high - low)) ** rng.uniform(0.8, 1.25)
    scaled = scaled * np.exp(0.08 * bias / bias.std()) + rng.normal(0, rng.uniform(0.005, 0.02), image.shape)
    return np.rint(np.clip(scaled, 0, 1) * (high - low) + low).astype(np.int16)
