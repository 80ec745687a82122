"""Run at every Python start of this environment: append our trainers to ``nnUNet_extTrainer``, no more.

``nnunet_imbal.pth`` (Python < 3.15) and ``nnunet_imbal.start`` (PEP 829, Python >= 3.15) call `register`.
Only modules that every interpreter has loaded already are used. Opt out with ``NNUNET_IMBAL_AUTOREGISTER=0``.
"""

import os
import sys

__all__ = ["register"]

_VARIABLE = "nnUNet_extTrainer"


def register() -> None:
    """Append the discovery folder to ``nnUNet_extTrainer``, unless the plugin is gone or not wanted."""
    if os.environ.get("NNUNET_IMBAL_AUTOREGISTER") == "0":
        return
    for root in sys.path:
        folder = os.path.join(root, "trainers", "_nnunet_discovery")
        # The file, not the folder: an interrupted uninstall may leave an empty folder behind.
        if os.path.isfile(os.path.join(folder, "imbal_trainers.py")):
            _append(folder)
            return


def _append(folder: str) -> None:
    present = os.environ.get(_VARIABLE, "")
    if os.path.normpath(folder) in map(os.path.normpath, present.split(os.pathsep)):
        return
    os.environ[_VARIABLE] = present + os.pathsep + folder if present else folder
