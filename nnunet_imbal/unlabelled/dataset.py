"""Add images without labels to a raw nnU-Net dataset, and take them out again."""

import filecmp
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from nnunet_imbal._progress import track
from nnunet_imbal.check import RawDataset, read_dataset
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.io import Volume, check_same_geometry, file_checksum, read_image, write_atomically
from nnunet_imbal.unlabelled._manifest import MANIFEST, AddedCase, Manifest
from nnunet_imbal.unlabelled._names import group_by_case, list_images

__all__ = ["Removal", "add_unlabelled", "remove_unlabelled"]


@dataclass(frozen=True)
class Removal:
    """What `remove_unlabelled` did.

    Attributes:
        removed: cases that are gone.
        kept: cases that somebody annotated since; they are ordinary cases now.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...] = ()


def add_unlabelled(
    folder: str | Path, images: Sequence[str | Path], *, prefix: str = "", link: bool = False
) -> list[str]:
    """Add training cases that nobody annotated: all of them, or none if one of them is at fault.

    Each gets a label map that says ``ignore`` wherever there is an image. Around it, where all channels are 0 (the air
    of a skull-stripped MR), the map says background, because that is how nnU-Net knows which voxels to normalise.
    ``dataset.json`` declares the ignore label if it did not, and counts the new cases. What was added is noted in
    ``unlabelled.json`` first of all, so that `remove_unlabelled` also cleans up after a run that was killed.

    Args:
        folder: raw dataset.
        images: files, or folders of files, named ``CASE_0000.nii.gz`` for each channel; with a single channel
            ``CASE.nii.gz`` will do.
        prefix: goes before each case name, should names of the dataset be taken otherwise.
        link: make symbolic links to the images instead of copies.

    Returns:
        The names of the new cases.

    Raises:
        ConfigError: the prefix cannot begin a file name.
        DataError: the dataset or an image is at fault: not readable, not 3-D, constant, a channel missing, a name that
            is taken, an image that the dataset has already. Nothing is changed then.
        GeometryError: the channels of a case are not on one grid; nothing is changed.
    """
    folder = Path(folder)
    dataset, content = _sound(folder)
    files = list_images([Path(path) for path in images], dataset.ending)
    cases = group_by_case(files, dataset.ending, len(content["channel_names"]), prefix)
    _refuse_what_is_there(dataset, cases)
    labels, before = content["labels"], Manifest.read(folder)
    declares = "ignore" not in labels
    if declares:
        labels["ignore"] = 1 + max(_values(labels.values()))
    with _writing(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".unlabelled_") as stage:
        staged = _stage(Path(stage), cases, dataset.ending, labels["ignore"], link)
        added = {
            case: AddedCase(
                tuple(str(image.resolve()) for image in paths), file_checksum(staged / _label(case, dataset))
            )
            for case, paths in cases.items()
        }
        after = Manifest({**before.cases, **added}, before.declared_ignore or declares)
        content["numTraining"] = len(dataset.cases) + len(cases)
        if "dataset" in content:
            content["dataset"] |= {case: _entry(case, dataset, len(paths)) for case, paths in cases.items()}
        _commit(folder, staged, content, before, after)
    return list(cases)


def remove_unlabelled(folder: str | Path, *, preprocessed: Path | None = None) -> Removal:
    """Take out what `add_unlabelled` added; what somebody annotated since stays.

    Args:
        folder: raw dataset.
        preprocessed: folder of the preprocessed dataset, whose ``splits_final.json`` then forgets the cases, too.

    Raises:
        ConfigError: nothing was added.
        DataError: an image was copied and its original is gone, so that removing it would lose it; nothing is changed.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    if not manifest.cases:
        raise ConfigError(f"{folder} has no {MANIFEST}: no unlabelled cases were added to it, or they were removed")
    dataset, _ = read_dataset(folder)
    kept = [case for case, added in manifest.cases.items() if _annotated(folder / _label(case, dataset), added)]
    gone = {case: added for case, added in manifest.cases.items() if case not in kept}
    images = {case: _images(case, dataset, len(added.originals)) for case, added in gone.items()}
    for case, added in gone.items():
        _refuse_to_lose([folder / image for image in images[case]], added.originals)
    _write_description(dataset, _without(dataset, gone.keys(), manifest.declared_ignore and not kept))
    for case, paths in images.items():
        for path in (*paths, _label(case, dataset)):
            (folder / path).unlink(missing_ok=True)
    if preprocessed is not None:
        _forget(preprocessed / "splits_final.json", gone.keys())
    Manifest().write(folder)
    return Removal(tuple(gone), tuple(kept))


# ------------------------------------------------------------------------------------------------------------ before


def _sound(folder: Path) -> tuple[RawDataset, dict[str, Any]]:
    dataset, problems = read_dataset(folder)
    serious = [problem for problem in problems if problem.serious]
    if serious:
        raise DataError(f"{serious[0].message}. Nothing was added; `nnunet-imbal check` tells all that is wrong")
    return dataset, _description(dataset)


def _description(dataset: RawDataset) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(dataset.description.read_text(encoding="utf-8"))
    return content


def _values(labels: Iterable[int | list[int]]) -> Iterable[int]:
    for each in labels:
        yield from each if isinstance(each, list) else [each]


def _refuse_what_is_there(dataset: RawDataset, cases: dict[str, list[Path]]) -> None:
    taken = {case.name.casefold() for case in dataset.cases}
    by_size: defaultdict[int, list[Path]] = defaultdict(list)
    for image in (image for case in dataset.cases for image in case.images if image.is_file()):
        by_size[image.stat().st_size].append(image)
    for case, images in cases.items():
        if case.casefold() in taken:
            raise DataError(f"{dataset.description.parent} has a case {case} already; set a prefix for the new cases")
        for image in images:
            for other in by_size[image.stat().st_size]:
                if filecmp.cmp(image, other, shallow=False):
                    raise DataError(f"{image} is {other}, byte for byte; a case must not be labelled and unlabelled")


# --------------------------------------------------------------------------------------------------------- new files


def _images(case: str, dataset: RawDataset, channels: int) -> list[str]:
    return [f"imagesTr/{case}_{channel:04d}{dataset.ending}" for channel in range(channels)]


def _label(case: str, dataset: RawDataset) -> str:
    return f"labelsTr/{case}{dataset.ending}"


def _entry(case: str, dataset: RawDataset, channels: int) -> dict[str, Any]:
    return {"images": _images(case, dataset, channels), "label": _label(case, dataset)}


def _stage(stage: Path, cases: dict[str, list[Path]], ending: str, ignore: int, link: bool) -> Path:
    """Make all files in a folder of their own; whatever is wrong with an image shows here."""
    for part in ("imagesTr", "labelsTr"):
        (stage / part).mkdir()
    for case, images in track(cases.items(), len(cases), "Adding"):
        grid, content = _read_channels(images)
        _write_label_map(stage / "labelsTr" / f"{case}{ending}", grid, content, ignore)
        for channel, image in enumerate(images):
            target = stage / "imagesTr" / f"{case}_{channel:04d}{ending}"
            if link:
                target.symlink_to(image.resolve())
            else:
                shutil.copyfile(image, target)
    return stage


def _read_channels(images: Sequence[Path]) -> tuple[Volume, NDArray[np.bool_]]:
    """The common grid of the channels, and where any of them is not 0."""
    volumes = (read_image(image) for image in images)
    grid = next(volumes)
    content = _content(grid)
    for volume in volumes:
        check_same_geometry(grid, volume)
        content |= _content(volume)
    return grid, content


def _content(volume: Volume) -> NDArray[np.bool_]:
    if volume.array.shape[0] == 1:
        raise DataError(f"{volume.path} is a single slice, expected a 3-D image")
    if volume.array.min() == volume.array.max():
        raise DataError(f"{volume.path}: every voxel is {volume.array.flat[0]}; was the right image exported?")
    content: NDArray[np.bool_] = volume.array != 0
    return content


def _write_label_map(path: Path, grid: Volume, content: NDArray[np.bool_], ignore: int) -> None:
    inside = binary_fill_holes(content)  # the mask that nnU-Net normalises in
    labels = np.where(inside, ignore, 0).astype(np.uint8 if ignore < 256 else np.uint16)
    image = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing(grid.spacing[::-1])
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    try:
        SimpleITK.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise DataError(f"cannot write {path} ({str(error).strip().splitlines()[-1]})") from error


# ----------------------------------------------------------------------------------------------------- all or nothing


def _commit(folder: Path, staged: Path, content: dict[str, Any], before: Manifest, after: Manifest) -> None:
    """Put everything in its place, ``dataset.json`` last; whatever fails undoes what was done."""
    with ExitStack() as undo:
        undo.callback(before.write, folder)
        after.write(folder)
        for file in sorted(staged.glob("*/*")):
            target = folder / file.relative_to(staged)
            if os.path.lexists(target):
                raise DataError(f"{target} is there already, though no case has it; move it away")
            file.rename(target)
            undo.callback(target.unlink)
        write_atomically(folder / "dataset.json", json.dumps(content, indent=4) + "\n")
        undo.pop_all()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}); nothing there was changed") from error


def _write_description(dataset: RawDataset, content: dict[str, Any]) -> None:
    write_atomically(dataset.description, json.dumps(content, indent=4) + "\n")


def _without(dataset: RawDataset, gone: Iterable[str], ignore: bool) -> dict[str, Any]:
    content, gone = _description(dataset), set(gone)
    if ignore:
        content["labels"].pop("ignore", None)
    if "dataset" in content:
        content["dataset"] = {case: files for case, files in content["dataset"].items() if case not in gone}
    content["numTraining"] = sum(bool(case.images) for case in dataset.cases if case.name not in gone)
    return content


def _annotated(label: Path, added: AddedCase) -> bool:
    return label.is_file() and file_checksum(label) != added.label_sha256


def _refuse_to_lose(images: Sequence[Path], originals: Sequence[str]) -> None:
    for image, original in zip(images, map(Path, originals), strict=True):
        if image.is_symlink() or not image.exists():
            continue
        if not original.is_file() or original.stat().st_size != image.stat().st_size:
            raise DataError(
                f"{image} was copied from {original}, which is gone or another file now. "
                "Move your image to a safe place first; nothing was removed"
            )


def _forget(splits_file: Path, gone: Iterable[str]) -> None:
    if not splits_file.is_file():
        return
    gone = set(gone)
    splits = json.loads(splits_file.read_text(encoding="utf-8"))
    kept = [{part: [case for case in cases if case not in gone] for part, cases in fold.items()} for fold in splits]
    if kept != splits:
        write_atomically(splits_file, json.dumps(kept, indent=4) + "\n")
