"""How nnU-Net finds our trainers: one folder in the environment variable ``nnUNet_extTrainer``."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nnunet_imbal.errors import ConfigError, DataError

__all__ = ["VARIABLE", "Mechanism", "active_mechanism", "announce_trainers", "discovery_folder", "run_with_trainers"]

VARIABLE = "nnUNet_extTrainer"
Mechanism = Literal["start-up file", "environment variable", "none"]


def discovery_folder() -> Path:
    """Return the folder that ``nnUNet_extTrainer`` must name.

    Raises:
        DataError: The installation is incomplete.

    Example:
        >>> discovery_folder().name
        '_nnunet_discovery'
    """
    folder = Path(__file__).resolve().parents[1] / "trainers" / "_nnunet_discovery"
    if not (folder / "imbal_trainers.py").is_file():
        raise DataError(
            f"{folder} does not hold imbal_trainers.py: the installation of nnunet-imbal is incomplete. "
            "Install it again with pip install --force-reinstall --no-deps."
        )
    return folder


def active_mechanism() -> Mechanism:
    """Say by which way nnU-Net, started from here, finds our trainers.

    Returns:
        ``"start-up file"`` if ``nnunet_imbal.pth`` (or ``.start``) put the folder into ``nnUNet_extTrainer``,
        ``"environment variable"`` if the variable came with it, ``"none"`` if the folder is not in it.
    """
    if not _is_listed(discovery_folder(), os.environ.get(VARIABLE, "")):
        return "none"
    return "start-up file" if "_nnunet_imbal_start" in sys.modules else "environment variable"


def announce_trainers() -> None:
    """Let nnU-Net find our trainers in this process and its children; folders that are named already come first."""
    os.environ[VARIABLE] = _with_folder(os.environ.get(VARIABLE, ""), discovery_folder())


def run_with_trainers(args: Sequence[str]) -> int:
    """Run a command that finds our trainers, for example ``["nnUNetv2_train", "4", "3d_fullres", "0"]``.

    Folders that are already in ``nnUNet_extTrainer`` stay and come first.

    Returns:
        The exit status of the command; 128 + n if signal n ended it.

    Raises:
        ConfigError: No command was given, or there is no such command.
    """
    if not args:
        raise ConfigError("No command came. Expected for example: nnunet-imbal run nnUNetv2_train 4 3d_fullres 0")
    program = shutil.which(args[0], path=_search_path())
    if program is None:
        raise ConfigError(f"No command {args[0]!r} on the PATH. Is its package installed in this environment?")
    environment = {**os.environ, VARIABLE: _with_folder(os.environ.get(VARIABLE, ""), discovery_folder())}
    status = subprocess.run([program, *args[1:]], env=environment, check=False).returncode
    return 128 - status if status < 0 else status


def _search_path() -> str:
    # Commands of this environment work even if it was never activated.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


def _with_folder(value: str, folder: Path) -> str:
    if _is_listed(folder, value):
        return value
    return f"{value}{os.pathsep}{folder}" if value else str(folder)


def _is_listed(folder: Path, value: str) -> bool:
    return any(Path(entry).resolve() == folder for entry in value.split(os.pathsep) if entry.strip())
