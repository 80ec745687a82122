"""Read images and label maps strictly, write files safely.

Arrays are ``(Z, Y, X)`` and so are their spacings in mm. A flat picture (png, a 2-D NIfTI) is read as one slice
``(1, Y, X)`` of thickness 1 mm. Nothing is ever resampled, rounded or repaired in silence: a file that is not
what it should be ends in an error that names it.
"""

import gzip
import hashlib
import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from nnunet_imbal.errors import DataError, GeometryError, LabelError

__all__ = [
    "FILE_ENDINGS",
    "Volume",
    "case_name",
    "check_same_geometry",
    "file_checksum",
    "list_label_files",
    "read_image",
    "read_label",
    "write_atomically",
]

FILE_ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".bmp")
LARGEST_LABEL = 65535
TOLERANCE = 1e-3  # of a voxel, of a mm or of a direction cosine, whichever is smaller
_AXES = "ZYX"
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError)


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or a label map on its grid in the patient.

    Attributes:
        array: Voxels ``(Z, Y, X)``.
        spacing: mm per voxel along Z, Y, X.
        origin: Position of the first voxel in mm, as x, y, z (LPS, as in ITK).
        direction: The nine direction cosines, row by row (LPS, columns belong to X, Y, Z).
        path: The file this came from.
    """

    array: NDArray[Any]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    path: Path


def read_image(path: str | Path) -> Volume:
    """Read an image, for example a CT or one MR sequence.

    Args:
        path: A ``.nii``, ``.nii.gz``, ``.mha``, ``.nrrd``, ``.png`` or ``.bmp`` file.

    Returns:
        The voxels ``(Z, Y, X)`` in the file's dtype with their geometry.

    Raises:
        DataError: The file is missing, empty, damaged or cut off, has no voxels, is not a single 2-D or 3-D
            channel, or holds NaN or infinity.
        GeometryError: The axes are not at right angles, or a spacing is not a positive number.
    """
    path = Path(path)
    _check_file(path)
    header = _read_header(path)
    _check_kind(path, header)
    volume = _place(path, header, _read_voxels(path, header))
    _check_finite(volume)
    return volume


def read_label(path: str | Path) -> Volume:
    """Read a label map: whole numbers, 0 is background.

    Args:
        path: See `read_image`.

    Returns:
        The labels ``(Z, Y, X)`` as uint8, or uint16 if a label exceeds 255, with their geometry.

    Raises:
        DataError: As `read_image`, or a voxel is not a whole number.
        GeometryError: As `read_image`.
        LabelError: A voxel is negative or above 65535.
    """
    volume = read_image(path)
    values = volume.array
    if values.dtype.kind == "f":
        values = _whole_numbers(volume)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > LARGEST_LABEL:
        raise LabelError(
            f"{volume.path}: voxels range from {low} to {high}, labels must lie in 0..{LARGEST_LABEL}; "
            "is this an image instead of a label map?"
        )
    values = values.astype(np.uint8 if high < 256 else np.uint16)
    return Volume(values, volume.spacing, volume.origin, volume.direction, volume.path)


def check_same_geometry(a: Volume, b: Volume) -> None:
    """Make sure that two volumes share one grid, so that voxel i of one is voxel i of the other.

    Spacing and origin may differ by a thousandth of a voxel (at most 0.001 mm) plus the rounding of a 32-bit
    header, direction cosines by 0.001.

    Raises:
        GeometryError: They differ; the message names both files, the axis and both values.
    """
    for axis, mine, other in zip(_AXES, a.array.shape, b.array.shape, strict=True):
        if mine != other:
            raise _mismatch(a, b, f"number of voxels along axis {axis}", mine, other)
    voxel = [min(1.0, mm) * TOLERANCE for mm in a.spacing]
    _compare(a, b, "spacing in mm along axis", zip(_AXES, a.spacing, b.spacing, voxel, strict=True))
    smallest = [min(voxel)] * 3
    _compare(a, b, "origin in mm along patient axis", zip("xyz", a.origin, b.origin, smallest, strict=True))
    names = [f"{axis} along patient {world}" for world in "xyz" for axis in "XYZ"]
    cosines = zip(names, a.direction, b.direction, [TOLERANCE] * 9, strict=True)
    _compare(a, b, "direction cosine of axis", cosines)


def list_label_files(folder: str | Path) -> dict[str, Path]:
    """Find the label maps in a folder.

    Returns:
        Case name (file name without its ending) -> file, sorted by case name. Hidden files are left out.

    Raises:
        DataError: The folder is missing or holds no label map, or two files belong to one case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder that holds the label maps")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(FILE_ENDINGS):
            continue
        case = case_name(path)
        if case in found:
            raise DataError(f"{folder}: {found[case].name} and {path.name} are both case {case}; keep one of them")
        found[case] = path
    if not found:
        raise DataError(f"{folder} holds no label map; expected files ending in {', '.join(FILE_ENDINGS)}")
    return dict(sorted(found.items()))


def case_name(path: str | Path) -> str:
    """Strip the file ending.

    Example:
        >>> case_name("labelsTr/case_001.v2.nii.gz")
        'case_001.v2'
    """
    name = Path(path).name
    ending = next((e for e in FILE_ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, read in pieces.

    Raises:
        DataError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write a whole file or leave the old one untouched, even if the disk is full or the power fails.

    Args:
        path: File to write; its folder must exist. A symbolic link keeps pointing to the file it points to.
        data: New content; text is stored as UTF-8.

    Raises:
        DataError: The file cannot be written; an older file of that name is still there, unchanged.
    """
    target = Path(path).resolve()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}; nothing there was changed") from error
    finally:
        with suppress(OSError):  # on a read-only disk not even a file that is not there can be deleted
            temporary.unlink()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); copy or export it again")


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _read_header(path: Path) -> SimpleITK.ImageFileReader:
    """Geometry as ITK sees it, which is what nnU-Net's standard reader sees."""
    header = SimpleITK.ImageFileReader()
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        if _is_nifti(path):
            _explain_nifti(path)
        raise _damaged(path, str(error).strip().splitlines()[-1]) from error
    return header


def _explain_nifti(path: Path) -> None:
    """Say more about a file that ITK refuses, if there is more to say."""
    try:
        image = nibabel.load(path)
    except _UNREADABLE:
        return
    if 0 in image.shape:
        raise DataError(f"{path} has no voxels: its shape is {image.shape}")
    cosines = image.affine[:3, :3]
    _check_orthonormal(path, cosines / np.linalg.norm(cosines, axis=0))


def _check_kind(path: Path, header: SimpleITK.ImageFileReader) -> None:
    dimension, channels = header.GetDimension(), header.GetNumberOfComponents()
    if dimension not in (2, 3):
        raise DataError(f"{path} is {dimension}-D with shape {header.GetSize()}, expected 2-D or 3-D; split its frames")
    if channels != 1 or header.GetPixelID() in (SimpleITK.sitkComplexFloat32, SimpleITK.sitkComplexFloat64):
        raise DataError(f"{path} has {channels} channels, expected one real number per voxel; save it in grey values")


def _read_voxels(path: Path, header: SimpleITK.ImageFileReader) -> NDArray[Any]:
    try:
        if _is_nifti(path):
            return _read_nifti_voxels(path).reshape(header.GetSize()[::-1])
        return SimpleITK.GetArrayFromImage(header.Execute())
    except (RuntimeError, *_UNREADABLE) as error:
        raise _damaged(path, str(error).strip().splitlines()[-1]) from error


def _read_nifti_voxels(path: Path) -> NDArray[Any]:
    """ITK silently reads the missing end of a cut-off NIfTI as zeros, and NaN as zero; nibabel does neither."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as stream:
        content = stream.read()  # to the very end: only there is the checksum of gzip
    array = np.asanyarray(type(nibabel.load(path)).from_bytes(content).dataobj)
    return array.astype(array.dtype.newbyteorder("="), copy=False).T


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} cannot be read, it may be damaged or cut off ({reason}); copy or export it again")


def _place(path: Path, header: SimpleITK.ImageFileReader, array: NDArray[Any]) -> Volume:
    dimension, direction = header.GetDimension(), np.eye(3)
    direction[:dimension, :dimension] = np.reshape(header.GetDirection(), (dimension, dimension))
    spacing, origin = header.GetSpacing(), header.GetOrigin()
    if dimension == 2:
        array, spacing, origin = array[None], (*spacing, 1.0), (*origin, 0.0)
    for axis, mm in zip("XYZ", spacing, strict=True):
        if not (np.isfinite(mm) and mm > 0):
            raise GeometryError(f"{path}: spacing along axis {axis} is {mm} mm, expected a positive number")
    _check_orthonormal(path, direction)
    return Volume(array, spacing[::-1], origin, tuple(map(float, direction.ravel())), path)


def _check_orthonormal(path: Path, cosines: NDArray[np.float64]) -> None:
    """Columns are the directions of X, Y, Z; their mutual cosines must be 0, their lengths 1."""
    products = cosines.T @ cosines
    i, j = np.unravel_index(np.argmax(np.abs(products - np.eye(3))), (3, 3))
    if not abs(products[i, j] - (i == j)) <= TOLERANCE:
        raise GeometryError(
            f"{path}: the axes {'XYZ'[i]} and {'XYZ'[j]} have the scalar product {products[i, j]:.6g}, "
            f"expected {int(i == j)} (axes at right angles); resample the image onto a straight grid"
        )


def _check_finite(volume: Volume) -> None:
    if volume.array.dtype.kind != "f":
        return
    bad = ~np.isfinite(volume.array)
    if bad.any():
        where, value = _first(volume.array, bad)
        raise DataError(f"{volume.path}: voxel {where} (Z, Y, X) is {value}, one of {bad.sum()}; replace them first")


def _whole_numbers(volume: Volume) -> NDArray[np.int64]:
    whole = np.rint(volume.array)
    # a scale factor in the header may leave the last bits of a float off by a rounding error
    bad = np.abs(volume.array - whole) > 1e-4
    if bad.any():
        where, value = _first(volume.array, bad)
        raise DataError(
            f"{volume.path}: voxel {where} (Z, Y, X) is {value}, one of {bad.sum()} that are not whole numbers; "
            "was the label map resampled by interpolation, or is this an image?"
        )
    return whole.clip(-(2**53), 2**53).astype(np.int64)


def _first(array: NDArray[Any], bad: NDArray[np.bool_]) -> tuple[tuple[int, ...], float]:
    where = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
    return where, float(array[where])


def _compare(a: Volume, b: Volume, what: str, rows: Iterator[tuple[str, float, float, float]]) -> None:
    for axis, mine, other, tolerance in rows:
        # NIfTI headers hold 32-bit floats
        if not abs(mine - other) <= tolerance + 1e-6 * abs(mine):
            raise _mismatch(a, b, f"{what} {axis}", mine, other)


def _mismatch(a: Volume, b: Volume, what: str, mine: float, other: float) -> GeometryError:
    return GeometryError(
        f"{a.path} and {b.path} do not share one grid: {what} is {mine} and {other}. "
        "Resample one of them yourself; nothing is resampled here"
    )
