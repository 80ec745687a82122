"""The validation predictions of nnU-Net's folds, with the probabilities that ``--npz`` leaves beside them."""

import json
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.errors import ConfigError, DataError, GeometryError
from nnunet_imbal.io import Volume, check_same_geometry, file_checksum, list_label_files, read_label
from nnunet_imbal.operating_point.channels import Channels, decide

__all__ = ["ValidationCase", "checkpoint_checksums", "find_validation", "load_case"]

_PREPROCESSED = "nnUNet_preprocessed"
_CHECKPOINT = "checkpoint_final.pth"
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ValidationCase:
    """One case, predicted by the network that was trained without it.

    Attributes:
        name: Of the case.
        fold: Whose network predicted it.
        probabilities: ``.npz`` file.
        prediction: nnU-Net's label map, made of the same probabilities.
        reference: The expert's label map.
    """

    name: str
    fold: int
    probabilities: Path
    prediction: Path
    reference: Path


def find_validation(
    model: str | Path, folds: Sequence[int] | None = None, references: str | Path | None = None
) -> list[ValidationCase]:
    """List the validation cases of a results folder.

    Args:
        model: Folder like ``nnUNet_results/Dataset004_X/ImbalTrainer__nnUNetPlans__3d_fullres``.
        folds: Numbers of the folds; default: all that were validated.
        references: Folder with the expert's label maps; default: ``gt_segmentations`` of the preprocessed dataset.

    Raises:
        DataError: The folder is no results folder, a fold was not validated or without ``--npz``, or the expert's
            label map of a case is missing.
        ConfigError: ``nnUNet_preprocessed`` is needed and not set, or two folds share a case.
    """
    model = Path(model)
    dataset = _dataset_name(model)
    chosen = list(folds) if folds is not None else _validated_folds(model)
    truth = list_label_files(references if references is not None else _gt_segmentations(dataset))
    cases = []
    for fold in sorted(set(chosen)):
        cases += _cases_of_fold(model, dataset, fold, truth)
    repeated = [name for name, times in Counter(case.name for case in cases).items() if times > 1]
    if repeated:
        raise ConfigError(
            f"{repeated[0]} was validated in several of the folds {chosen}; name folds that share no case"
        )
    return cases


def load_case(case: ValidationCase, channels: Channels) -> tuple[NDArray[Any], Volume]:
    """Read probabilities ``(C, Z, Y, X)`` and the expert's label map, and make sure that they belong together.

    Raises:
        DataError: A file is damaged, or the probabilities are not those that nnU-Net made its label map of.
        GeometryError: Label maps or probabilities do not share one grid.
    """
    probs, predicted, truth = (
        _read_probabilities(case, channels),
        read_label(case.prediction),
        read_label(case.reference),
    )
    check_same_geometry(predicted, truth)
    if probs.shape[1:] != truth.array.shape:
        raise GeometryError(f"{case.probabilities} has the shape {probs.shape[1:]}, {truth.path} {truth.array.shape}")
    if not np.array_equal(decide(probs, channels, {}, truth.spacing), predicted.array):
        raise DataError(
            f"{case.probabilities} does not give the label map {case.prediction.name} beside it: they are of different "
            "runs, or the image reader turned the axes. Validate the fold again with --val --npz"
        )
    return probs, truth


def checkpoint_checksums(model: str | Path, folds: Sequence[int]) -> dict[str, str]:
    """Fold -> SHA-256 of its final checkpoint; folds without one are left out."""
    files = {str(fold): Path(model, f"fold_{fold}", _CHECKPOINT) for fold in sorted(set(folds))}
    return {fold: file_checksum(file) for fold, file in files.items() if file.is_file()}


def _dataset_name(model: Path) -> str:
    try:
        return str(json.loads((model / "plans.json").read_text(encoding="utf-8"))["dataset_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{model} is not a results folder of nnU-Net: it has no plans.json that names a dataset. Expected a folder "
            "like nnUNet_results/Dataset004_X/ImbalTrainer__nnUNetPlans__3d_fullres"
        ) from error


def _validated_folds(model: Path) -> list[int]:
    """Fold ``all`` is left out: it was validated on the cases it was trained with."""
    numbers = [folder.parent.name[len("fold_") :] for folder in model.glob("fold_*/validation")]
    folds = sorted(int(number) for number in numbers if number.isdigit())
    if not folds:
        raise DataError(f"{model} has no fold_0/validation or the like; train at least one fold to its end")
    return folds


def _gt_segmentations(dataset: str) -> Path:
    root = os.environ.get(_PREPROCESSED)
    if not root:
        raise ConfigError(
            "nnUNet_preprocessed is not set: export nnUNet_preprocessed=<folder>, as for nnU-Net, or name the folder "
            "with the expert's label maps with --labels"
        )
    return Path(root, dataset, "gt_segmentations")


def _cases_of_fold(model: Path, dataset: str, fold: int, truth: dict[str, Path]) -> list[ValidationCase]:
    folder = model / f"fold_{fold}" / "validation"
    predictions = list_label_files(folder)
    lacking = [name for name in predictions if not (folder / f"{name}.npz").is_file()]
    if lacking:
        raise DataError(
            f"{folder} lacks the probabilities of {len(lacking)} of {len(predictions)} cases ({lacking[0]}.npz). Let "
            f"nnU-Net write them: {_validate_command(model, dataset, fold)}"
        )
    if unknown := [name for name in predictions if name not in truth]:
        raise DataError(f"{folder} holds {unknown[0]}, of which there is no label map beside the {len(truth)} others")
    return [ValidationCase(name, fold, folder / f"{name}.npz", path, truth[name]) for name, path in predictions.items()]


def _validate_command(model: Path, dataset: str, fold: int) -> str:
    trainer, plans, configuration = (model.resolve().name.split("__") + ["?"] * 3)[:3]
    return f"nnUNetv2_train {dataset} {configuration} {fold} -tr {trainer} -p {plans} --val --npz"


def _read_probabilities(case: ValidationCase, channels: Channels) -> NDArray[Any]:
    try:
        with np.load(case.probabilities, allow_pickle=False) as content:
            probs: NDArray[Any] = content["probabilities"]
    except _UNREADABLE as error:
        raise DataError(
            f"{case.probabilities} cannot be read as nnU-Net's probabilities ({type(error).__name__}); validate the "
            "fold again with --val --npz"
        ) from error
    if probs.ndim != 4 or probs.dtype.kind != "f" or len(probs) != channels.count:
        raise DataError(
            f"{case.probabilities} holds {probs.dtype} {probs.shape}, expected floats ({channels.count}, Z, Y, X)"
        )
    if probs.size and not (probs.min() >= 0 and probs.max() <= 1):
        raise DataError(f"{case.probabilities} holds {probs.min()}..{probs.max()}, expected probabilities 0..1")
    return probs
