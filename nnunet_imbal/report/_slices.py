"""Slices of one case in the compact form the viewer draws: JPEG for the image, run lengths for the marks."""

import base64
import io
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_imbal.errors import DataError, GeometryError
from nnunet_imbal.io import Volume, check_same_geometry, read_image, read_label
from nnunet_imbal.report._orientation import Turn, edge_letters, names_patient_axes, radiological_turn, turn_letters
from nnunet_imbal.report._words import short_path
from numba_kernels.connected_components import connected_components

__all__ = [
    "FOUND",
    "MAX_PIXELS",
    "MISSED",
    "ONLY_PREDICTED",
    "case_slices",
    "channel_name",
    "find_images",
    "mark_codes",
    "pictures",
    "read_evaluated",
    "runs",
]

MAX_PIXELS = 320
MISSED, ONLY_PREDICTED, FOUND = 1, 2, 3

_JPEG_QUALITY = 75

Mask: TypeAlias = NDArray[np.bool_]
Codes: TypeAlias = NDArray[np.uint8]
Number: TypeAlias = Callable[[Mask], tuple[NDArray[np.int32], int]]


def find_images(evaluation: dict[str, Any], images: Path | None) -> dict[str, Path]:
    """Map each case to the first channel of its image, named ``CASE_0000.*`` as nnU-Net does.

    Args:
        evaluation: parsed evaluation file.
        images: folder to look in; None looks in ``imagesTs`` and ``imagesTr`` beside the reference folder.

    Raises:
        DataError: ``images`` is given and is not a folder.
    """
    if images is not None and not images.is_dir():
        raise DataError(f"{images} is not a folder; --images expects the folder with CASE_0000 image files.")
    beside = Path(evaluation["reference_folder"]).parent
    folders = [beside / "imagesTr", beside / "imagesTs"] if images is None else [images]
    files = (file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()))
    return {file.name.rsplit("_0000.", 1)[0]: file for file in files if "_0000." in file.name}


def case_slices(
    case: dict[str, Any], classes: dict[str, list[int]], image: Path | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Read one case and pack it for the viewer, turned as radiologists hang it (see `radiological_turn`).

    Args:
        case: entry of ``cases`` in the evaluation file.
        classes: class or region name -> label values it unites.
        image: image file, or None for black.
        settings: ``settings`` of the evaluation file.

    Returns:
        Dictionary of JSON values: ``rows``, ``columns``, ``aspect`` (row height / column width in mm),
        ``factor`` (in-plane reduction), ``images`` (base64 JPEG per slice, empty without image), ``note``,
        ``channel`` (see `channel_name`), ``letters`` (see `turn_letters`, None if not known) and ``classes``
        (per class ``name``, ``open`` slice, ``runs`` per slice, see `runs`, and the places of the ``missed``
        lesions and the ``false_alarms``).

    Raises:
        DataError: a file is missing, cannot be read or holds other lesions than those evaluated.
        GeometryError: a label map is not on the grid that was evaluated.
    """
    reference, prediction = (read_evaluated(case, role) for role in ("reference", "prediction"))
    _, rows, columns = reference.array.shape
    factor = -(-max(rows, columns) // MAX_PIXELS)
    letters = edge_letters(reference.direction) if names_patient_axes(reference.path) else None
    turn = radiological_turn(letters)
    truth, predicted = reference.array[turn], prediction.array[turn]
    grey, note = pictures(image, reference, turn, factor)
    _, row_mm, column_mm = reference.spacing
    # A label of the reference that belongs to no class is the ignore label: the evaluation accepts no other.
    known = _members(truth, [0, *(value for values in classes.values() for value in values)])
    packed = [
        _pack_class(
            name,
            (_members(truth, values), _members(predicted, values) & known),
            case,
            factor,
            partial(_components, turn=turn, connectivity=settings["connectivity"]),
        )
        for name, values in classes.items()
    ]
    return {
        "rows": -(-rows // factor),
        "columns": -(-columns // factor),
        "aspect": row_mm / column_mm,
        "factor": factor,
        "images": grey,
        "note": note,
        "channel": channel_name(image, reference.path) if grey else "",
        "letters": letters and turn_letters(letters, turn),
        "classes": packed,
    }


def channel_name(image: Path | None, reference: Path) -> str:
    """Name of the first channel, as ``channel_names`` of a ``dataset.json`` beside the folders calls it.

    Args:
        image: image file; the dataset.json beside its folder comes first.
        reference: label map; the dataset.json beside its folder comes second.

    Returns:
        For example ``CT`` or ``FLAIR``; empty if no file names it.
    """
    for file in (image, reference):
        if file is None:
            continue
        try:
            content = json.loads((file.parent.parent / "dataset.json").read_text(encoding="utf-8"))
            return str(content["channel_names"]["0"])
        except (OSError, ValueError, LookupError, TypeError):
            continue  # the name is a courtesy; the report does without it
    return ""


def mark_codes(truth: Mask, prediction: Mask, factor: int = 1) -> Codes:
    """Code each pixel of a slice: 0 nothing, 1 only the expert, 2 only the model, 3 both.

    Args:
        truth: ``(Y, X)`` bool.
        prediction: ``(Y, X)`` bool.
        factor: in-plane reduction; a block takes its most frequent mark, so that no mark ever disappears.

    Returns:
        ``(ceil(Y / factor), ceil(X / factor))`` uint8.

    Example:
        >>> mark_codes(np.array([[True, True, False]]), np.array([[False, True, True]]))
        array([[1, 3, 2]], dtype=uint8)
    """
    codes = truth.astype(np.uint8) + 2 * prediction.astype(np.uint8)
    if factor == 1:
        return codes
    votes = np.stack([_block_sums(codes == code, factor) for code in (MISSED, ONLY_PREDICTED, FOUND)])
    return np.where(votes.any(axis=0), votes.argmax(axis=0) + 1, 0).astype(np.uint8)


def runs(codes: Codes) -> list[int]:
    """Encode one slice without loss as ``row, column, length, code`` for each run of equal marks.

    Args:
        codes: ``(Y, X)`` uint8.

    Example:
        >>> runs(np.array([[0, 1, 1, 3], [0, 0, 0, 0]], dtype=np.uint8))
        [0, 1, 2, 1, 0, 3, 1, 3]
    """
    padded = np.pad(codes, ((0, 0), (1, 1)))
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])
    marks = padded[rows, columns + 1]
    starts = np.flatnonzero(marks)
    lengths = columns[starts + 1] - columns[starts] if starts.size else starts
    return np.stack([rows[starts], columns[starts], lengths, marks[starts]], axis=1).ravel().tolist()


def read_evaluated(case: dict[str, Any], role: str) -> Volume:
    """Read the label map of a case again, ``role`` reference or prediction, and make sure that it is still that one.

    Raises:
        DataError: the file is missing or cannot be read.
        GeometryError: it has another shape than when it was evaluated.
    """
    path = Path(case[role])
    if not path.is_file():
        raise DataError(
            f"the {role} of case {case['case']!r} is no longer at {path}; "
            "put the file back, or run `nnunet-imbal evaluate` again."
        )
    labels = read_label(path)
    if list(labels.array.shape) != list(case["shape"]):
        raise GeometryError(
            f"{path} has shape {labels.array.shape}, but {tuple(case['shape'])} when it was evaluated; "
            "run `nnunet-imbal evaluate` again."
        )
    return labels


def _pack_class(
    name: str, masks: tuple[Mask, Mask], case: dict[str, Any], factor: int, number: Number
) -> dict[str, Any]:
    truth, prediction = masks
    packed: list[list[int]] = [[] for _ in truth]
    for z in np.flatnonzero((truth | prediction).any(axis=(1, 2))):
        packed[z] = runs(mark_codes(truth[z], prediction[z], factor))
    entry = case["classes"][name]
    try:
        missed = _places(truth, [lesion for lesion in entry["lesions"] if not lesion["detected"]], number)
        false_alarms = _places(prediction, entry["false_positives"], number)
    except LookupError as error:
        raise DataError(
            f"the label maps of case {case['case']!r} are not those that were evaluated; "
            "run `nnunet-imbal evaluate` again."
        ) from error
    return {
        "name": name,
        "open": _opening_slice(missed, false_alarms, truth),
        "runs": packed,
        "missed": missed,
        "false_alarms": false_alarms,
    }


def _opening_slice(missed: list[dict[str, Any]], false_alarms: list[dict[str, Any]], truth: Mask) -> int:
    """The largest cross-section of a missed lesion; without one, most truth; without any, of a false alarm."""
    if not missed and truth.any():
        return int(truth.sum(axis=(1, 2)).argmax())
    largest = max(missed or false_alarms, key=lambda place: place["area"], default={"slice": len(truth) // 2})
    return int(largest["slice"])


def _places(mask: Mask, lesions: list[dict[str, Any]], number: Number) -> list[dict[str, Any]]:
    """Where each lesion has its largest cross-section, largest lesion first.

    Args:
        mask: ``(Z, Y, X)`` bool whose components the lesions are.
        lesions: entries with ``id``, ``voxels`` and ``volume_mm3``.
        number: finds the components and gives them the numbers of the evaluation.

    Returns:
        ``volume_mm3``, ``slice``, ``area`` (voxels there), ``row`` and ``column`` (centre there) of each.

    Raises:
        LookupError: a lesion is no component of the mask.
    """
    if not lesions:
        return []
    marked = np.flatnonzero(mask.any(axis=(1, 2)))
    if not marked.size:
        raise LookupError
    components, amount = number(mask[marked[0] : marked[-1] + 1])
    areas = np.stack([np.bincount(plane.ravel(), minlength=amount + 1) for plane in components])
    places = [_place(components, areas[:, lesion["id"]], lesion) for lesion in lesions]
    for place in places:
        place["slice"] += int(marked[0])
    return sorted(places, key=lambda place: -place["volume_mm3"])


def _components(mask: Mask, turn: Turn, connectivity: int) -> tuple[NDArray[np.int32], int]:
    """Components of a turned mask; their numbers follow the voxels as stored, which the evaluation saw."""
    components, amount = connected_components(mask[turn], connectivity)
    return components[turn], amount


def _place(components: NDArray[Any], areas: NDArray[np.int64], lesion: dict[str, Any]) -> dict[str, Any]:
    if areas.sum() != lesion["voxels"]:
        raise LookupError
    z = int(areas.argmax())
    row, column = (float(where.mean()) for where in np.nonzero(components[z] == lesion["id"]))
    return {"volume_mm3": lesion["volume_mm3"], "slice": z, "area": int(areas[z]), "row": row, "column": column}


def _members(labels: NDArray[Any], values: Iterable[int]) -> Mask:
    """Like np.isin, several times faster for whole numbers from 0 to 65535."""
    table = np.zeros(np.iinfo(labels.dtype).max + 1, bool)
    table[[value for value in values if value < len(table)]] = True
    return table[labels]


def pictures(
    image: Path | None, reference: Volume, turn: Turn, factor: int, only: int | None = None
) -> tuple[list[str], str]:
    """Slices of an image as base64 JPEG, all or one, and a note on their grey values or why there are none."""
    if image is None:
        return [], "No image was found for this case; the marks are shown on black."
    try:
        volume = read_image(image)
        check_same_geometry(volume, reference)
    except DataError as error:
        reason = str(error)
        for path in (image, reference.path):
            reason = reason.replace(str(path), short_path(path))
        return [], f"The image cannot be shown, the marks are shown on black: {reason}."
    low, high = _grey_window(volume.array)
    planes = volume.array[turn] if only is None else volume.array[turn][only : only + 1]
    return [
        _jpeg(_to_grey(plane, low, high), factor) for plane in planes
    ], f"Grey values: {_brief(low)} is black, {_brief(high)} is white."


def _grey_window(array: NDArray[Any]) -> tuple[float, float]:
    low, high = map(float, np.percentile(array, (0.1, 99.9)))
    if high > low:
        return low, high
    low, high = float(array.min()), float(array.max())
    return low, max(high, low + 1)


def _brief(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _to_grey(plane: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    return (np.clip((plane - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _jpeg(plane: NDArray[np.uint8], factor: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(plane).reduce(factor).save(stream, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _block_sums(mask: Mask, factor: int) -> NDArray[np.int64]:
    rows, columns = mask.shape
    padded = np.pad(mask, ((0, -rows % factor), (0, -columns % factor)))
    rows, columns = padded.shape
    return padded.reshape(rows // factor, factor, columns // factor, factor).sum(axis=(1, 3))
