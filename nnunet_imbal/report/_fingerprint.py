"""One page on what is imbalanced in a dataset, for people who know the patients rather than the losses."""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from nnunet_imbal._version import __version__
from nnunet_imbal.check import list_label_maps
from nnunet_imbal.errors import DataError
from nnunet_imbal.evaluation import DatasetLabels, read_dataset_labels
from nnunet_imbal.fingerprint import ClassFingerprint, Fingerprint, describe
from nnunet_imbal.io import Volume, read_label, write_atomically
from nnunet_imbal.recipe import choose_recipe
from nnunet_imbal.report._figures import INK, PRIMARY, class_rows, to_svg, volume_axis
from nnunet_imbal.report._orientation import edge_letters, names_patient_axes, radiological_turn, turn_letters
from nnunet_imbal.report._slices import MAX_PIXELS, mark_codes, pictures, runs
from nnunet_imbal.report._write import assets, check_destination, environment

__all__ = ["MAX_EXAMPLES", "write_fingerprint_page"]

MAX_EXAMPLES = 6


def write_fingerprint_page(fingerprint: Fingerprint, folder: Path, out: Path) -> Path:
    """Write one HTML page: what stands out, sizes on a log scale, and a slice of each of the rarest classes.

    Args:
        fingerprint: of the dataset.
        folder: the raw dataset it was measured on.
        out: HTML file to write; only an older page of ours is ever replaced.

    Returns:
        ``out``.

    Raises:
        DataError: ``out`` is a file of another kind or cannot be written, or a label map cannot be read.
    """
    check_destination(out)
    shown = {name: each for name, each in fingerprint.classes.items() if each.cases}
    html = (
        environment()
        .get_template("fingerprint.html.j2")
        .render(
            fingerprint=fingerprint,
            version=__version__,
            traits=describe(fingerprint),
            choices=choose_recipe(fingerprint).choices,
            figure=_volume_figure(shown) if shown else None,
            examples=_examples(shown, folder),
            **assets(),
        )
    )
    write_atomically(out, html.encode("utf-8", "replace"))
    return out


def _volume_figure(classes: dict[str, ClassFingerprint]) -> Markup:
    """Volume per case: a thin line for nine of ten cases, a thick one for the middle half, a dot for the median."""
    quantiles = np.array([each.volume_mm3 for each in classes.values()])
    rows = np.arange(1, len(classes) + 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.hlines(rows, quantiles[:, 0], quantiles[:, 4], colors=PRIMARY, linewidth=2, alpha=0.6)
        axes.hlines(rows, quantiles[:, 1], quantiles[:, 3], colors=PRIMARY, linewidth=8, alpha=0.6)
        axes.scatter(quantiles[:, 2], rows, s=36, color=INK, zorder=3)
        volume_axis(axes, "volume in a case that shows the class")
        class_rows(axes, list(classes))

    return to_svg("volumes", (9.0, 1.2 + 0.35 * len(classes)), draw)


def _examples(classes: dict[str, ClassFingerprint], folder: Path) -> list[dict[str, Any]]:
    """The classes with the least volume over all cases, each in a typical case."""
    labels, files = read_dataset_labels(folder / "dataset.json"), list_label_maps(folder)
    rarest = sorted(classes, key=lambda name: classes[name].volume_share)[:MAX_EXAMPLES]
    return [_example(name, classes[name], labels, files) for name in rarest]


def _example(name: str, found: ClassFingerprint, labels: DatasetLabels, files: dict[str, Path]) -> dict[str, Any]:
    case = found.example or ""
    if case not in files:
        raise DataError(f"case {case} is no longer there; measure the dataset again")
    volume = read_label(files[case])
    mask = np.isin(volume.array, labels.classes[name])
    z = int(mask.sum(axis=(1, 2)).argmax())
    images = sorted((files[case].parent.parent / "imagesTr").glob(f"{case}_0000.*"))
    return {"name": name, "case": case, "slice": z, **_picture(volume, mask, z, images[0] if images else None)}


def _picture(volume: Volume, mask: np.ndarray[Any, np.dtype[np.bool_]], z: int, image: Path | None) -> dict[str, Any]:
    _, rows, columns = mask.shape
    factor = -(-max(rows, columns) // MAX_PIXELS)
    letters = edge_letters(volume.direction) if names_patient_axes(volume.path) else None
    turn = radiological_turn(letters)
    grey, note = pictures(image, volume, turn, factor, only=z)
    codes = mark_codes(mask[turn][z], np.zeros((rows, columns), bool), factor)
    shapes = "".join(f"M{x} {y}h{length}v1h-{length}z" for y, x, length, _ in np.reshape(runs(codes), (-1, 4)).tolist())
    return {
        "jpeg": grey[0] if grey else "",
        "note": note,
        "marks": Markup('<path d="{}"/>').format(shapes),
        "width": codes.shape[1],
        "height": codes.shape[0],
        "aspect": volume.spacing[1] / volume.spacing[2],
        "letters": letters and turn_letters(letters, turn),
    }
