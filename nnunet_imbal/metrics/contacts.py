"""Which vessels, vertebrae or organs touch, and whether the same ones touch in the prediction."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.metrics._masks import bounding_box
from nnunet_imbal.metrics.detection import f1_score, share
from numba_kernels import class_contacts

__all__ = ["ContactMatch", "match_contacts", "touching_classes"]

Pairs = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class ContactMatch:
    """Result of `match_contacts`: pairs of labels, the smaller first.

    Attributes:
        kept: Pairs that touch in both maps.
        missed: Pairs that touch in the truth only, such as a branch that is cut off from its trunk.
        invented: Pairs that touch in the prediction only, such as two arteries that have grown together.
    """

    kept: Pairs
    missed: Pairs
    invented: Pairs

    @property
    def recall(self) -> float:
        """Kept pairs / true pairs; ``nan`` if nothing touches in the truth."""
        return share(len(self.kept), len(self.kept) + len(self.missed))

    @property
    def precision(self) -> float:
        """Kept pairs / predicted pairs; ``nan`` if nothing touches in the prediction."""
        return share(len(self.kept), len(self.kept) + len(self.invented))

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision: 0 to 1; ``nan`` if nothing touches in either map."""
        return f1_score(self.recall, self.precision)


def touching_classes(labels: NDArray[Any], connectivity: int | None = None) -> Pairs:
    """List which classes touch which: the edges of the graph whose nodes are the classes.

    The number of contacts that anatomy does not allow (TopBrain's invalid neighbours) is
    ``len(touching_classes(pred) - allowed)``, where ``allowed`` unites `touching_classes` of all training cases.

    Args:
        labels: Label map ``(Y, X)`` or ``(Z, Y, X)``, bool or integer, 0 is background.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D touch. Default: all neighbours.

    Returns:
        Pairs of labels, the smaller first, without background; empty if nothing touches.

    Raises:
        TypeError: The labels are neither bool nor integer.
        ValueError: A label is negative, there are not 2 or 3 axes, or the connectivity does not exist.

    Example:
        >>> sorted(touching_classes(np.array([[1, 2, 0, 3], [1, 0, 0, 1]])))
        [(1, 2), (1, 3)]
    """
    values, numbers = _number(np.asarray(labels))
    contacts = class_contacts(numbers, len(values), connectivity)
    pairs = np.argwhere(np.triu(contacts))
    return frozenset((int(values[a]), int(values[b])) for a, b in pairs if a > 0)


def match_contacts(pred: NDArray[Any], ref: NDArray[Any], connectivity: int | None = None) -> ContactMatch:
    """Ask whether the same classes touch in prediction and truth: is every branch joined to its trunk, and to no other?

    Args:
        pred: Predicted label map ``(Y, X)`` or ``(Z, Y, X)``, bool or integer, 0 is background.
        ref: True label map, same shape.
        connectivity: See `touching_classes`.

    Returns:
        Kept, missed and invented pairs, with recall, precision and F1.

    Raises:
        TypeError: The labels are neither bool nor integer.
        ValueError: The shapes differ, a label is negative, there are not 2 or 3 axes, or the connectivity does not
            exist.

    Example:
        >>> match_contacts(np.array([[1, 0, 2, 3]]), np.array([[1, 2, 2, 3]]))
        ContactMatch(kept=frozenset({(2, 3)}), missed=frozenset({(1, 2)}), invented=frozenset())

    Source:
        Our reconstruction: TopCoW asks for equal lists of neighbours, TopBrain counts impossible ones; this is the
        same information as recall and precision.
    """
    if pred.shape != ref.shape:
        raise ValueError(f"prediction {pred.shape} and reference {ref.shape} differ in shape; expected the same grid")
    found, true = touching_classes(pred, connectivity), touching_classes(ref, connectivity)
    return ContactMatch(found & true, true - found, found - true)


def _number(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Labels that occur, 0 first, and each voxel's index among them: the table of contacts stays small."""
    if labels.dtype.kind not in "biu":
        raise TypeError(f"labels must be bool or integer, got {labels.dtype}; threshold or round them first")
    if labels.size and labels.min() < 0:
        raise ValueError(f"labels must be 0 or more, got {labels.min()}; set voxels to ignore to 0")
    cropped = labels[bounding_box(labels != 0)].astype(np.intp)
    occurs = np.zeros(int(labels.max(initial=0)) + 1, bool)
    occurs[0] = True
    occurs[cropped] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[cropped]
