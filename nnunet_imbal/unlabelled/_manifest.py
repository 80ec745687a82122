"""Which cases were added without labels, kept in the dataset so that they can be taken out again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_imbal.errors import DataError
from nnunet_imbal.io import write_atomically

__all__ = ["MANIFEST", "AddedCase", "Manifest"]

MANIFEST = "unlabelled.json"


@dataclass(frozen=True)
class AddedCase:
    """One case without labels.

    Attributes:
        originals: the files its images were copied from, channel by channel.
        label_sha256: of the label map as it was written; another one means that somebody annotated the case.
    """

    originals: tuple[str, ...]
    label_sha256: str


@dataclass(frozen=True)
class Manifest:
    """All cases that were added without labels.

    Attributes:
        cases: by name.
        declared_ignore: the ignore label was not there before.
    """

    cases: Mapping[str, AddedCase] = field(default_factory=dict)
    declared_ignore: bool = False

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Of a dataset; empty if there is none.

        Raises:
            DataError: the file is there, but not as we write it.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            cases = {_plain(name): _added(entry) for name, entry in content["cases"].items()}
            return cls(cases, bool(content["declared_ignore"]))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path} cannot be read ({error!r}); restore it, it tells which cases were added") from None

    def write(self, folder: Path) -> None:
        """Keep it in the dataset; an empty one leaves no file."""
        if self.cases:
            write_atomically(folder / MANIFEST, json.dumps(asdict(self), indent=4) + "\n")
        else:
            (folder / MANIFEST).unlink(missing_ok=True)


def _plain(name: str) -> str:
    """Names become paths of files that are deleted one day."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"{name!r} is no case name")
    return name


def _added(entry: dict[str, Any]) -> AddedCase:
    return AddedCase(tuple(map(str, entry["originals"])), str(entry["label_sha256"]))
