"""The operating point of a model: chosen on the validation cases of its folds, kept beside its plans."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_imbal._progress import track
from nnunet_imbal._version import __version__
from nnunet_imbal.errors import DataError
from nnunet_imbal.io import file_checksum, write_atomically
from nnunet_imbal.metrics import FrocCounts, froc_counts
from nnunet_imbal.operating_point.channels import (
    Channels,
    ClassPoint,
    decide,
    read_channels,
    reference_mask,
    score_maps,
)
from nnunet_imbal.operating_point.choice import (
    THRESHOLDS,
    VOLUMES_MM3,
    Criterion,
    Fit,
    Scores,
    fit_class,
    is_better,
    loses_dice,
    summarise,
)
from nnunet_imbal.operating_point.validation import (
    ValidationCase,
    checkpoint_checksums,
    find_validation,
    load_case,
)

__all__ = [
    "FILE_NAME",
    "ClassChoice",
    "OperatingPoint",
    "check_model",
    "check_target",
    "choose_operating_point",
    "load_operating_point",
]

FILE_NAME = "operating_point.json"

_FORMAT = 1  # raise it whenever an older file would be read wrongly
_GROUPS = 5  # of the cases of a single fold

Points = Mapping[str, ClassPoint]


@dataclass(frozen=True)
class ClassChoice:
    """What was chosen for one class, and what it is worth.

    Attributes:
        labels: Label values that make the class.
        point: Threshold and smallest volume to use.
        stock: Scores of stock nnU-Net on the validation cases.
        fitted: Scores of the best point on the cases it was chosen on, the other classes as in stock nnU-Net: too good
            to be true.
        held_out: Scores of label maps decided for all classes together, each case at points chosen without its fold.
        reason: Why the point is what it is, one sentence.
    """

    labels: tuple[int, ...]
    point: ClassPoint
    stock: Scores
    fitted: Scores
    held_out: Scores
    reason: str


@dataclass(frozen=True)
class OperatingPoint:
    """Where a model decides, see `decide`.

    Attributes:
        classes: Name -> choice, in the order of the channels.
        criterion: What was looked for.
        cases: Validation cases it was chosen on.
        checkpoints: Fold -> SHA-256 of the final checkpoint whose predictions it was chosen on.
        origin: Checksum of the probabilities and label maps it was chosen on.
    """

    classes: dict[str, ClassChoice]
    criterion: Criterion
    cases: int
    checkpoints: dict[str, str]
    origin: str

    @property
    def points(self) -> dict[str, ClassPoint]:
        """What `decide` needs."""
        return {name: choice.point for name, choice in self.classes.items()}

    @property
    def is_stock(self) -> bool:
        """Whether it decides everything as nnU-Net does."""
        return all(point == ClassPoint() for point in self.points.values())

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        content = {"format": _FORMAT, "made_by": f"nnunet-imbal {__version__}", **asdict(self)}
        write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def choose_operating_point(
    model: str | Path,
    *,
    folds: Sequence[int] | None = None,
    references: str | Path | None = None,
    criterion: Criterion | None = None,
    workers: int = 2,
) -> OperatingPoint:
    """Choose for each class a threshold and a smallest volume on the validation predictions of nnU-Net's folds.

    Class by class, the others as in stock nnU-Net: the best point by the criterion, kept only if it is also better on
    cases it was not chosen on (leave one fold out; of a single fold one fifth of its cases). Then all kept points
    together, on label maps: if that does not hold for a class, all of them are given up.

    Args:
        model: Results folder of nnU-Net, validated with ``--npz``.
        folds: Numbers of the folds; default: all that were validated.
        references: Folder with the expert's label maps; default: ``gt_segmentations`` of the preprocessed dataset.
        criterion: What to look for; default: the highest lesion-wise F1.
        workers: Cases measured at the same time; each needs about four times the memory of its probabilities.

    Raises:
        DataError: Files are missing, damaged or do not belong together; there are fewer than two cases.
        ConfigError: See `find_validation`.
        GeometryError: Label maps or probabilities do not share one grid.
        LabelError: ``dataset.json`` does not tell what the channels mean.
    """
    model, criterion = Path(model), criterion or Criterion()
    cases = find_validation(model, folds, references)
    channels = read_channels(model / "dataset.json")
    groups = _groups(cases)
    swept = _over_cases("Trying thresholds", workers, partial(_sweep, channels=channels), cases)
    fits = {name: fit_class([counts[name] for counts in swept], groups, criterion) for name in channels.members}
    kept = {name: fit for name, fit in fits.items() if fit.point != ClassPoint()}
    held_out = [{name: fit.held_out[group] for name, fit in kept.items()} for group in groups]
    applied = _over_cases("Testing the choice", workers, partial(_apply, channels=channels), cases, held_out)
    tested = {name: summarise([counts[name] for counts in applied]) for name in channels.members}
    classes = {name: _choice(channels.members[name], fit, tested[name]) for name, fit in fits.items()}
    return OperatingPoint(
        classes=_veto(classes, criterion),
        criterion=criterion,
        cases=len(cases),
        checkpoints=checkpoint_checksums(model, [case.fold for case in cases]),
        origin=_origin(cases),
    )


def load_operating_point(path: str | Path) -> OperatingPoint:
    """Read what `OperatingPoint.save` wrote.

    Raises:
        DataError: The file cannot be read, or is no operating point of this version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']} instead of {_FORMAT}")
        known = {name: content[name] for name in OperatingPoint.__dataclass_fields__}
        known["criterion"] = Criterion(**known["criterion"])
        known["classes"] = {name: _read_choice(choice) for name, choice in known["classes"].items()}
        return OperatingPoint(**known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no operating point ({error}); choose it again: nnunet-imbal operating-point"
        ) from error


def check_target(path: str | Path) -> None:
    """Make sure, before the work, that its result can be written without loss of anything else.

    Raises:
        DataError: The folder is missing, or the file exists and is no operating point.
    """
    path = Path(path)
    if not path.resolve().parent.is_dir():
        raise DataError(f"{path.resolve().parent} is no folder; make it first")
    try:
        if path.exists():
            load_operating_point(path)
    except DataError as error:
        raise DataError(f"{path} exists and is no operating point; it is left as it is, choose another name") from error


def check_model(point: OperatingPoint, model: str | Path, folds: Sequence[int | str]) -> None:
    """Make sure that an operating point belongs to a model as it is now.

    Raises:
        DataError: The classes are others, or a fold was trained again since.
    """
    channels = read_channels(Path(model) / "dataset.json")
    if {name: choice.labels for name, choice in point.classes.items()} != dict(channels.members):
        raise DataError(
            f"{FILE_NAME} in {model} is for the classes {', '.join(point.classes)}, not for its dataset.json"
        )
    known = [int(fold) for fold in folds if str(fold) in point.checkpoints]
    for fold, checksum in checkpoint_checksums(model, known).items():
        if checksum != point.checkpoints[fold]:
            raise DataError(
                f"fold {fold} of {model} was trained again since its operating point was chosen. Choose it again with "
                "`nnunet-imbal operating-point`, or predict with --operating-point off"
            )


def _groups(cases: Sequence[ValidationCase]) -> list[int]:
    """What is left out together: folds, or of a single fold every fifth case."""
    if len(cases) < 2:
        raise DataError(f"{len(cases)} validation case: a choice and its test need two at least; train more folds")
    folds = [case.fold for case in cases]
    return folds if len(set(folds)) > 1 else [number % _GROUPS for number in range(len(cases))]


def _over_cases(
    title: str, workers: int, work: Callable[..., dict[str, FrocCounts]], *items: Sequence[Any]
) -> list[dict[str, FrocCounts]]:
    with ThreadPoolExecutor(workers) as pool:  # kernels and unpacking run beside each other
        return list(track(pool.map(work, *items), len(items[0]), title))


def _sweep(case: ValidationCase, channels: Channels) -> dict[str, FrocCounts]:
    """What each class shows at all points, the other classes as in stock nnU-Net."""
    probs, truth = load_case(case, channels)
    known = np.ones(truth.array.shape, bool) if channels.ignore is None else truth.array != channels.ignore
    count = partial(froc_counts, spacing=truth.spacing, thresholds=THRESHOLDS, volumes_mm3=VOLUMES_MM3)
    scores = zip(channels.members.items(), score_maps(probs, channels), strict=True)
    return {name: count(score * known, reference_mask(truth.array, values)) for (name, values), score in scores}


def _apply(case: ValidationCase, points: Points, channels: Channels) -> dict[str, FrocCounts]:
    """What the label map shows that `decide` makes at these points."""
    probs, truth = load_case(case, channels)
    labels = decide(probs, channels, points, truth.spacing)
    if channels.ignore is not None:
        labels[truth.array == channels.ignore] = 0
    found = {name: reference_mask(labels, values).astype(np.float32) for name, values in channels.members.items()}
    return {
        name: froc_counts(found[name], reference_mask(truth.array, values), truth.spacing, thresholds=(0.5,))
        for name, values in channels.members.items()
    }


def _choice(labels: tuple[int, ...], fit: Fit, held_out: Scores) -> ClassChoice:
    return ClassChoice(labels, fit.point, fit.stock, fit.fitted, held_out, fit.reason)


def _veto(classes: dict[str, ClassChoice], criterion: Criterion) -> dict[str, ClassChoice]:
    """Give up all points if together they do not hold: the thresholds of classes compete for voxels."""
    failing = [name for name, choice in classes.items() if not _holds(choice, criterion)]
    if not failing:
        return classes
    reason = f"stock: decided for all classes together, the points did not hold for {', '.join(failing)}"
    return {
        name: replace(choice, point=ClassPoint(), held_out=choice.stock, reason=reason)
        for name, choice in classes.items()
    }


def _holds(choice: ClassChoice, criterion: Criterion) -> bool:
    better = choice.point == ClassPoint() or is_better(choice.held_out, choice.stock, criterion)
    return better and not loses_dice(choice.held_out, choice.stock, criterion)


def _origin(cases: Sequence[ValidationCase]) -> str:
    checksums = [file_checksum(file) for case in cases for file in (case.probabilities, case.reference)]
    return hashlib.sha256(json.dumps([_FORMAT, *checksums]).encode()).hexdigest()


def _read_choice(content: Mapping[str, Any]) -> ClassChoice:
    scores = {name: Scores(**content[name]) for name in ("stock", "fitted", "held_out")}
    return ClassChoice(tuple(content["labels"]), ClassPoint(**content["point"]), reason=content["reason"], **scores)
