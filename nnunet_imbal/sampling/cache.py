"""Find the instances of a dataset once and keep them in a file, for as long as nothing they depend on changes."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal._progress import track
from nnunet_imbal.errors import DataError
from nnunet_imbal.io import write_atomically
from nnunet_imbal.sampling.index import MAX_POSITIONS, InstanceIndex, Region, find_instances, merge

__all__ = ["build_index", "cached_index"]

_FORMAT = 1  # raise it whenever the same input gives another index
_MOST_WORKERS = 8

Loader = Callable[[str], NDArray[Any]]


def cached_index(
    path: Path,
    files: Mapping[str, Path],
    load: Loader,
    classes: Sequence[Region],
    *,
    min_voxels: int = 1,
    say: Callable[[str], None] = print,
) -> InstanceIndex:
    """Read the index from a file, or build it and write the file.

    The file counts only if cases, size and time of each label map, classes and settings are those it was made from,
    and if no byte of it changed since. A folder that cannot be written costs the file, not the training.

    Args:
        path: ``X.npz``; what it was made from is written beside it as ``X.json``. The folder is made if need be.
        files: name of each case and the file with its label map.
        load: name of a case -> its label map ``(Z, Y, X)`` or ``(Y, X)``; called from several threads.
        classes: as in `find_instances`.
        min_voxels: as in `find_instances`.
        say: takes the messages.

    Raises:
        DataError: a label map cannot be read; names the case.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     labels = Path(folder, "a.npy")
        ...     np.save(labels, np.eye(3, dtype=np.uint8))
        ...     words = []
        ...     for _ in range(2):
        ...         index = cached_index(
        ...             Path(folder, "x.npz"), {"a": labels}, lambda name: np.load(labels), [(1,)], say=words.append
        ...         )
        >>> len(index), len(words)
        (1, 1)
    """
    origin = _origin(files, classes, min_voxels)
    try:
        index = _read(path, origin)
        if index is not None:
            return index
    except (OSError, ValueError, TypeError) as error:
        say(f"{path} is damaged ({error}); it is made again.")
    index = build_index(list(files), load, classes, min_voxels=min_voxels)
    say(f"Found {len(index)} instances in {len(index.cases)} cases.")
    try:
        _write(path, index, origin)
    except (OSError, DataError) as error:
        say(f"The list of instances could not be kept for the next time: {error}")
    return index


def build_index(cases: Sequence[str], load: Loader, classes: Sequence[Region], *, min_voxels: int = 1) -> InstanceIndex:
    """Find the instances of all cases, several cases at a time, with a progress bar if it takes long.

    Args:
        cases: names, at least one.
        load: as in `cached_index`.
        classes: as in `find_instances`.
        min_voxels: as in `find_instances`.

    Raises:
        DataError: no case, or a label map cannot be read; names the case.
    """

    def find(case: str) -> InstanceIndex:
        try:
            return find_instances(load(case), classes, min_voxels=min_voxels, case=case)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"cannot find the instances of case {case}: {error}; preprocess it again") from error

    if not cases:
        raise DataError("there is no case to find instances in; check the split of the dataset")
    with ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1)) as pool:  # the kernels release the GIL
        return merge(list(track(pool.map(find, cases), len(cases), "Finding instances")))


def _origin(files: Mapping[str, Path], classes: Sequence[Region], min_voxels: int) -> dict[str, Any]:
    """Everything the index depends on, in JSON's own types."""
    return {
        "format": _FORMAT,
        "cases": [[case, *_state(case, path)] for case, path in files.items()],  # their order counts
        "classes": [list(region) for region in classes],
        "min_voxels": min_voxels,
        "positions": MAX_POSITIONS,
    }


def _state(case: str, path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path} of case {case}: {error.strerror}; preprocess it again") from error
    return state.st_size, state.st_mtime_ns


def _read(path: Path, origin: dict[str, Any]) -> InstanceIndex | None:
    """The stored index; None if there is none, or one of something else."""
    note = path.with_suffix(".json")
    if not (path.is_file() and note.is_file()):
        return None
    stored = json.loads(note.read_text(encoding="utf-8"))
    if not isinstance(stored, dict):
        raise ValueError(f"{note.name} holds no object")
    if stored.get("origin") != origin:
        return None
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != stored.get("sha256"):
        raise ValueError("its checksum is wrong")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        cases = tuple(case for case, _, _ in origin["cases"])
        classes = tuple(tuple(region) for region in origin["classes"])
        return InstanceIndex(cases, classes, **arrays)


def _write(path: Path, index: InstanceIndex, origin: dict[str, Any]) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, **index.arrays())  # type: ignore[arg-type]  # numpy's stubs: any key may be an option
    data = stream.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    note = {"origin": origin, "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(path.with_suffix(".json"), json.dumps(note, indent=1) + "\n")
