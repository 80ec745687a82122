"""Lesion-wise scores by the rules of the challenge BraTS-METS of 2026."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics._instances import Overlaps, count_overlaps, union_score
from nnunet_imbal.metrics._masks import Mask, check_spacing, grow_box, join_boxes
from nnunet_imbal.metrics._matching import match_optimally
from nnunet_imbal.metrics.surface import surface_distances

__all__ = ["BratsMets2026Lesion", "LesionwiseBratsMets2026", "lesionwise_brats_mets2026"]

PENALTY_MM = 373.0
_ANY_OVERLAP = 1e-6


@dataclass(frozen=True)
class BratsMets2026Lesion:
    """One true component and the predicted one that was assigned to it.

    Attributes:
        volume_mm3: Its volume.
        prediction: Number of the predicted component, from 1 in scan order; None = missed.
        dice: Dice of the two; 0 if missed.
        nsd: Mean over both outlines of their share within a tolerance of one voxel (the shortest side); 0 if missed.
        hd95_mm: 95th percentile of all distances of both outlines together; 373 if missed.
    """

    volume_mm3: float
    prediction: int | None = None
    dice: float = 0.0
    nsd: float = 0.0
    hd95_mm: float = PENALTY_MM


@dataclass(frozen=True)
class LesionwiseBratsMets2026:
    """Result of `lesionwise_brats_mets2026`.

    Attributes:
        lesions: All true components, in scan order.
        false_positives: Predicted components that were assigned to no lesion.
        volume_threshold: mm³ from which on a lesion is large.
        overlap_threshold: Dice from which on a lesion counts as detected.
    """

    lesions: tuple[BratsMets2026Lesion, ...]
    false_positives: int
    volume_threshold: float
    overlap_threshold: float

    @property
    def large(self) -> tuple[BratsMets2026Lesion, ...]:
        """Lesions of at least the volume threshold."""
        return tuple(lesion for lesion in self.lesions if lesion.volume_mm3 >= self.volume_threshold)

    @property
    def small(self) -> tuple[BratsMets2026Lesion, ...]:
        """Lesions below the volume threshold."""
        return tuple(lesion for lesion in self.lesions if lesion.volume_mm3 < self.volume_threshold)

    @property
    def dice(self) -> float:
        """Mean Dice of large lesions and, as 0, of all false positives; ``nan`` without a large lesion."""
        return self._mean([lesion.dice for lesion in self.large], 0.0)

    @property
    def nsd(self) -> float:
        """Mean surface Dice, as `dice`."""
        return self._mean([lesion.nsd for lesion in self.large], 0.0)

    @property
    def hd95_mm(self) -> float:
        """Mean HD95 of large lesions and, as 373 mm, of all false positives; ``nan`` without a large lesion."""
        return self._mean([lesion.hd95_mm for lesion in self.large], PENALTY_MM)

    @property
    def large_f1(self) -> float:
        """``2 TP / (2 TP + FP + FN)`` of large lesions with *all* false positives; ``nan`` without a large lesion."""
        return self._f1(self.large)

    @property
    def small_f1(self) -> float:
        """The same of small lesions, again with *all* false positives; ``nan`` without a small lesion."""
        return self._f1(self.small)

    def _mean(self, scores: list[float], penalty: float) -> float:
        return float(np.mean(scores + [penalty] * self.false_positives)) if scores else math.nan

    def _f1(self, lesions: tuple[BratsMets2026Lesion, ...]) -> float:
        hits = sum(lesion.prediction is not None and lesion.dice >= self.overlap_threshold for lesion in lesions)
        return 2 * hits / (hits + len(lesions) + self.false_positives) if lesions else math.nan


def lesionwise_brats_mets2026(
    pred: Mask,
    ref: Mask,
    spacing: Sequence[float],
    *,
    volume_threshold: float = 20.0,
    overlap_threshold: float = 0.1,
) -> LesionwiseBratsMets2026:
    """Score large lesions by their outline and small ones by detection (BraTS-METS 2026).

    Predicted and true components (26 neighbours, in 2-D 8) are assigned one to one so that the sum of their Dice is
    largest; any common voxel allows a pair. Nothing is dilated. A false positive counts in the mean of the large
    lesions and in both F1 scores, whatever its size.

    Args:
        pred: Predicted voxels, bool, ``(Y, X)`` or ``(Z, Y, X)``.
        ref: True voxels, bool, same shape.
        spacing: mm per voxel along each axis.
        volume_threshold: mm³ from which on a lesion is large.
        overlap_threshold: Dice from which on an assigned lesion counts as detected.

    Returns:
        The lesions, counts and scores: Dice, NSD and F1 from 0 to 1, HD95 in mm. Without a large (small) lesion
        the scores of large (small) lesions are ``nan`` and false positives cost nothing there.

    Raises:
        ConfigError: A threshold is negative or not finite.
        ValueError: The shapes differ, a mask is not bool, or there is not one positive spacing per axis.

    Example:
        >>> truth, found = np.zeros((2, 1, 1, 16), bool)
        >>> truth[..., [1, 2, 3, 4, 9, 12, 13]] = found[..., [1, 2, 3, 6, 13, 14]] = True
        >>> scores = lesionwise_brats_mets2026(found, truth, (1, 1, 1), volume_threshold=2)
        >>> round(scores.dice, 6), scores.large_f1, scores.small_f1
        (0.452381, 0.8, 0.0)

    Source:
        The challenge's evaluator BraTS-evaluation 0.0.10 with panoptica 2.1 (published code, no paper). A patient whose
        prediction is missing scores 0 (HD95 373) there, even without lesions; an empty mask does not.
    """
    for name, value in (("volume_threshold", volume_threshold), ("overlap_threshold", overlap_threshold)):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} {value}: expected a number, 0 or more")
    step = check_spacing(spacing, ref.shape)
    table = count_overlaps(pred, ref)
    matches = match_optimally(table, "dsc", _ANY_OVERLAP)
    common, voxel = table.common(), float(step.prod())
    lesions = []
    for number, size in enumerate(table.ref.sizes[1:].tolist(), start=1):
        if number not in matches:
            lesions.append(BratsMets2026Lesion(size * voxel))
            continue
        (found,) = matches[number]
        dice = union_score(common[found, number], int(table.pred.sizes[found]), size, "dsc")
        nsd, hd95_mm = _surface_scores(table, number, found, step.tolist())
        lesions.append(BratsMets2026Lesion(size * voxel, found, dice, nsd, hd95_mm))
    return LesionwiseBratsMets2026(tuple(lesions), table.pred.count - len(matches), volume_threshold, overlap_threshold)


def _surface_scores(table: Overlaps, lesion: int, found: int, step: list[float]) -> tuple[float, float]:
    """NSD and HD95 as panoptica defines them: not those of `surface_dice` and `hd95`."""
    boxes = np.stack([table.ref.boxes[lesion], table.pred.boxes[found]])
    box = grow_box(join_boxes(boxes), 0, table.ref.map.shape)
    distances = surface_distances(table.pred.map[box] == found, table.ref.map[box] == lesion, step)
    ways = (distances.to_reference, distances.to_prediction)
    tolerance = min(step) * (1 + 1e-6)  # as in SurfaceDistances.dice
    return float(np.mean([np.mean(way <= tolerance) for way in ways])), float(np.percentile(np.concatenate(ways), 95))
