"""Are the vessels whole: centre lines of the worst cases, seen through the slices and along them, gaps circled."""

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from nnunet_imbal.io import Volume
from nnunet_imbal.metrics._masks import bounding_box
from nnunet_imbal.report._orientation import Turn, edge_letters, names_patient_axes, radiological_turn, turn_letters
from nnunet_imbal.report._slices import read_evaluated, runs
from numba_kernels import component_stats, skeletonize

__all__ = ["MAX_CIRCLES", "MAX_PICTURES", "vessel_pictures"]

MAX_PICTURES = 6
MAX_CIRCLES = 20
_THROUGH, _ALONG = (0, 1, 2), (1, 0, 2)  # axes that become depth, rows and columns
_COLOURS = {"truth": "--line", "found": "--mark-found", "invented": "--mark-false-alarm", "missed": "--mark-missed"}
_MARGIN = 4  # voxels around the vessels

Mask = NDArray[np.bool_]
Order = tuple[int, int, int]


def vessel_pictures(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Draw the centre lines of the cases with the lowest clDice, all classes as one.

    Args:
        evaluation: parsed evaluation file; without topology nothing is drawn.

    Returns:
        For each picture ``case``, ``cldice``, ``gaps`` (stretches of the true centre line that the prediction lacks),
        ``circled`` (so many of them, longest first) and ``views`` (SVG and the letters of its edges, see
        `edge_letters`).

    Raises:
        DataError: a label map is missing or cannot be read.
        GeometryError: a label map is not on the grid that was evaluated.
    """
    scored = [(case["topology"]["cldice"], case) for case in evaluation["cases"] if case.get("topology")]
    worst = sorted((each for each in scored if each[0] is not None), key=lambda each: each[0])
    return [_picture(case, evaluation["ignore_label"]) for _, case in worst[:MAX_PICTURES]]


def _picture(case: dict[str, Any], ignore: int | None) -> dict[str, Any]:
    reference, prediction = (read_evaluated(case, role) for role in ("reference", "prediction"))
    truth, found = (_foreground(volume, reference, ignore) for volume in (reference, prediction))
    line = skeletonize(truth)
    layers = {"truth": truth, "found": line & found, "invented": skeletonize(found) & ~truth, "missed": line & ~found}
    gaps = len(component_stats(layers["missed"]).sizes)
    orders = (_THROUGH, _ALONG) if len(truth) > 1 else (_THROUGH,)
    return {
        "case": case["case"],
        "cldice": case["topology"]["cldice"],
        "gaps": gaps,
        "circled": min(gaps, MAX_CIRCLES),
        "views": [_view(layers, reference, order, case["case"]) for order in orders],
    }


def _foreground(volume: Volume, reference: Volume, ignore: int | None) -> Mask:
    mask = volume.array != 0
    return np.asarray(mask if ignore is None else mask & (reference.array != ignore))


def _view(layers: dict[str, Mask], volume: Volume, order: Order, case: str) -> dict[str, Any]:
    """Hang the view as radiologists do, if the file says how it lies in the patient."""
    columns = [2 - axis for axis in reversed(order)]  # the array's axes are Z, Y, X, those of the direction X, Y, Z
    direction = np.reshape(volume.direction, (3, 3))[:, columns].ravel().tolist()
    letters = edge_letters(direction) if names_patient_axes(volume.path) else None
    turn = radiological_turn(letters)
    return {"svg": _draw(layers, volume, order, turn, case), "letters": letters and turn_letters(letters, turn)}


def _draw(layers: dict[str, Mask], volume: Volume, order: Order, turn: Turn, case: str) -> Markup:
    """One view as inline SVG in mm; paths count in voxels and are scaled."""
    seen = {layer: mask.transpose(order)[turn] for layer, mask in layers.items()}
    box = [slice(max(s.start - _MARGIN, 0), s.stop + _MARGIN) for s in bounding_box(seen["truth"] | seen["invented"])]
    seen = {layer: mask[tuple(box)] for layer, mask in seen.items()}
    row_mm, column_mm = (volume.spacing[axis] for axis in order[1:])
    height, width = seen["truth"].shape[1] * row_mm, seen["truth"].shape[2] * column_mm
    paths = [_path(np.asarray(seen[layer].any(axis=0)), colour) for layer, colour in _COLOURS.items()]
    circles = _circles(seen["missed"], (row_mm, column_mm), smallest=0.02 * max(height, width))
    return Markup(
        '<svg viewBox="0 0 {:.6g} {:.6g}" role="img" aria-label="Centre lines of {}">'
        '<g transform="scale({:.6g} {:.6g})">{}</g>{}</svg>'
    ).format(width, height, case, column_mm, row_mm, Markup("").join(paths), Markup("").join(circles))


def _path(mask: Mask, colour: str) -> Markup:
    """One rectangle for each run of pixels."""
    starts = np.reshape(runs(mask.astype(np.uint8)), (-1, 4))
    shapes = "".join(f"M{column} {row}h{length}v1h-{length}z" for row, column, length, _ in starts.tolist())
    return Markup('<path style="fill:var({})" d="{}"/>').format(colour, shapes)


def _circles(missed: Mask, mm: tuple[float, float], smallest: float) -> list[Markup]:
    gaps = component_stats(missed)
    longest = np.argsort(-gaps.sizes, kind="stable")[:MAX_CIRCLES]
    boxes = gaps.boxes[longest, 1:] * np.reshape(mm, (2, 1))
    radii = smallest + np.linalg.norm(np.diff(boxes, axis=2)[..., 0], axis=1) / 2
    circle = Markup('<circle class="gap" cx="{:.6g}" cy="{:.6g}" r="{:.6g}"/>')
    return [circle.format(x, y, r) for (y, x), r in zip(boxes.mean(axis=2).tolist(), radii.tolist(), strict=True)]
