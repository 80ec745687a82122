"""Which files make a case: ``CASE_0000.nii.gz`` for each channel, as nnU-Net names them."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nnunet_imbal.errors import ConfigError, DataError

__all__ = ["group_by_case", "list_images"]

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_PREFIX = re.compile(r"[\w.-]*")


def list_images(paths: Sequence[Path], ending: str) -> list[Path]:
    """Files among the paths, and those with this ending in the folders among them; hidden ones in folders are left out.

    Raises:
        DataError: a path does not exist, a file has another ending, or there is none.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(each for each in path.glob(f"*{ending}") if not each.name.startswith("."))
        elif not path.is_file():
            raise DataError(f"{path}: no such file or folder")
        elif not path.name.endswith(ending):
            raise DataError(f"{path} does not end in {ending}, as the files of this dataset do; convert it first")
        else:
            files.append(path)
    if not files:
        raise DataError(f"no image: {', '.join(map(str, paths))} holds no {ending} file")
    return files


def group_by_case(files: Sequence[Path], ending: str, channels: int, prefix: str = "") -> dict[str, list[Path]]:
    """Sort files into cases.

    Args:
        files: ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ...; with a single channel ``CASE.nii.gz`` will do.
        ending: of all files.
        channels: a case has.
        prefix: goes before each case name.

    Returns:
        Case name -> its channels in order.

    Raises:
        ConfigError: the prefix cannot begin a file name.
        DataError: a channel is missing, too many, or there twice.

    Example:
        >>> list(group_by_case([Path("b.nii"), Path("a_0000.nii")], ".nii", 1, "more_"))
        ['more_a', 'more_b']
    """
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(f"the prefix {prefix!r} cannot begin a case name; use letters, digits, - and _")
    found: defaultdict[str, dict[int, Path]] = defaultdict(dict)
    for file in files:
        case, channel = _split(file, ending, channels)
        other = found[prefix + case].setdefault(channel, file)
        if other is not file:
            raise DataError(
                f"{other} and {file} are both channel {channel} of case {prefix + case}; rename one of them"
            )
    for case, images in found.items():
        if sorted(images) != list(range(channels)):
            has = ", ".join(f"{number:04d}" for number in sorted(images))
            raise DataError(f"case {case} has the channels {has}, expected 0000 to {channels - 1:04d}")
    if channels == 1:
        _refuse_second_channels(found, prefix)
    return {case: [images[channel] for channel in sorted(images)] for case, images in sorted(found.items())}


def _split(file: Path, ending: str, channels: int) -> tuple[str, int]:
    name = file.name.removesuffix(ending)
    match = _CHANNEL.fullmatch(name)
    if match and (channels > 1 or match[2] == "0000"):
        return match[1], int(match[2])
    if channels > 1:
        raise DataError(f"{file} has no channel number; expected a name such as CASE_0000{ending}")
    return name, 0


def _refuse_second_channels(found: dict[str, dict[int, Path]], prefix: str) -> None:
    """``X_0000`` beside ``X_0001`` are two channels of one case, or two cases: only the user knows."""
    for case, images in found.items():
        match = _CHANNEL.fullmatch(case.removeprefix(prefix))
        if match and prefix + match[1] in found:
            first = found[prefix + match[1]][0]
            raise DataError(
                f"{first} and {images[0]} look like two channels of one case, but this dataset has one channel. "
                "Rename them if they are two cases"
            )
