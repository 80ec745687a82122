"""What training labels tell about anatomy: which classes touch each other, and how thick the vessels are."""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import numba_kernels
from nnunet_imbal._progress import track
from nnunet_imbal.errors import DataError

__all__ = ["Adjacency", "learn_adjacency", "learn_radius_range"]

LabelMap = NDArray[Any] | Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class Adjacency:
    """In how many cases two classes occur together, and in how many of them they touch.

    Attributes:
        together: ``C`` rows of ``C`` numbers of cases, background left out.
        touching: the same for cases in which a voxel of one is the neighbour of a voxel of the other.
    """

    together: list[list[int]]
    touching: list[list[int]]

    def share(self) -> NDArray[np.float64]:
        """Share of the cases with both classes in which they touch, ``(C, C)`` in [0, 1]; 0 without such a case."""
        return np.array(self.touching) / np.maximum(self.together, 1)

    def forbidden(self, *, rarely: float = 0.02, least_cases: int = 5) -> list[list[float]]:
        """Pairs that never or hardly ever touch: 1, all others 0; for the word ``forbidden`` of `AGTALLoss`.

        Args:
            rarely: a smaller share of cases than this counts as never.
            least_cases: pairs seen together in fewer cases are allowed: there is no evidence against them.

        Example:
            >>> Adjacency([[9, 9], [9, 9]], [[0, 0], [0, 0]]).forbidden()
            [[0.0, 1.0], [1.0, 0.0]]
        """
        never = (self.share() < rarely) & (np.array(self.together) >= least_cases)
        np.fill_diagonal(never, False)
        return never.astype(float).tolist()

    def with_mirror_image(self, table: Sequence[int]) -> "Adjacency":
        """Count every case and its mirror image, of which the left classes are the right ones.

        Args:
            table: label values after the flip, see `nnunet_imbal.laterality.swap_table`; background is 0.

        Example:
            >>> Adjacency([[1, 1], [1, 1]], [[0, 1], [1, 0]]).with_mirror_image([0, 2, 1]).together
            [[2, 2], [2, 2]]
        """
        classes = np.array(table[1 : len(self.together) + 1]) - 1
        flipped = np.ix_(classes, classes)
        both = [(counts + counts[flipped]).tolist() for counts in map(np.array, (self.together, self.touching))]
        return Adjacency(*both)

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        part = Path(path).with_suffix(".part")
        part.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Adjacency":
        """Read what `save` wrote.

        Raises:
            DataError: the file cannot be read or is not such a file.
        """
        try:
            entry = json.loads(Path(path).read_text(encoding="utf-8"))
            found = cls(entry["together"], entry["touching"])
            together, touching = np.array(found.together), np.array(found.touching)
            square = together.ndim == 2 and together.shape == touching.shape == together.T.shape
            valid = square and together.dtype.kind == touching.dtype.kind == "i" and (touching >= 0).all()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no file of Adjacency.save ({error}); learn the adjacency again") from error
        if not valid or (touching > together).any():
            raise DataError(f"{path} holds impossible numbers of cases; learn the adjacency again")
        return found


def learn_adjacency(
    label_maps: Sequence[LabelMap], num_classes: int, connectivity: int | None = None, *, threads: int = 4
) -> Adjacency:
    """Count over the cases of a training set which classes touch.

    Args:
        label_maps: arrays ``(Y, X)`` or ``(Z, Y, X)`` of integers 0..num_classes-1, or functions that read one.
        num_classes: number of classes, background included.
        connectivity: 4 or 8 neighbours in 2-D, 6, 18 or 26 in 3-D. Default: all.
        threads: cases read and counted at a time.

    Returns:
        Counts without background, hence of ``num_classes - 1`` classes. Mirroring the images while training needs
        labels that are mirrored too, and counts of both sides.

    Raises:
        ValueError: a label out of range, or an impossible connectivity.

    Example:
        >>> case = np.array([[1, 1, 0, 2], [1, 1, 3, 3]])
        >>> learn_adjacency([case, case], 4).touching
        [[0, 0, 2], [0, 0, 2], [2, 2, 0]]
    """

    def count(label_map: LabelMap) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        labels = label_map() if callable(label_map) else label_map
        contacts = numba_kernels.class_contacts(labels, num_classes, connectivity)[1:, 1:]
        present = np.isin(np.arange(1, num_classes), labels)
        return np.outer(present, present), contacts > 0

    together = touching = np.zeros((num_classes - 1, num_classes - 1), np.int64)
    for both, contact in _each_case(count, label_maps, threads, "Learning which classes touch"):
        together, touching = together + both, touching + contact
    return Adjacency(together.tolist(), touching.tolist())


def learn_radius_range(
    label_maps: Sequence[LabelMap], spacings: Sequence[Sequence[float]], *, threads: int = 4
) -> tuple[float, float]:
    """Smallest and largest usual radius of the vessels of a training set, for the word ``radius_range``.

    Args:
        label_maps: as in `learn_adjacency`; everything but 0 is vessel.
        spacings: mm per voxel of each case.
        threads: cases read and measured at a time.

    Returns:
        1st and 99th percentile in mm of the local thickness over all voxels of vessels.

    Raises:
        DataError: there is no vessel, or all are equally thick, so that there is no range.

    Example:
        >>> vessels = np.array([[0, 1, 1, 1, 0, 1, 0]])
        >>> learn_radius_range([vessels], [(1.0, 0.5)])
        (0.515, 1.0)
    """

    def measure(case: tuple[LabelMap, Sequence[float]]) -> NDArray[np.float32]:
        labels = case[0]() if callable(case[0]) else case[0]
        radii = numba_kernels.local_thickness(labels, case[1])
        return radii[radii > 0]

    cases = list(zip(label_maps, spacings, strict=True))
    radii = list(_each_case(measure, cases, threads, "Measuring the vessels"))
    values = np.concatenate(radii) if radii else np.zeros(0, np.float32)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (1, 99)).tolist() if values.size else (0.0, 0.0)
    if not low < high:
        raise DataError(f"the radii of the vessels span no range ({low:g} to {high:g} mm); give radius_range yourself")
    return low, high


def _each_case(work: Callable[[Any], Any], cases: Sequence[Any], threads: int, description: str) -> Iterable[Any]:
    with ThreadPoolExecutor(threads) as pool:
        yield from track(pool.map(work, cases), len(cases), description)
