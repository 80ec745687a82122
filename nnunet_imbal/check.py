"""``nnunet-imbal check``: look for faults in a raw nnU-Net dataset before hours of training.

Files are only read; nothing is changed, repaired or written.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.ndimage import find_objects

from nnunet_imbal._progress import track
from nnunet_imbal.errors import ConfigError, DataError, ImbalError, LabelError
from nnunet_imbal.evaluation import DatasetLabels, read_dataset_labels
from nnunet_imbal.io import FILE_ENDINGS, Volume, check_same_geometry, read_image, read_label

__all__ = [
    "Inspection",
    "Problem",
    "RawCase",
    "RawDataset",
    "check_dataset",
    "find_dataset",
    "inspect_dataset",
    "is_unlabelled",
    "list_label_maps",
    "print_problems",
    "read_dataset",
]

_REQUIRED = ("channel_names", "numTraining", "file_ending")  # and labels, which read_dataset_labels asks for
_VOLUMES = (".nii.gz", ".nii", ".mha", ".nrrd")  # one channel per file; a picture may hold three colours
_CHANNEL = re.compile(r"(.+)_\d{4}")
_FOLDS = 5
_RAW = "nnUNet_raw"
_FAULTS = (ImbalError, OSError, MemoryError)


@dataclass(frozen=True)
class Problem:
    """One fault of a dataset.

    Attributes:
        case: The training case, or "" if the dataset as a whole is meant.
        file: The file or folder to correct.
        error: Name of the error type, for example ``"GeometryError"``.
        message: What was found, what was expected and what to do.
        serious: True if training would fail or learn from wrong data; False for a warning.
    """

    case: str
    file: Path
    error: str
    message: str
    serious: bool = True


@dataclass(frozen=True)
class RawCase:
    """The files of one training case.

    Attributes:
        name: What nnU-Net calls it.
        images: One file per channel.
        label: The label map.
    """

    name: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class RawDataset:
    """What a raw dataset says of itself, before any image is read.

    Attributes:
        description: Its ``dataset.json``.
        ending: Of its files, for example ``".nii.gz"``.
        labels: Its classes; None if they are not declared as nnU-Net wants them.
        cases: The training cases, by name.
    """

    description: Path
    ending: str
    labels: DatasetLabels | None
    cases: tuple[RawCase, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """What reading every voxel of a dataset tells.

    Attributes:
        problems: As `check_dataset` returns them.
        unlabelled: Cases that nobody annotated.
    """

    problems: list[Problem]
    unlabelled: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """What one case holds; ``values`` is None if its label map cannot be read."""

    problems: list[Problem]
    values: set[int] | None = None
    unlabelled: bool = False


def check_dataset(folder: str | Path, *, workers: int = 2) -> list[Problem]:
    """Check a raw dataset: its ``dataset.json``, its file names, and every voxel of its training cases.

    Errors are: a ``dataset.json`` that nnU-Net refuses; no training case; an image or a label map that is missing,
    damaged, cut off, not 2-D or 3-D, or holds NaN or infinity; files of one case on different grids; labels that are
    no whole numbers or that ``dataset.json`` does not declare. Warnings are: a constant image, a class that no case
    shows, too few cases for five folds, files that nnU-Net leaves out. A case that is all ignore label is fine, see
    `is_unlabelled`.

    Args:
        folder: Holds ``dataset.json``, ``imagesTr`` and ``labelsTr``, or a ``dataset.json`` that lists its files.
        workers: Cases read at the same time, each in its own thread. A case needs the memory of two to three
            volumes, however many channels it has.

    Returns:
        All problems, errors first, each group sorted by case; the same files give the same list. Empty if nothing
        is wrong. The voxels of colour pictures and of formats that `read_image` does not know are not looked at;
        a warning says so.

    Raises:
        ConfigError: ``workers`` is below 1.
    """
    return inspect_dataset(folder, workers=workers).problems


def inspect_dataset(folder: str | Path, *, workers: int = 2) -> Inspection:
    """Check a raw dataset as `check_dataset` does, and tell which cases nobody annotated.

    Args:
        folder: See `check_dataset`.
        workers: See `check_dataset`.

    Raises:
        ConfigError: ``workers`` is below 1.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; expected 1 or more")
    dataset, problems = read_dataset(Path(folder))
    cases = list(track(_examine_all(dataset, workers), len(dataset.cases), "Checking"))
    problems += [problem for seen in cases for problem in seen.problems]
    unlabelled = tuple(case.name for case, seen in zip(dataset.cases, cases, strict=True) if seen.unlabelled)
    problems += _absent_classes(dataset, [seen.values for seen in cases if seen.values is not None])
    problems += _too_few_labelled(dataset, len(unlabelled))
    return Inspection(sorted(problems, key=lambda problem: (not problem.serious, problem.case)), unlabelled)


def is_unlabelled(labels: NDArray[Any], ignore: int | None, content: NDArray[np.bool_] | None = None) -> bool:
    """Whether nobody annotated a case: each voxel with content is to be ignored.

    Args:
        labels: ``(Z, Y, X)`` label map.
        ignore: Label of the voxels that nobody annotated; None: all are annotated.
        content: ``(Z, Y, X)``, True where an image is not 0. Outside, nnU-Net expects background, also in a case that
            nobody annotated. None: the label map must be ``ignore`` everywhere.

    Example:
        >>> is_unlabelled(np.array([[[0, 2, 2]]]), 2, np.array([[[False, True, True]]]))
        True
    """
    if ignore is None:
        return False
    known = labels != ignore
    if not known.any():
        return True
    return content is not None and not known.all() and not (known & (content | (labels != 0))).any()


def find_dataset(name: str, variable: str = _RAW) -> Path:
    """Find a dataset by its path, number or name.

    Args:
        name: A folder, or a dataset number (``4``) or name (``Dataset004_Hippocampus``) in ``$nnUNet_raw``. A folder
            whose name is a number is written ``./4``.
        variable: Environment variable that names the folder of datasets.

    Returns:
        The dataset folder.

    Raises:
        ConfigError: There is no such folder, several datasets have this number, or the variable is not set.
    """
    if not name.isdecimal() and Path(name).is_dir():
        return Path(name)
    raw = os.environ.get(variable)
    if not raw:
        raise ConfigError(f"{name} is no folder, and {variable} is not set: export {variable}=<folder>, or give a path")
    pattern = f"Dataset{int(name):03d}_*" if name.isdecimal() else "Dataset*"
    datasets = {path.name: path for path in sorted(Path(raw).glob(pattern)) if path.is_dir()}
    found = list(datasets) if name.isdecimal() else [each for each in datasets if each == name]
    if len(found) == 1:
        return datasets[found[0]]
    if found:
        raise ConfigError(f"{raw} holds {' and '.join(found)}; nnU-Net cannot tell them apart, renumber one of them")
    present = sorted(path.name for path in Path(raw).glob("Dataset*"))
    raise ConfigError(f"{name} is no folder, and no dataset in {variable}={raw}, which holds {_shorten(present)}")


def list_label_maps(folder: str | Path) -> dict[str, Path]:
    """Label maps of the training cases of a raw dataset, by case; faults are left to `check_dataset`."""
    return {case.name: case.label for case in read_dataset(Path(folder))[0].cases if case.label.is_file()}


def print_problems(
    folder: str | Path, problems: list[Problem], console: Console | None = None, *, unlabelled: int = 0
) -> int:
    """Print the problems of a dataset as a table, and how many cases it has.

    Args:
        folder: The dataset folder that was checked; file names are shown relative to it.
        problems: What `check_dataset` returned.
        console: Where to print; default: standard output.
        unlabelled: How many of its cases nobody annotated.

    Returns:
        1 if a problem is serious, else 0: the exit status of the command.
    """
    console = console or Console()
    if problems:
        console.print(_table(Path(folder), problems))
    serious = sum(problem.serious for problem in problems)
    cases = _count(len(read_dataset(Path(folder))[0].cases), "case") + (
        f" ({unlabelled} unlabelled)" * bool(unlabelled)
    )
    verdict = f"{_count(serious, 'error')}, {_count(len(problems) - serious, 'warning')}"
    console.print(f"{cases}, {verdict if problems else 'nothing wrong'}", highlight=False)
    return int(serious > 0)


def _table(folder: Path, problems: list[Problem]) -> Table:
    table = Table(title=escape(str(folder)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("case", overflow="fold")
    table.add_column("error", no_wrap=True)
    table.add_column("what", overflow="fold", ratio=1)
    for problem in problems:
        state = "[red]error[/]" if problem.serious else "[yellow]warning[/]"
        what = problem.message.replace(f"{folder}{os.sep}", "")
        table.add_row(state, escape(problem.case or "(all)"), problem.error, escape(what))
    return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _shorten(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _problem(error: BaseException, case: str, file: Path, serious: bool = True) -> Problem:
    if isinstance(error, ImbalError):
        return Problem(case, file, type(error).__name__, str(error), serious)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Problem(case, file, DataError.__name__, f"{file} cannot be read ({reason})", serious)


@contextmanager
def _noting(problems: list[Problem], case: str, file: Path) -> Iterator[None]:
    """An error inside becomes one more problem, and the check goes on."""
    try:
        yield
    except _FAULTS as error:
        problems.append(_problem(error, case, file))


# ------------------------------------------------------------------------------------------- dataset.json and names


def read_dataset(folder: Path) -> tuple[RawDataset, list[Problem]]:
    """Read ``dataset.json`` and list the cases; no image is read.

    Args:
        folder: See `check_dataset`.

    Returns:
        The dataset, as far as it could be read, and its problems that show without reading an image.
    """
    path = folder / "dataset.json"
    problems: list[Problem] = []
    labels = None
    try:
        labels = read_dataset_labels(path)
    except LabelError as error:
        problems.append(_problem(error, "", path))
    except DataError as error:
        return RawDataset(path, "", None), [_problem(error, "", path)]
    content = json.loads(path.read_text(encoding="utf-8"))
    faults = [*_description_faults(path, content), *(_label_faults(path, content, labels) if labels else ())]
    problems += [_problem(fault, "", path) for fault in faults]
    ending = content.get("file_ending")
    if not _is_ending(ending):
        return RawDataset(path, "", labels), problems
    cases: tuple[RawCase, ...] = ()
    with _noting(problems, "", folder):
        cases = _list_cases(folder, content, problems)
        problems += _count_faults(path, content, cases)
        problems += _not_looked_at(path, ending)
    return RawDataset(path, ending, labels, cases), problems


def _is_ending(value: object) -> bool:
    return isinstance(value, str) and value.startswith(".")


def _description_faults(path: Path, content: dict[str, Any]) -> Iterator[ImbalError]:
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        hint = '; nnU-Net v1 said "modality", v2 says "channel_names"' if "modality" in content else ""
        yield DataError(f"{path} lacks {', '.join(missing)}, which nnU-Net needs{hint}")
    channels = content.get("channel_names", {"0": ""})
    if not (isinstance(channels, dict) and channels):
        yield DataError(f'{path}: channel_names is {channels!r}, expected {{"0": "CT"}} or the like')
    ending = content.get("file_ending", ".nii.gz")
    if not _is_ending(ending):
        yield DataError(f'{path}: file_ending is {ending!r}, expected ".nii.gz" or the like')


def _label_faults(path: Path, content: dict[str, Any], labels: DatasetLabels) -> Iterator[ImbalError]:
    background = content["labels"].get("background")
    if background != 0:
        yield LabelError(f"{path}: the label of background is {background!r}, expected 0")
    highest = max(max(values) for values in labels.classes.values())
    values = sorted(labels.values)
    if labels.ignore is not None and labels.ignore != highest + 1:
        yield LabelError(
            f"{path}: the label of ignore is {labels.ignore}, but the highest class is {highest}; "
            f"nnU-Net needs {highest + 1}"
        )
    elif values != list(range(len(values))):
        yield LabelError(f"{path} declares the labels {values}; nnU-Net needs 0, 1, 2, ... without a gap")
    order, count = content.get("regions_class_order"), len(labels.classes)
    has_regions = any(len(each) > 1 for each in labels.classes.values())
    if has_regions and not (isinstance(order, list) and len(order) == count):
        yield LabelError(
            f"{path} declares regions, and regions_class_order is {order!r}; "
            f"expected {count} labels, one for each region, later ones drawn over earlier ones"
        )


def _list_cases(folder: Path, content: dict[str, Any], problems: list[Problem]) -> tuple[RawCase, ...]:
    ending, channels = content["file_ending"], content.get("channel_names")
    expected = len(channels) if isinstance(channels, dict) and channels and ending in _VOLUMES else None
    if "dataset" in content:
        cases = _listed_cases(folder, content["dataset"])
    else:
        cases = _cases_in_folders(folder, ending, problems)
    for case in cases:
        faults = _name_faults(case, expected, None if "dataset" in content else ending)
        problems += [_problem(fault, case.name, case.label) for fault in faults]
    return cases


def _listed_cases(folder: Path, listed: Any) -> tuple[RawCase, ...]:
    """nnU-Net also takes a table of files in ``dataset.json``, with paths relative to the dataset."""
    try:
        return tuple(
            RawCase(name, tuple(_expand(folder, image) for image in files["images"]), _expand(folder, files["label"]))
            for name, files in sorted(listed.items())
        )
    except (AttributeError, KeyError, TypeError) as error:
        expected = '{"CASE": {"images": ["..."], "label": "..."}}'
        raise DataError(f'{folder / "dataset.json"}: "dataset" is not like {expected}') from error


def _expand(folder: Path, file: str) -> Path:
    return folder / os.path.expandvars(file)


def _cases_in_folders(folder: Path, ending: str, problems: list[Problem]) -> tuple[RawCase, ...]:
    images: defaultdict[str, list[Path]] = defaultdict(list)
    for path in _list_files(folder / "imagesTr", ending, problems):
        match = _CHANNEL.fullmatch(path.name.removesuffix(ending))
        if match:
            images[match[1]].append(path)
        else:
            fault = DataError(f"{path} has no channel number; expected a name such as CASE_0000{ending}")
            problems.append(_problem(fault, "", path))
    labels = {path.name.removesuffix(ending): path for path in _list_files(folder / "labelsTr", ending, problems)}
    names = sorted(images.keys() | labels.keys())
    return tuple(RawCase(name, tuple(images[name]), folder / "labelsTr" / f"{name}{ending}") for name in names)


def _list_files(folder: Path, ending: str, problems: list[Problem]) -> list[Path]:
    """Hidden files too: nnU-Net takes macOS' ``._CASE_0000.nii.gz`` for one more case."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; a raw dataset needs dataset.json, imagesTr and labelsTr")
    files = sorted(path for path in folder.iterdir() if not path.is_dir())
    others = [path.name for path in files if _is_other_image(path.name, ending)]
    if others:
        fault = DataError(f"{folder}: nnU-Net leaves out what does not end in {ending}: {_shorten(others)}")
        problems.append(_problem(fault, "", folder, serious=False))
    return [path for path in files if path.name.endswith(ending)]


def _is_other_image(name: str, ending: str) -> bool:
    return not name.endswith(ending) and name.lower().endswith(FILE_ENDINGS)


def _name_faults(case: RawCase, channels: int | None, ending: str | None) -> Iterator[DataError]:
    """``channels`` is None if they cannot be counted by file, ``ending`` if files may have any name."""
    if not case.images:
        yield DataError(f"{case.label} has no image; nnU-Net looks for imagesTr/{case.name}_0000{ending or ''}")
    elif channels is not None:
        found = [path.name for path in case.images]
        expected = [f"{case.name}_{channel:04d}{ending}" for channel in range(channels)] if ending else found
        if found != expected or len(found) != channels:
            wanted = f" ({_shorten(expected)})" if ending else ""
            yield DataError(
                f"case {case.name} has {_count(len(found), 'image')} ({_shorten(found)}), "
                f"dataset.json declares {_count(channels, 'channel')}{wanted}; add or remove images"
            )
    if not os.path.lexists(case.label):
        yield DataError(f"case {case.name} has no label map; expected {case.label}")


def _count_faults(path: Path, content: dict[str, Any], cases: tuple[RawCase, ...]) -> Iterator[Problem]:
    count, declared = sum(bool(case.images) for case in cases), content.get("numTraining")
    if count == 0:
        what = f"holds no training image that ends in {content['file_ending']}"
        yield _problem(DataError(f"{path.parent} {what}; fill imagesTr and labelsTr first"), "", path.parent)
        return
    if "numTraining" in content and declared != count:
        fault = DataError(f"{path}: numTraining is {declared!r}, but {_count(count, 'case')} have images; correct it")
        yield _problem(fault, "", path)
    if count < _FOLDS:
        fault = DataError(f"{_count(count, 'case')}: nnU-Net's five folds need {_FOLDS}; only fold all can be trained")
        yield _problem(fault, "", path.parent, serious=False)


def _not_looked_at(path: Path, ending: str) -> Iterator[Problem]:
    if ending not in _VOLUMES:
        what = "the voxels of images were" if ending in FILE_ENDINGS else "no voxels were"
        yield _problem(DataError(f"{ending} files: names were checked, {what} not looked at"), "", path, serious=False)


# ----------------------------------------------------------------------------------------------------------- voxels


def _examine_all(dataset: RawDataset, workers: int) -> Iterator[_Seen]:
    """Threads suffice: most of the time goes into unpacking, which does not hold Python's lock."""
    executor = ThreadPoolExecutor(workers)
    try:
        yield from executor.map(partial(_examine, dataset), dataset.cases)
    finally:
        executor.shutdown(cancel_futures=True)


def _examine(dataset: RawDataset, case: RawCase) -> _Seen:
    problems: list[Problem] = []
    grid, content = _examine_images(case, problems) if dataset.ending in _VOLUMES else (None, None)
    if dataset.ending not in FILE_ENDINGS or not os.path.lexists(case.label):
        return _Seen(problems)
    values, unlabelled = None, False
    with _noting(problems, case.name, case.label):
        label = read_label(case.label)
        values = {value for value, box in enumerate(find_objects(label.array), start=1) if box}
        problems += _undeclared(dataset, case, values)
        if grid is not None:
            check_same_geometry(grid, label)
        unlabelled = dataset.labels is not None and is_unlabelled(label.array, dataset.labels.ignore, content)
    return _Seen(problems, values, unlabelled)


def _examine_images(case: RawCase, problems: list[Problem]) -> tuple[Volume | None, NDArray[np.bool_] | None]:
    """Returns the first image that can be read, whose grid all files must share, and where any image is not 0."""
    grid: Volume | None = None
    content: NDArray[np.bool_] | None = None
    for path in case.images:
        with _noting(problems, case.name, path):
            image = read_image(path)
            if image.array.min() == image.array.max():
                fault = DataError(f"{path}: every voxel is {image.array.flat[0]}; was the right image exported?")
                problems.append(_problem(fault, case.name, path, serious=False))
            grid = grid or image
            check_same_geometry(grid, image)
            content = image.array != 0 if content is None else content | (image.array != 0)
    return grid, content


def _undeclared(dataset: RawDataset, case: RawCase, values: set[int]) -> Iterator[Problem]:
    if dataset.labels is None:
        return
    unknown, declared = sorted(values - dataset.labels.values), sorted(dataset.labels.values)
    if unknown:
        found = ", ".join(map(str, unknown))
        known = ", ".join(map(str, declared))
        fault = LabelError(f"{case.label} holds the label {found}, dataset.json declares {known}; correct one of them")
        yield _problem(fault, case.name, case.label)


def _absent_classes(dataset: RawDataset, seen: list[set[int]]) -> Iterator[Problem]:
    if dataset.labels is None or not seen:
        return
    occurring = set().union(*seen)
    for name, values in dataset.labels.classes.items():
        if occurring.isdisjoint(values):
            fault = LabelError(f"class {name} ({', '.join(map(str, values))}) occurs in none of {len(seen)} label maps")
            yield _problem(fault, "", dataset.description, serious=False)


def _too_few_labelled(dataset: RawDataset, unlabelled: int) -> Iterator[Problem]:
    labelled = sum(bool(case.images) for case in dataset.cases) - unlabelled
    if unlabelled and labelled < 2:
        fault = DataError(
            f"{_count(labelled, 'labelled case')} beside {unlabelled} unlabelled: no fold can be validated"
        )
        yield _problem(fault, "", dataset.description.parent, serious=False)
