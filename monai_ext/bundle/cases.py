"""What the configurations of the bundle ask about a dataset: its cases, classes, channels and spacing."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from zipfile import is_zipfile

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor, partition_dataset
from nibabel.affines import voxel_sizes

from nnunet_imbal.check import RawCase, read_dataset
from nnunet_imbal.errors import ConfigError, DataError, LabelError
from nnunet_imbal.io import case_name, read_label, write_atomically
from nnunet_imbal.laterality import paired_labels
from nnunet_imbal.sampling import InstanceIndex, find_instances

__all__ = [
    "Description",
    "Item",
    "describe",
    "image_cases",
    "instances",
    "last_checkpoint",
    "load_description",
    "one_channel",
    "prediction_name",
    "require_empty",
    "split_cases",
]

Item = dict[str, Any]
_ENDINGS = (".nii.gz", ".nii")
_FILE = "dataset.json"
_FOLDS = 5


@dataclass(frozen=True)
class Description:
    """What a network must know of its dataset; stored beside the weights.

    Attributes:
        labels: name of each class -> its label; ``background`` is 0, and no number is left out.
        channels: name of each channel.
        spacing: mm per voxel from left to right, back to front and foot to head.
    """

    labels: Mapping[str, int]
    channels: tuple[str, ...]
    spacing: tuple[float, float, float]

    @property
    def num_classes(self) -> int:
        """Classes with the background, which is the number of output channels."""
        return len(self.labels)

    @property
    def num_channels(self) -> int:
        """Input channels."""
        return len(self.channels)

    @property
    def has_sides(self) -> bool:
        """Whether names of classes tell left from right, so that a mirrored image would be labelled wrongly."""
        try:
            return bool(paired_labels(self.labels))
        except LabelError:  # one side alone
            return True

    def save(self, folder: str | Path, split: Mapping[str, Sequence[Item]], resume: bool = False) -> None:
        """Store it for evaluation and inference in a folder that holds no model yet.

        Args:
            folder: with the weights.
            split: see `split_cases`.
            resume: a training in this folder goes on, and this must be its dataset, and its fold.

        Raises:
            ConfigError: the folder holds a model, or one of other classes or cases.
        """
        folder = Path(folder)
        cases = {part: sorted(case_name(item["label"]) for item in items) for part, items in split.items()}
        content = json.loads(json.dumps({**asdict(self), "cases": cases}))
        if resume:
            load_description(folder)
            if (begun := json.loads((folder / _FILE).read_text(encoding="utf-8"))) != content:
                differ = ", ".join(key for key in content if begun.get(key) != content[key])
                raise ConfigError(
                    f"{folder} holds a training that began with other {differ}: it cannot go on with these"
                )
            return
        if any(folder.glob("*.pt")):
            raise ConfigError(
                f"{folder} holds a trained model, which stays as it is: give another --bundle_root, or --resume True "
                "to go on with a training that was interrupted"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _FILE, json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True)
class _Dataset:
    """``labels`` is None if only the label maps tell."""

    labels: Mapping[str, int] | None
    channels: tuple[str, ...]
    cases: tuple[RawCase, ...]


def describe(dataset_dir: str | Path | None, spacing: Sequence[float] | None = None) -> Description:
    """Describe a dataset; only headers are read, and the label maps if there is no ``dataset.json``.

    Args:
        dataset_dir: an nnU-Net raw dataset (``dataset.json``, ``imagesTr``, ``labelsTr``), or a folder with ``images``
            and ``labels``, in which a case has one image and one label map of the same name. NIfTI files.
        spacing: mm per voxel, see `Description`; default: the median of the images.

    Raises:
        ConfigError: no dataset given, an impossible spacing, or a dataset with regions or an ignore label.
        DataError: the folder is neither, a file is missing or named wrongly, or files are not NIfTI.
    """
    dataset = _read(dataset_dir)
    if spacing is None:
        steps = [_spacing(case.images[0]) for case in dataset.cases]
        spacing = [median(values) for values in zip(*steps, strict=True)]
    if len(spacing) != 3 or not min(spacing) > 0:
        raise ConfigError(f"spacing is {list(spacing)}, expected three numbers of mm above 0")
    right, front, up = map(float, spacing)
    labels = _found_labels(dataset.cases) if dataset.labels is None else dataset.labels
    return Description(dict(labels), dataset.channels, (right, front, up))


def load_description(model_dir: str | Path) -> Description:
    """Read what training stored beside the weights.

    Raises:
        DataError: the file is missing or was not written by `Description.save`.
    """
    path = Path(model_dir) / _FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        right, front, up = content["spacing"]
        return Description(content["labels"], tuple(content["channels"]), (right, front, up))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not describe a trained model: train first, or correct --ckpt_dir") from error


def last_checkpoint(folder: str | Path) -> Path:
    """The state of a training after its last epoch; one that was cut off while it was written is passed over.

    Raises:
        DataError: there is none.
    """
    states = [path for path in Path(folder).glob("training_checkpoint_epoch=*.pt") if is_zipfile(path)]
    if not states:
        raise DataError(f"{folder} holds no training to go on with: train first, or correct --ckpt_dir")
    return max(states, key=lambda path: int(path.stem.rpartition("=")[2]))


def split_cases(dataset_dir: str | Path | None, fold: int = 0, seed: int = 0) -> dict[str, list[Item]]:
    """Cases for training and validation, by five folds (fewer if there are fewer cases).

    Args:
        dataset_dir: see `describe`.
        fold: number of the fold to validate on.
        seed: of the shuffle; equal numbers give equal folds.

    Returns:
        ``{"train": [...], "validate": [...]}`` of ``{"image": files of the channels, "label": file}``.

    Raises:
        ConfigError: there is no such fold; see also `describe`.
        DataError: fewer than two cases; see also `describe`.
    """
    cases = _read(dataset_dir).cases
    if len(cases) < 2:
        raise DataError(f"{dataset_dir} has {len(cases)} case, training and validation need one each: add cases")
    items = [{"image": [str(path) for path in case.images], "label": str(case.label)} for case in cases]
    parts = partition_dataset(items, num_partitions=min(_FOLDS, len(items)), shuffle=True, seed=seed)
    if fold not in range(len(parts)):
        raise ConfigError(f"fold is {fold}, expected 0 to {len(parts) - 1}")
    rest = [item for number, part in enumerate(parts) if number != fold for item in part]
    return {"train": rest, "validate": list(parts[fold])}


def image_cases(images_dir: str | Path | None, description: Description) -> list[Item]:
    """Images to segment: ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ... or, for one channel, any names.

    Returns:
        ``{"image": files of the channels}`` of each case, by name.

    Raises:
        ConfigError: no folder given.
        DataError: the folder holds no NIfTI file, or a case lacks a channel.
    """
    if images_dir is None:
        raise ConfigError("no images given: add --images_dir FOLDER")
    files = _files(Path(images_dir))
    if description.num_channels == 1:
        return [{"image": [str(path)]} for path in files.values()]
    stems = sorted({name.rpartition("_")[0] for name in files})
    wanted = {stem: [f"{stem}_{number:04d}" for number in range(description.num_channels)] for stem in stems}
    missing = [name for names in wanted.values() for name in names if name not in files]
    if missing:
        channels = ", ".join(description.channels)
        raise DataError(f"{images_dir} lacks {missing[0]}; the model needs the channels {channels}, in this order")
    return [{"image": [str(files[name]) for name in names]} for names in wanted.values()]


def instances(label: torch.Tensor) -> InstanceIndex:
    """Lesions of a label map ``(1, X, Y, Z)``, for the ``instances_key`` of `RandCropByInstancesd`."""
    return find_instances(np.asarray(label[0]).astype(np.int32))


def prediction_name(meta: Mapping[str, Any], _: object) -> dict[str, Any]:
    """Name of the file for MONAI's `SaveImage`: that of the image, without its channel.

    Example:
        >>> prediction_name({"filename_or_obj": "imagesTs/case_7_0000.nii.gz"}, None)
        {'subject': 'case_7', 'idx': None}
    """
    name = case_name(str(meta["filename_or_obj"]))
    stem, _, channel = name.rpartition("_")
    return {"subject": stem if stem and channel == "0000" else name, "idx": None}


def one_channel(prediction: MetaTensor) -> MetaTensor:
    """Let a label map say that it has one channel, whatever the image had.

    MONAI 1.6.1 otherwise takes the map of an image of several files for 2-D when it writes it.
    """
    prediction.meta["original_channel_dim"] = math.nan
    return prediction


def require_empty(folder: str | Path) -> None:
    """Refuse to write among older results.

    Raises:
        ConfigError: there are files in the folder.
    """
    if Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise ConfigError(f"{folder} holds files, which stay as they are: give another --output_dir")


def _read(folder: str | Path | None) -> _Dataset:
    if folder is None:
        raise ConfigError("no dataset given: add --dataset_dir FOLDER")
    folder = Path(folder)
    is_plain = (folder / "labels").is_dir() and not (folder / _FILE).exists()
    dataset = _read_plain(folder) if is_plain else _read_raw(folder)
    for case in dataset.cases:
        for path in (*case.images, case.label):
            if not path.name.endswith(_ENDINGS):
                raise DataError(f"{path} is not NIfTI, which this bundle reads: convert the dataset to .nii.gz")
    return dataset


def _read_raw(folder: Path) -> _Dataset:
    raw, problems = read_dataset(folder)
    serious = [problem.message for problem in problems if problem.serious]
    if serious or raw.labels is None:
        more = f"; {len(serious) - 1} more, see nnunet-imbal check" if len(serious) > 1 else ""
        raise DataError(f"{serious[0]}{more}")
    if raw.labels.ignore is not None or any(len(values) > 1 for values in raw.labels.classes.values()):
        raise ConfigError(
            f"{raw.description} declares regions or an ignore label, which this bundle cannot train: "
            f"use nnUNetv2_train -tr ImbalTrainer, and monai_ext.nnunet_bridge for the model"
        )
    channels = json.loads(raw.description.read_text(encoding="utf-8"))["channel_names"]
    labels = {"background": 0} | {name: value for name, (value,) in raw.labels.classes.items()}
    return _Dataset(labels, tuple(channels.values()), raw.cases)


def _read_plain(folder: Path) -> _Dataset:
    images, labels = _files(folder / "images"), _files(folder / "labels")
    unpaired = sorted(images.keys() ^ labels.keys())
    if unpaired:
        raise DataError(f"{folder}: {unpaired[0]} is in one of images and labels only; a case needs both, of one name")
    return _Dataset(None, ("image",), tuple(RawCase(name, (images[name],), labels[name]) for name in sorted(labels)))


def _files(folder: Path) -> dict[str, Path]:
    """Case name -> NIfTI file, by name."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected one with NIfTI files")
    paths = sorted(path for path in folder.iterdir() if path.name.endswith(_ENDINGS) and path.name[0] != ".")
    files = {case_name(path): path for path in paths}
    if not files:
        raise DataError(f"{folder} holds no file that ends in {' or '.join(_ENDINGS)}")
    if len(files) < len(paths):
        raise DataError(f"{folder} holds a case as .nii and as .nii.gz; keep one of them")
    return files


def _found_labels(cases: Sequence[RawCase]) -> dict[str, int]:
    highest = max(int(read_label(case.label).array.max()) for case in cases)
    if highest == 0:
        raise DataError(f"{cases[0].label.parent} holds nothing but background")
    return {"background": 0} | {f"class {value}": value for value in range(1, highest + 1)}


def _spacing(path: Path) -> tuple[float, ...]:
    """Mm per voxel along the patient's axes, not those of the file."""
    try:
        affine = nib.load(path).affine
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy or export it again") from error
    order = np.argsort(nib.io_orientation(affine)[:, 0])
    return tuple(float(step) for step in voxel_sizes(affine)[order])
