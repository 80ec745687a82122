"""Which preprocessed cases nobody annotated, and how they enter nnU-Net's folds."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.io import write_atomically
from trainers._loader import label_file

__all__ = ["SPOILT_FINGERPRINT", "counts_unlabelled", "extend_splits", "find_unlabelled", "only_in_training"]

SPOILT_FINGERPRINT = (
    "the fingerprint of this dataset takes all voxels of unlabelled cases for foreground. "
    "Run `nnunet-imbal extract-fingerprint`, then plan and preprocess again."
)


_FOLDS = 5
_STRAY = 1e-4  # share of voxels: resampling may leave some background where ignore meets the outside of the image


def find_unlabelled(data: nnUNetBaseDataset, labels: LabelManager, path: Path) -> frozenset[str]:
    """Cases in which nobody annotated anything.

    Preprocessing has noted where the classes are; only of cases without any foreground the label map is read, because
    they may be healthy. What was found is kept in a file, for as long as the label maps stay as they are.

    Args:
        data: preprocessed cases.
        labels: tells the ignore label; without one all cases are labelled.
        path: where to keep what was found, not among the cases: nnU-Net allows no other files there.
    """
    if not labels.has_ignore_label:
        return frozenset()
    files = {case: label_file(data, case).stat() for case in data.identifiers}
    stamps = {case: [labels.ignore_label, file.st_size, file.st_mtime_ns] for case, file in files.items()}
    kept = _read(path)
    known = {case: kept[case] for case, stamp in stamps.items() if case in kept and kept[case][:-1] == stamp}
    found = {case: [*stamp, _is_unlabelled(data, case, labels)] for case, stamp in stamps.items() if case not in known}
    if found:
        _write(path, {**kept, **found})
    return frozenset(case for case, entry in {**known, **found}.items() if entry[-1])


def extend_splits(path: Path, cases: Collection[str], unlabelled: Collection[str]) -> None:
    """Write unlabelled cases into the training part of each fold, and take them out of the validation parts.

    Folds that are there stay as they are otherwise. If there are none, nnU-Net's own split of the labelled cases is
    written, into fewer than five folds if there are fewer than five labelled cases.

    Args:
        path: nnU-Net's ``splits_final.json``.
        cases: all preprocessed cases.
        unlabelled: those that nobody annotated.

    Raises:
        ConfigError: there are no folds, and fewer than two labelled cases.
    """
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    after = [_extended(fold, unlabelled) for fold in before or _new_folds(sorted(set(cases) - set(unlabelled)))]
    if after != before:
        write_atomically(path, json.dumps(after, indent=4) + "\n")


def only_in_training(
    training: Sequence[str], validation: Sequence[str], unlabelled: Collection[str]
) -> tuple[list[str], list[str]]:
    """Training and validation cases with all unlabelled ones in training.

    Raises:
        ConfigError: a part would have no labelled case.
    """
    fold = _extended({"train": list(training), "val": list(validation)}, unlabelled)
    if not fold["val"] or not set(fold["train"]) - set(unlabelled):
        raise ConfigError(
            "this fold needs a labelled case to train with and one to validate with, beside "
            f"{len(unlabelled)} unlabelled ones; choose another fold, or fold all"
        )
    return fold["train"], fold["val"]


def counts_unlabelled(path: Path, cases: int, unlabelled: Collection[str]) -> bool:
    """Whether nnU-Net's fingerprint was made of unlabelled cases, too.

    Args:
        path: nnU-Net's ``dataset_fingerprint.json``.
        cases: number of all cases.
        unlabelled: those that nobody annotated.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return bool(unlabelled) and len(content["spacings"]) > cases - len(unlabelled)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # training does without the file


def _extended(fold: dict[str, list[str]], unlabelled: Collection[str]) -> dict[str, list[str]]:
    missing = sorted(set(unlabelled) - set(fold["train"]))
    return {
        **fold,
        "train": [*fold["train"], *missing],
        "val": [case for case in fold["val"] if case not in unlabelled],
    }


def _new_folds(labelled: list[str]) -> list[dict[str, list[str]]]:
    if len(labelled) < 2:
        raise ConfigError(f"{len(labelled)} labelled case: folds need two; train fold all")
    splits = generate_crossval_split(labelled, seed=12345, n_splits=min(_FOLDS, len(labelled)))  # nnU-Net's seed
    return [{part: [str(case) for case in cases] for part, cases in fold.items()} for fold in splits]


def _is_unlabelled(data: nnUNetBaseDataset, case: str, labels: LabelManager) -> bool:
    _, label_map, _, properties = data.load_case(case)
    annotated = (-1, *labels.all_labels)
    locations = properties["class_locations"]
    if any(len(voxels) for key, voxels in locations.items() if key != annotated):
        return False
    if not len(locations[annotated]):
        return True
    values = np.asarray(label_map[0])
    known = np.count_nonzero((values >= 0) & (values != labels.ignore_label))
    return bool(known <= _STRAY * values.size)


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(case): list(entry) for case, entry in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # it is only a note of what can be found again


def _write(path: Path, content: dict[str, list[Any]]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(content) + "\n")
    except (OSError, DataError):
        return  # a folder that cannot be written costs the note, not the training
