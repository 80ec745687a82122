"""nnU-Net's dataset fingerprint, without the voxels that nobody labelled."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from nnunet_imbal._progress import track
from nnunet_imbal.check import RawCase, is_unlabelled, read_dataset
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.io import read_label, write_atomically
from nnunet_imbal.unlabelled._manifest import Manifest

__all__ = ["extract_fingerprint"]

_COMMAND = "nnUNetv2_extract_fingerprint"
_NAME = re.compile(r"Dataset(\d{3})_.+")
_FINGERPRINT = "dataset_fingerprint.json"


def extract_fingerprint(folder: str | Path, preprocessed: str | Path, *, processes: int = 2) -> Path:
    """Run nnU-Net's own fingerprint extraction on what is labelled.

    nnU-Net measures the intensities of all voxels with a label above 0, and the ignore label is the highest of all: an
    unlabelled CT would add its air and table to the "foreground" by which every image is clipped and normalised.
    Here unlabelled cases are left out, and voxels to ignore count as background in partly labelled ones. nnU-Net
    keeps a fingerprint that is there, so planning goes on from this one; plans are those of the labelled cases alone.

    Args:
        folder: raw dataset, ``DatasetXXX_Name``.
        preprocessed: nnU-Net's folder of preprocessed datasets (``$nnUNet_preprocessed``).
        processes: cases that nnU-Net reads at the same time.

    Returns:
        The file, ``dataset_fingerprint.json``. A former one stays beside it as ``dataset_fingerprint.json.bak``.

    Raises:
        ConfigError: the folder is not named as nnU-Net wants it, or nnU-Net is not installed.
        DataError: no case is labelled, a file cannot be read, or nnU-Net's command failed.
    """
    folder = Path(folder).resolve()
    match = _NAME.fullmatch(folder.name)
    if not match:
        raise ConfigError(
            f"{folder.name} is no name of an nnU-Net dataset; expected Dataset004_Hippocampus or the like"
        )
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        _write_view(folder, temporary / "raw" / folder.name)
        _run(match[1], temporary, processes)
        result = (temporary / "preprocessed" / folder.name / _FINGERPRINT).read_text(encoding="utf-8")
    return _keep(Path(preprocessed) / folder.name, result)


def _write_view(folder: Path, view: Path) -> None:
    """A dataset whose ``dataset.json`` lists the labelled cases where they are; only some label maps are made anew."""
    dataset, problems = read_dataset(folder)
    if dataset.labels is None or not dataset.cases:
        raise DataError(f"{problems[0].message}; `nnunet-imbal check` tells all that is wrong")
    view.mkdir(parents=True)
    added, ignore, listed = Manifest.read(folder).cases, dataset.labels.ignore, {}
    for case in track(dataset.cases, len(dataset.cases), "Reading"):
        label = None if case.name in added else _labelled(case, ignore, view / f"{case.name}{dataset.ending}")
        if label is not None:
            listed[case.name] = {"images": [str(image.absolute()) for image in case.images], "label": str(label)}
    if not listed:
        raise DataError(f"{folder} has no labelled case; nnU-Net learns intensities from labels")
    content = json.loads(dataset.description.read_text(encoding="utf-8"))
    content |= {"dataset": listed, "numTraining": len(listed)}
    (view / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def _labelled(case: RawCase, ignore: int | None, path: Path) -> Path | None:
    """Label map in which only foreground is above 0, if the case is labelled at all."""
    if ignore is None:
        return case.label.absolute()
    labels = read_label(case.label).array
    if is_unlabelled(labels, ignore):
        return None
    if not (labels == ignore).any():
        return case.label.absolute()
    source = SimpleITK.ReadImage(str(case.label))
    image = SimpleITK.GetImageFromArray(np.where(labels == ignore, 0, labels).reshape(source.GetSize()[::-1]))
    image.CopyInformation(source)
    SimpleITK.WriteImage(image, str(path))
    return path


def _run(number: str, temporary: Path, processes: int) -> None:
    program = Path(sys.executable).parent / _COMMAND
    if not program.exists():
        raise ConfigError(f"{program} does not exist. Install nnU-Net into this environment: pip install nnunetv2")
    words = [str(program), "-d", number, "-np", str(processes), "--no_pbar"]
    environment = _environment(temporary)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise DataError(f"{_COMMAND} ended with {done.returncode}: {last}. `nnunet-imbal check` may tell more")


def _environment(temporary: Path) -> Mapping[str, Any]:
    folders = {f"nnUNet_{part}": str(temporary / part) for part in ("raw", "preprocessed", "results")}
    return {**os.environ, **folders}


def _keep(folder: Path, fingerprint: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _FINGERPRINT
    if path.exists():
        write_atomically(path.with_suffix(".json.bak"), path.read_bytes())
    write_atomically(path, fingerprint)
    return path
