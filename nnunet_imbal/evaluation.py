"""Measure a folder of predictions against a folder of expert label maps: per class, per case, per lesion.

The result is a JSON file, see `evaluate_folders`. Classes and regions come from nnU-Net's ``dataset.json``; voxels
whose true label is ``ignore`` are left out of every number.
"""

import json
import math
import multiprocessing
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial, reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.ndimage import find_objects

from nnunet_imbal._lesion_scores import LESION_RULES, lesionwise_entry, number, panoptic_entry
from nnunet_imbal._progress import track
from nnunet_imbal._topcow_scores import (
    CowClasses,
    patient_entry,
    patients_entry,
    score_patient,
    topcow_classes,
    topcow_tables,
)
from nnunet_imbal._topology_scores import topology_entry, vessel_tree_entry
from nnunet_imbal._version import __version__
from nnunet_imbal.errors import ConfigError, DataError, ImbalError, LabelError
from nnunet_imbal.io import Volume, check_same_geometry, list_label_files, read_label, write_atomically
from nnunet_imbal.metrics import (
    CCDice,
    Lesion,
    LesionMatch,
    Matcher,
    MatchingMetric,
    cc_dice,
    check_matching,
    dice,
    f1_score,
    match_lesions,
    recall_by_size,
    share,
    surface_distances,
)

__all__ = [
    "SCHEMA",
    "DatasetLabels",
    "EvaluationSettings",
    "evaluate_folders",
    "load_evaluation",
    "print_summary",
    "read_dataset_labels",
]

SCHEMA = "nnunet-imbal/evaluation/2"
Json = dict[str, Any]
Box = tuple[slice, ...]
_LESION_COLUMNS = (
    ("CC-Dice", "cc_dice"),
    ("RQ", "panoptic.rq"),
    ("SQ", "panoptic.sq_iou"),
    ("PQ", "panoptic.pq"),
    ("PQ\nDice", "panoptic.pq_dsc"),
)
_RULE_COLUMNS = (("LW\nDice", "lesionwise.dice"), ("LW\nHD95", "lesionwise.hd95_mm"))
_TOPOLOGY_COLUMNS = (
    ("clDice", "cldice"),
    ("pieces\noff by", "b0_error"),
    ("tunnels\noff by", "b1_error"),
    ("cavities\noff by", "b2_error"),
)
_COUNTS = ("true_positives", "false_positives", "false_negatives")


@dataclass(frozen=True)
class EvaluationSettings:
    """What counts as correct.

    Attributes:
        tolerance_mm: Deviation of the outline in mm that the surface Dice forgives.
        connectivity: 6, 18 or 26 neighbours make one lesion (the rules of challenges always take 26).
        matcher: "greedy", "hungarian" or "merge", see `nnunet_imbal.metrics.panoptic_quality`.
        matching_metric: "iou" or "dsc", which decides about a match there.
        matching_threshold: Lowest score of a match there, included.
        lesion_rule: Also score by the rule of a challenge: "brats2023-gli", "-ssa", "-ped", "-men", "-met" or
            "brats-mets2026".
        topology: Also ask whether vessels are whole: clDice, Betti errors and contacts between classes.
        topcow: Also score the circle of Willis as the TopCoW challenge does, see `nnunet_imbal.metrics.topcow_scores`;
            the classes must have the names of its vessels.

    Raises:
        ConfigError: The tolerance is negative or not finite, the threshold lies outside 0..1, or a word or number is
            none of those named.
    """

    tolerance_mm: float = 1.0
    connectivity: int = 26
    matcher: Matcher = "greedy"
    matching_metric: MatchingMetric = "iou"
    matching_threshold: float = 0.5
    lesion_rule: str | None = None
    topology: bool = False
    topcow: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance_mm) and self.tolerance_mm >= 0):
            raise ConfigError(f"tolerance {self.tolerance_mm} mm: expected a number of mm, 0 or more")
        if self.connectivity not in (6, 18, 26):
            raise ConfigError(f"connectivity {self.connectivity}: expected 6, 18 or 26 neighbours")
        check_matching(self.matching_metric, self.matching_threshold, self.matcher)
        if self.lesion_rule not in (None, *LESION_RULES):
            raise ConfigError(f"lesion rule {self.lesion_rule!r}: expected one of {', '.join(LESION_RULES)}")


@dataclass(frozen=True)
class DatasetLabels:
    """The classes and regions of a dataset.

    Attributes:
        classes: Name of a class or region -> the label values it unites.
        ignore: Label of the voxels that nobody annotated, or None.
        source: The file that declares them.
    """

    classes: dict[str, tuple[int, ...]]
    ignore: int | None
    source: Path

    @property
    def values(self) -> set[int]:
        """All label values a file may hold."""
        special = {0} if self.ignore is None else {0, self.ignore}
        return special.union(*self.classes.values())


def evaluate_folders(
    prediction: str | Path,
    reference: str | Path,
    out: str | Path,
    *,
    dataset_json: str | Path | None = None,
    settings: EvaluationSettings | None = None,
    workers: int = 1,
) -> Json:
    """Compare every reference with the prediction of the same name and write the result as JSON.

    Args:
        prediction: Folder with predicted label maps. Maps without a reference are left out, with a warning.
        reference: Folder with the expert's label maps.
        out: JSON file to write, at once and at the end. Only an earlier evaluation is ever overwritten.
        dataset_json: nnU-Net's ``dataset.json``. Default: the one beside the reference folder, in it, or in the
            prediction folder; if there is none, every label value found in the files is a class of its own.
        settings: Tolerance, connectivity, matching of lesions, rule of a challenge.
        workers: Cases measured at the same time, each in its own process.

    Returns:
        What the file holds. Numbers that are not defined are None (null in the file): Dice and surface Dice if a
        class is in neither map (0 if it is in one of them), the distance also if it is in one of them, recall and
        CC-Dice without lesions, precision without predicted components, panoptic quality without either. The key
        ``lesionwise`` of a class is None without a rule, ``topology`` (also of a case: all classes merged, with their
        contacts) and ``topcow`` (of a case and of all) unless asked for. Sizes are in mm³, distances in mm, indices
        and spacings in the order Z, Y, X. Mean, median and (population) standard deviation run over the ``n`` cases
        with a value; recall, precision and F1 of the summary count the lesions of all cases together.

    Raises:
        DataError: A folder or file is missing, empty or damaged, or ``out`` is some other file.
        GeometryError: Prediction and reference do not share one grid.
        LabelError: A file holds a label that ``dataset.json`` does not declare.
        ConfigError: TopCoW's scores are wanted and the classes are not its vessels.
    """
    settings = settings or EvaluationSettings()
    out = _prepare_output(Path(out))
    pairs = _pair_files(Path(prediction), Path(reference))
    declared = _find_labels(Path(prediction), Path(reference), dataset_json)
    with _executor(min(workers, len(pairs))) as executor:
        labels = declared or _observed_labels(pairs, Path(reference), executor)
        cow = topcow_classes(labels.classes) if settings.topcow else None
        measure = partial(_evaluate_case, labels=labels, settings=settings, cow=cow)
        cases = list(track(_map(executor, measure, pairs), len(pairs), "Measuring"))
    patients = [case["topcow"] for case in cases]
    cases = [case | {"topcow": patient_entry(case["topcow"], cow.names) if cow else None} for case in cases]
    summary = {name: _summarise([case["classes"][name] for case in cases]) for name in labels.classes}
    result = {
        "schema": SCHEMA,
        "version": __version__,
        "settings": asdict(settings),
        "prediction_folder": str(Path(prediction).resolve()),
        "reference_folder": str(Path(reference).resolve()),
        "classes": {name: list(values) for name, values in labels.classes.items()},
        "ignore_label": labels.ignore,
        "cases": cases,
        "summary": summary,
        "mean_foreground_dice": _statistics([s["dice"]["mean"] for s in summary.values()])["mean"],
        "topology": _summarise_scores([case["topology"] for case in cases if case["topology"]]),
        "topcow": patients_entry(patients, cow.names) if cow else None,
    }
    write_atomically(out, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def load_evaluation(path: str | Path) -> Json:
    """Read a file written by `evaluate_folders`.

    Raises:
        DataError: The file is missing, is not JSON, or is not an evaluation of this version.
    """
    content = _read_json(Path(path))
    schema = content.get("schema")
    if schema != SCHEMA:
        raise DataError(f"{path} has the schema {schema!r}, expected {SCHEMA!r}; write it with: nnunet-imbal evaluate")
    return content


def read_dataset_labels(path: str | Path) -> DatasetLabels:
    """Read the classes, regions and the ignore label from nnU-Net's ``dataset.json``.

    Raises:
        DataError: The file is missing or is not JSON.
        LabelError: Its labels are not what nnU-Net v2 writes, ``{"name": value}`` or ``{"name": [values]}``.
    """
    path = Path(path)
    declared = _read_json(path).get("labels")
    if not isinstance(declared, Mapping):
        raise LabelError(f'{path} has no "labels"; expected {{"background": 0, "lesion": 1}} or the like')
    ignore = declared.get("ignore")
    if ignore is not None:
        ignore, *others = _label_values(path, "ignore", ignore)
        if others:
            raise LabelError(f"{path}: label 'ignore' is {declared['ignore']}, expected one number above 0")
    classes = {
        name: _label_values(path, name, values)
        for name, values in declared.items()
        if name not in ("background", "ignore")
    }
    if not classes:
        raise LabelError(f"{path} declares no class beside the background")
    return DatasetLabels(classes, ignore, path)


def print_summary(result: Json, console: Console | None = None) -> None:
    """Print one line per class to the terminal."""
    title = f"{len(result['cases'])} cases, mean foreground Dice {_text(result['mean_foreground_dice'])}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("class", overflow="fold")
    for heading in (
        "Dice",
        "surface\nDice",
        "HD95\nmm",
        "lesions\nfound",
        "recall",
        "precision",
        "F1",
        "false+\nper case",
    ):
        table.add_column(heading, justify="right")
    for name, s in result["summary"].items():
        means = [_text(s[metric]["mean"]) for metric in ("dice", "surface_dice", "hd95_mm")]
        shares = [_text(s[key]) for key in ("recall", "precision", "f1", "false_positives_per_case")]
        table.add_row(name, *means, f"{s['detected']}/{s['lesions']}", *shares)
    console = console or Console()
    console.print(table, _lesion_table(result), *([_topology_table(result)] if result["topology"] else ()))
    if result.get("topcow"):
        console.print(*topcow_tables(result["topcow"]))


def _lesion_table(result: Json) -> Table:
    """Each lesion counts the same here, whatever its size."""
    settings = result["settings"]
    rule = settings["lesion_rule"]
    title = f"Lesion by lesion; match: {settings['matcher']}, {settings['matching_metric'].upper()}"
    title += f" {settings['matching_threshold']:g}" + (f"; LW: {rule}" if rule else "")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("class", overflow="fold")
    columns = [*_LESION_COLUMNS, *(_RULE_COLUMNS if rule else ())]
    for heading, _ in columns:
        table.add_column(heading, justify="right")
    for name, summary in result["summary"].items():
        table.add_row(name, *(_text(_look_up(summary, path)["mean"]) for _, path in columns))
    return table


def _topology_table(result: Json) -> Table:
    """Are the vessels whole? Means over the cases."""
    merged = result["topology"]
    title = f"Topology; classes that touch: F1 {_text(merged['contact_f1']['mean'])}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("class", overflow="fold")
    for heading, _ in _TOPOLOGY_COLUMNS:
        table.add_column(heading, justify="right")
    rows = {name: summary["topology"] for name, summary in result["summary"].items()} | {"all as one": merged}
    for name, scores in rows.items():
        table.add_row(name, *(_text(scores[key]["mean"]) for _, key in _TOPOLOGY_COLUMNS))
    return table


def _look_up(content: Json, path: str) -> Json:
    return reduce(lambda level, key: level[key], path.split("."), content)


# ------------------------------------------------------------------------------------------------ files and labels


def _prepare_output(out: Path) -> Path:
    """Fail before hours of measuring, not after."""
    if out.exists():
        try:
            load_evaluation(out)
        except (DataError, OSError) as error:
            raise DataError(f"{out} exists and is no evaluation; it is left as it is, choose another name") from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {out.parent}: {error.strerror}") from error
    return out


def _pair_files(prediction: Path, reference: Path) -> list[tuple[str, Path, Path]]:
    references, predictions = list_label_files(reference), list_label_files(prediction)
    missing = [case for case in references if case not in predictions]
    if missing:
        raise DataError(
            f"{prediction} lacks {len(missing)} of {len(references)} predictions: {_shorten(missing)}; "
            "predict them, or evaluate against a folder without them"
        )
    extra = [case for case in predictions if case not in references]
    if extra:
        warnings.warn(f"{len(extra)} predictions have no reference: {_shorten(extra)}; left out", stacklevel=3)
    return [(case, predictions[case], references[case]) for case in references]


def _find_labels(prediction: Path, reference: Path, given: str | Path | None) -> DatasetLabels | None:
    if given is not None:
        return read_dataset_labels(given)
    for folder in (reference.resolve().parent, reference, prediction):
        if (folder / "dataset.json").is_file():
            return read_dataset_labels(folder / "dataset.json")
    return None


def _observed_labels(pairs: list[tuple[str, Path, Path]], reference: Path, executor: Executor | None) -> DatasetLabels:
    """Also ask the predictions: a class that is only ever a false alarm must not go unseen."""
    files = list(chain.from_iterable(paths for _, *paths in pairs))
    values = sorted(set().union(*_map(executor, _values_in_file, files)))
    if not values:
        raise LabelError(f"{reference}: all label maps are empty and there is no dataset.json to name the classes")
    return DatasetLabels({str(value): (value,) for value in values}, None, reference)


def _values_in_file(path: Path) -> set[int]:
    return set(_boxes(read_label(path).array))


def _read_json(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def _label_values(path: Path, name: str, values: object) -> tuple[int, ...]:
    listed = values if isinstance(values, list) else [values]
    if not listed or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in listed):
        hint = '; nnU-Net v1 wrote {"1": "lesion"}, turn it round' if isinstance(values, str) else ""
        raise LabelError(f"{path}: label {name!r} is {values!r}, expected a number above 0 or a list of them{hint}")
    return tuple(sorted(set(listed)))


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown


# ------------------------------------------------------------------------------------------------------- measuring


def _evaluate_case(
    pair: tuple[str, Path, Path], labels: DatasetLabels, settings: EvaluationSettings, cow: CowClasses | None
) -> Json:
    case, prediction, reference = pair
    ref, pred = read_label(reference), read_label(prediction)
    check_same_geometry(pred, ref)
    ref_boxes, pred_boxes = (_checked_boxes(volume, labels) for volume in (ref, pred))
    if labels.ignore is not None:
        unknown = ref.array == labels.ignore
        ref.array[unknown] = pred.array[unknown] = 0
    classes = {}
    for name, values in labels.classes.items():
        box = _union([boxes[v] for boxes in (ref_boxes, pred_boxes) for v in values if v in boxes])
        found, truth = (np.isin(volume.array[box], values) for volume in (pred, ref))
        classes[name] = _measure_class(found, truth, box, ref, settings)
    return {
        "case": case,
        "prediction": str(prediction.resolve()),
        "reference": str(reference.resolve()),
        "shape": list(ref.array.shape),
        "spacing_mm": list(ref.spacing),
        "classes": classes,
        "topology": vessel_tree_entry(*_in_the_plane(pred.array, ref.array, ref)[:2]) if settings.topology else None,
        "topcow": score_patient(pred.array, ref.array, ref, cow.values) if cow else None,
    }


def _checked_boxes(volume: Volume, labels: DatasetLabels) -> dict[int, Box]:
    boxes = _boxes(volume.array)
    unknown = sorted(set(boxes) - labels.values)
    if unknown:
        raise LabelError(
            f"{volume.path} holds the label {', '.join(map(str, unknown))}, "
            f"but {labels.source} declares {', '.join(map(str, sorted(labels.values)))}; correct one of them"
        )
    return boxes


def _boxes(array: NDArray[Any]) -> dict[int, Box]:
    """Bounding box of each label that occurs, found in one pass: classes of a whole body are small."""
    return {value: box for value, box in enumerate(find_objects(array), start=1) if box}


def _union(boxes: list[Box]) -> Box:
    if not boxes:
        return (slice(0, 0),) * 3
    return tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in zip(*boxes, strict=True))


def _measure_class(
    pred: NDArray[np.bool_], ref: NDArray[np.bool_], box: Box, volume: Volume, settings: EvaluationSettings
) -> Json:
    voxel, corner = math.prod(volume.spacing), [side.start for side in box]
    plane = _in_the_plane(pred, ref, volume)
    surfaces = surface_distances(*plane)
    match = match_lesions(pred, ref, settings.connectivity)
    cells = cc_dice(pred, ref, volume.spacing, settings.connectivity)
    matching = (settings.matching_metric, settings.matching_threshold, settings.matcher, settings.connectivity)
    return {
        "dice": number(dice(pred, ref)),
        "surface_dice": number(surfaces.dice(settings.tolerance_mm)),
        "hd95_mm": number(surfaces.hausdorff(95)),
        "cc_dice": number(cells.mean()),
        "volume_reference_mm3": int(ref.sum()) * voxel,
        "volume_prediction_mm3": int(pred.sum()) * voxel,
        **_describe_match(match, cells, corner, voxel),
        "panoptic": panoptic_entry(pred, ref, *matching),
        "lesionwise": lesionwise_entry(*plane, settings.lesion_rule) if settings.lesion_rule else None,
        "topology": topology_entry(*plane[:2], corner[-plane[0].ndim :]) if settings.topology else None,
    }


def _in_the_plane(
    pred: NDArray[Any], ref: NDArray[Any], volume: Volume
) -> tuple[NDArray[Any], NDArray[Any], tuple[float, ...]]:
    """A single slice is measured as a picture; as a volume it would consist of border only."""
    if volume.array.shape[0] > 1:
        return pred, ref, volume.spacing
    flat = pred.reshape(pred.shape[-2:]) if pred.size else np.zeros((0, 0), pred.dtype)
    return flat, ref.reshape(flat.shape), volume.spacing[1:]


def _describe_match(match: LesionMatch, cells: CCDice, corner: list[int], voxel: float) -> Json:
    return {
        "lesions": [
            {
                **_describe_lesion(lesion, corner, voxel),
                "overlap_voxels": lesion.overlap_voxels,
                "detected": lesion.detected,
                "cc_dice": float(score),
            }
            for lesion, score in zip(match.reference, cells.components, strict=True)
        ],
        "predicted_components": len(match.prediction),
        "false_positives": [_describe_lesion(lesion, corner, voxel) for lesion in match.false_positives],
        "false_positive_count": len(match.false_positives),
        "recall": number(match.recall),
        "precision": number(match.precision),
        "f1": number(match.f1),
    }


def _describe_lesion(lesion: Lesion, corner: list[int], voxel: float) -> Json:
    return {
        "id": lesion.id,
        "volume_mm3": lesion.voxels * voxel,
        "voxels": lesion.voxels,
        "centroid": [mean + start for mean, start in zip(lesion.centroid, corner, strict=True)],
    }


# ----------------------------------------------------------------------------------------------------- summing up


def _summarise(cases: list[Json]) -> Json:
    lesions = [lesion for case in cases for lesion in case["lesions"]]
    detected = sum(lesion["detected"] for lesion in lesions)
    predicted = sum(case["predicted_components"] for case in cases)
    false_positives = sum(case["false_positive_count"] for case in cases)
    recall, precision = share(detected, len(lesions)), share(predicted - false_positives, predicted)
    metrics = ("dice", "surface_dice", "hd95_mm", "cc_dice")
    return {
        **{metric: _statistics([case[metric] for case in cases]) for metric in metrics},
        "cc_dice_of_lesions": _statistics([lesion["cc_dice"] for lesion in lesions]),
        "lesions": len(lesions),
        "detected": detected,
        "predicted_components": predicted,
        "recall": number(recall),
        "precision": number(precision),
        "f1": number(f1_score(recall, precision)),
        "false_positives_per_case": false_positives / len(cases),
        "recall_by_size": _size_table(lesions),
        "panoptic": _summarise_scores([case["panoptic"] for case in cases]),
        "lesionwise": _summarise_scores([case["lesionwise"] for case in cases if case["lesionwise"]]),
        "topology": _summarise_scores([case["topology"] for case in cases if case["topology"]]),
    }


def _summarise_scores(entries: list[Json]) -> Json | None:
    """Sums of counts and statistics of scores; None if nothing was scored."""
    if not entries:
        return None
    columns = {key: [entry[key] for entry in entries] for key in entries[0]}
    return {key: sum(values) if key in _COUNTS else _statistics(values) for key, values in columns.items()}


def _size_table(lesions: list[Json]) -> list[Json]:
    bins = recall_by_size([x["volume_mm3"] for x in lesions], [x["detected"] for x in lesions])
    return [
        {"low_mm3": b.low, "high_mm3": b.high, "lesions": b.lesions, "detected": b.detected, "recall": b.recall}
        for b in bins
    ]


def _statistics(values: Iterable[float | None]) -> Json:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "median": None, "std": None, "n": 0}
    return {
        "mean": float(np.mean(known)),
        "median": float(np.median(known)),
        "std": float(np.std(known)),
        "n": len(known),
    }


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# ------------------------------------------------------------------------------------------------------ processes


@contextmanager
def _executor(workers: int) -> Iterator[Executor | None]:
    """None for one worker. Spawned, because a forked child may inherit a lock of a thread it does not have."""
    if workers <= 1:
        yield None
        return
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield executor
    except BrokenProcessPool as error:
        raise ImbalError(
            "a worker process was killed, probably for want of memory; try again with fewer workers "
            "(a script of your own must also start its work below `if __name__ == '__main__':`)"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _map(executor: Executor | None, function: Any, items: list[Any]) -> Iterator[Any]:
    return executor.map(function, items) if executor else map(function, items)
