"""Share a trained model with people who do not have this plugin: same weights, stock trainer, no pickled code."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.dtypes import BoolDType, Float16DType, Float32DType, Float64DType, Int32DType, Int64DType

from nnunet_imbal.errors import DataError

__all__ = ["OWN_STATE", "export_model", "load_checkpoint"]

STOCK_TRAINER = "nnUNetTrainer"
OWN_STATE = "imbal_state"  # the one key of a checkpoint that is not nnU-Net's: teacher, class distributions
_COMPANIONS = ("plans.json", "dataset.json", "dataset_fingerprint.json", "fold_*/progress.png")
# How NumPy pickles one number: needed to read nnU-Net's log, harmless, and nothing else of NumPy.
_scalar: Any = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    *(np.dtype, BoolDType, Float16DType, Float32DType, Float64DType, Int32DType, Int64DType),
]


def export_model(model: Path, out: Path, *, trust: bool = False) -> Path:
    """Copy a trained model so that stock nnU-Net predicts with it, bit for bit as before, without this plugin.

    Copied are plans, dataset description, fingerprint, training curve and every ``fold_*/checkpoint_*.pth``.
    In each checkpoint the trainer's name becomes ``nnUNetTrainer`` and NumPy numbers become Python numbers, so
    that it loads with ``weights_only=True``. Left out are logs and validation results, which name cases and
    folders of this machine.

    Args:
        model: Results folder of nnU-Net, for example ``ImbalTrainer__nnUNetPlans__3d_fullres``.
        out: Folder to make. It must not exist: nothing is ever overwritten.
        trust: Unpickle checkpoints that hold more than weights and numbers. This can run code hidden in the
            file, so use it only for files of your own.

    Returns:
        The new folder. It appears in one step, or not at all.

    Raises:
        DataError: `model` is no results folder, `out` exists, or a checkpoint is damaged or not safe to load.
    """
    model, out = Path(model), Path(out)
    checkpoints = _checkpoints(model)
    if out.exists():
        raise DataError(f"{out} exists already and is left as it is: choose the name of a new folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        stage = Path(scratch) / out.name
        for source in checkpoints:
            _export_checkpoint(source, stage / source.relative_to(model), trust=trust)
        for pattern in _COMPANIONS:
            for source in model.glob(pattern):
                shutil.copyfile(source, stage / source.relative_to(model))
        stage.rename(out)
    return out


def load_checkpoint(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Read a nnU-Net checkpoint onto the CPU without running code from it.

    Args:
        path: File written by nnU-Net.
        trust: Unpickle whatever the file holds. Only for files of your own.

    Raises:
        DataError: The file is damaged, is no nnU-Net checkpoint, or holds more than weights and numbers.
    """
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # damaged files fail in many ways: zip, pickle, key and attribute errors
        raise DataError(_why_unreadable(path, error)) from error
    if not isinstance(checkpoint, dict) or not {"trainer_name", "network_weights"} <= checkpoint.keys():
        raise DataError(f"{path} is not a nnU-Net checkpoint: it names no trainer or holds no network weights.")
    return checkpoint


def _checkpoints(model: Path) -> list[Path]:
    missing = [name for name in ("plans.json", "dataset.json") if not (model / name).is_file()]
    checkpoints = sorted(model.glob("fold_*/checkpoint_*.pth"))
    if missing or not checkpoints:
        lacking = ", ".join([*missing, *([] if checkpoints else ["fold_*/checkpoint_*.pth"])])
        raise DataError(
            f"{model} is not a results folder of nnU-Net: it lacks {lacking}. "
            "Expected a folder like nnUNet_results/Dataset004_X/ImbalTrainer__nnUNetPlans__3d_fullres."
        )
    return checkpoints


def _export_checkpoint(source: Path, target: Path, *, trust: bool) -> None:
    checkpoint = _plain(load_checkpoint(source, trust=trust))
    checkpoint["trainer_name"] = STOCK_TRAINER
    checkpoint.pop(OWN_STATE, None)
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, target)
    try:
        torch.load(target, map_location="meta", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{source} holds {_unsafe_names(target)}, which nobody can load with weights_only=True: "
            "remove it from the checkpoint before exporting."
        ) from error


def _plain(value: Any) -> Any:
    """Turn NumPy numbers, arrays and paths inside containers into Python's own; leave tensors alone."""
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist()) if value.dtype != object else value
    if isinstance(value, Path):
        return str(value)
    if type(value) is dict:  # not its subclasses: a state_dict is an OrderedDict that holds only tensors
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_plain(item) for item in value)
    return value


def _why_unreadable(path: Path, error: Exception) -> str:
    if unsafe := _unsafe_names(path):
        return (
            f"{path} holds more than weights and numbers ({unsafe}). Loading it could run code hidden in it, so it "
            "was not loaded. If the file is your own, repeat the command with --trust."
        )
    return f"{path} cannot be read as a checkpoint ({type(error).__name__}): copy it again from its source."


def _unsafe_names(path: Path) -> str:
    with suppress(Exception), torch.serialization.safe_globals(_NUMPY_SCALARS):
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    return ""
