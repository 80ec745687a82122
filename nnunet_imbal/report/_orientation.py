"""Which side of the patient lies at which edge of the picture, and how to turn it as radiologists hang it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import nibabel
import SimpleITK

__all__ = ["Turn", "edge_letters", "names_patient_axes", "radiological_turn", "turn_letters"]

Turn: TypeAlias = tuple[slice, slice, slice]  # index of a (Z, Y, X) array; applied twice it changes nothing

_ALIGNED = math.cos(math.radians(10))
_SIDES = (("R", "L"), ("A", "P"), ("I", "S"))  # where x, y and z begin and where they end (LPS)
_HANGINGS = (("R", "A"), ("R", "S"), ("A", "S"))  # left and top edge of an axial, a coronal and a sagittal slice
_KEEP, _REVERSE = slice(None), slice(None, None, -1)


def edge_letters(direction: Sequence[float]) -> dict[str, str] | None:
    """Letter of the patient's side at each edge of a slice whose rows run along Y and columns along X.

    Args:
        direction: the nine direction cosines of a `Volume`, row by row (LPS, columns belong to X, Y, Z).

    Returns:
        Letters R, L, A, P, S or I at ``left``, ``right``, ``top`` and ``bottom``; None if an axis of the slice
        is more than 10 degrees off the patient's axes, where one letter would mislead.

    Example:
        >>> edge_letters((1, 0, 0, 0, 1, 0, 0, 0, 1))
        {'left': 'R', 'right': 'L', 'top': 'A', 'bottom': 'P'}
        >>> edge_letters((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1)) is None
        True
    """
    across, down = _ends(direction[0::3]), _ends(direction[1::3])
    if across is None or down is None:
        return None
    return {"left": across[0], "right": across[1], "top": down[0], "bottom": down[1]}


def radiological_turn(letters: dict[str, str] | None) -> Turn:
    """Rows and columns to reverse so that a slice hangs as radiologists are used to, the patient's right on the left.

    Axial slices get the front on top, coronal and sagittal ones the head, sagittal ones the front on the left.

    Args:
        letters: edges of the slice as it is stored, see `edge_letters`; None leaves it as it is.

    Returns:
        Index of the ``(Z, Y, X)`` array; slices keep their order, and rows never become columns.

    Example:
        >>> radiological_turn({"left": "L", "right": "R", "top": "A", "bottom": "P"})
        (slice(None, None, None), slice(None, None, None), slice(None, None, -1))
    """
    if letters is None:
        return _KEEP, _KEEP, _KEEP
    for left, top in _HANGINGS:
        if left in (letters["left"], letters["right"]) and top in (letters["top"], letters["bottom"]):
            return _KEEP, _KEEP if letters["top"] == top else _REVERSE, _KEEP if letters["left"] == left else _REVERSE
    return _KEEP, _KEEP, _KEEP


def turn_letters(letters: dict[str, str], turn: Turn) -> dict[str, str]:
    """Edges of a slice after a `radiological_turn`.

    Example:
        >>> letters = {"left": "L", "right": "R", "top": "P", "bottom": "A"}
        >>> turn_letters(letters, radiological_turn(letters))
        {'left': 'R', 'right': 'L', 'top': 'A', 'bottom': 'P'}
    """
    _, rows, columns = turn
    top, bottom = (letters[edge] for edge in ("top", "bottom")[rows])
    left, right = (letters[edge] for edge in ("left", "right")[columns])
    return {"left": left, "right": right, "top": top, "bottom": bottom}


def names_patient_axes(path: Path) -> bool:
    """Tell whether a file says how its grid lies in the patient.

    PNG and BMP never do; a NIfTI with both codes 0 and an NRRD without an anatomical space do not either,
    although every reader gives them some direction.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        header = nibabel.load(path).header
        return len(header.get_data_shape()) > 2 and bool(header["qform_code"] or header["sform_code"])
    if name.endswith(".nrrd"):
        return "posterior" in _nrrd_space(path) or "anterior" in _nrrd_space(path)
    return name.endswith((".mha", ".mhd"))


def _ends(axis: Sequence[float]) -> tuple[str, str] | None:
    largest = max(range(3), key=lambda i: abs(axis[i]))
    if abs(axis[largest]) < _ALIGNED:
        return None
    low, high = _SIDES[largest]
    return (low, high) if axis[largest] > 0 else (high, low)


def _nrrd_space(path: Path) -> str:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return str(reader.GetMetaData("NRRD_space")) if reader.HasMetaDataKey("NRRD_space") else ""
