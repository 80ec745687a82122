"""Which lesions were found, and which findings are lesions: one common voxel is enough."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.metrics._masks import Mask, bounding_box, check_pair
from numba_kernels import connected_components

__all__ = ["Lesion", "LesionMatch", "f1_score", "match_lesions", "share"]


@dataclass(frozen=True)
class Lesion:
    """One connected component of a mask.

    Attributes:
        id: Its number in ``connected_components`` of that mask, from 1.
        voxels: Its size in voxels.
        centroid: Its mean voxel index along each axis.
        overlap_voxels: Voxels it shares with the other mask.
    """

    id: int
    voxels: int
    centroid: tuple[float, ...]
    overlap_voxels: int

    @property
    def detected(self) -> bool:
        """Whether the other mask touches it in at least one voxel."""
        return self.overlap_voxels > 0


@dataclass(frozen=True)
class LesionMatch:
    """Which lesions were found, and which findings are true.

    Attributes:
        reference: The true lesions; ``detected`` = at least one predicted voxel lies in it.
        prediction: The predicted components; not ``detected`` = false positive.
    """

    reference: tuple[Lesion, ...]
    prediction: tuple[Lesion, ...]

    @cached_property
    def false_positives(self) -> tuple[Lesion, ...]:
        """Predicted components without any true voxel."""
        return tuple(found for found in self.prediction if not found.detected)

    @property
    def recall(self) -> float:
        """Detected lesions / lesions (sensitivity); ``nan`` without lesions."""
        return share(sum(lesion.detected for lesion in self.reference), len(self.reference))

    @property
    def precision(self) -> float:
        """Predicted components that touch a lesion / predicted components; ``nan`` without a prediction."""
        return share(len(self.prediction) - len(self.false_positives), len(self.prediction))

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision, see `f1_score`."""
        return f1_score(self.recall, self.precision)


def match_lesions(pred: Mask, ref: Mask, connectivity: int | None = None) -> LesionMatch:
    """Ask lesion by lesion whether it was found, and finding by finding whether it is true.

    Args:
        pred: Predicted voxels, bool.
        ref: True voxels, bool, same shape.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D make one lesion. Default: all neighbours.

    Returns:
        The components of both masks, in scan order, with their sizes, centroids and overlaps. Empty tuples for
        empty masks.

    Raises:
        ValueError: The shapes differ, a mask is not bool, or the connectivity does not exist.

    Example:
        >>> truth, found = np.zeros((2, 1, 16), bool)
        >>> truth[:, [1, 2, 3, 4, 9, 12, 13]] = found[:, [1, 2, 3, 6, 13, 14]] = True
        >>> match = match_lesions(found, truth)
        >>> [lesion.detected for lesion in match.reference], len(match.false_positives)
        ([True, False, True], 1)
    """
    check_pair(pred, ref)
    box = bounding_box(pred | ref)
    corner = np.array([side.start for side in box], np.float64)
    pred, ref = pred[box], ref[box]
    return LesionMatch(_describe(ref, pred, corner, connectivity), _describe(pred, ref, corner, connectivity))


def share(part: int, whole: int) -> float:
    """``part / whole``, a number from 0 to 1; ``nan`` if the whole is 0."""
    return part / whole if whole else math.nan


def f1_score(recall: float, precision: float) -> float:
    """Harmonic mean ``2 P R / (P + R)``.

    Returns:
        0 to 1. If only one of the two is not defined, the case has nothing but misses or false alarms: 0. If both
        are not defined (nothing to find and nothing found), ``nan``.

    Example:
        >>> f1_score(1.0, 0.5)
        0.6666666666666666
    """
    if math.isnan(recall) and math.isnan(precision):
        return math.nan
    total = recall + precision
    return 2 * recall * precision / total if total > 0 else 0.0


def _describe(mask: Mask, other: Mask, corner: NDArray[np.float64], connectivity: int | None) -> tuple[Lesion, ...]:
    components, count = connected_components(mask, connectivity)
    where = np.nonzero(mask)
    number = components[where]
    voxels = np.bincount(number, minlength=count + 1)
    overlap = np.bincount(number[other[where]], minlength=count + 1)
    with np.errstate(invalid="ignore"):  # component 0, the background, is never listed
        means = [np.bincount(number, axis, count + 1) / voxels for axis in where]
    centroids = np.stack(means, axis=1) + corner
    return tuple(
        Lesion(i, int(voxels[i]), tuple(map(float, centroids[i])), int(overlap[i])) for i in range(1, count + 1)
    )
