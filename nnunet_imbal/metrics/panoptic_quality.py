"""Panoptic quality: how many lesions were found, times how well these were outlined."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics._instances import Overlaps, count_overlaps, union_score
from nnunet_imbal.metrics._masks import Mask
from nnunet_imbal.metrics._matching import MATCHERS

__all__ = ["MatchedPair", "Matcher", "MatchingMetric", "PanopticQuality", "check_matching", "panoptic_quality"]

Matcher = Literal["greedy", "hungarian", "merge"]
MatchingMetric = Literal["iou", "dsc"]


@dataclass(frozen=True)
class MatchedPair:
    """A lesion and what was found of it.

    Attributes:
        reference: Number of the true component, from 1 in scan order.
        prediction: Numbers of the predicted components; several only with the matcher "merge".
        iou: Intersection over union of the lesion with these components.
        dsc: Their Dice.
    """

    reference: int
    prediction: tuple[int, ...]
    iou: float
    dsc: float


@dataclass(frozen=True)
class PanopticQuality:
    """Result of `panoptic_quality`.

    Attributes:
        pairs: The matched lesions, by their numbers.
        false_positives: Predicted components that are matched to no lesion.
        false_negatives: Lesions that are matched to no predicted component.
    """

    pairs: tuple[MatchedPair, ...]
    false_positives: int
    false_negatives: int

    @property
    def true_positives(self) -> int:
        """Matched lesions."""
        return len(self.pairs)

    @property
    def rq(self) -> float:
        """Recognition quality ``TP / (TP + FP/2 + FN/2)``, the F1 score of detection; ``nan`` if nothing is there."""
        half = (self.false_positives + self.false_negatives) / 2
        return self.true_positives / (self.true_positives + half) if self.true_positives or half else math.nan

    @property
    def sq_iou(self) -> float:
        """Segmentation quality: mean IoU of the pairs; 0 without a pair, ``nan`` if nothing is there at all."""
        return self._mean(pair.iou for pair in self.pairs)

    @property
    def sq_dsc(self) -> float:
        """Mean Dice of the pairs; 0 without a pair, ``nan`` if nothing is there at all."""
        return self._mean(pair.dsc for pair in self.pairs)

    @property
    def pq(self) -> float:
        """Panoptic quality ``RQ * SQ`` with the IoU as segmentation quality."""
        return self.rq * self.sq_iou

    @property
    def pq_dsc(self) -> float:
        """``RQ * SQ`` with the Dice as segmentation quality."""
        return self.rq * self.sq_dsc

    def _mean(self, scores: Iterable[float]) -> float:
        return float(np.mean(list(scores))) if self.pairs else 0 * self.rq


def panoptic_quality(
    pred: Mask,
    ref: Mask,
    *,
    metric: MatchingMetric = "iou",
    threshold: float = 0.5,
    matcher: Matcher = "greedy",
    connectivity: int | None = None,
) -> PanopticQuality:
    """Ask how many lesions were found, how many findings are wrong, and how well the found ones are outlined.

    Components that share a voxel are candidates; their IoU or Dice decides who belongs to whom.
    ``PQ = RQ * SQ``, ``RQ = TP / (TP + FP/2 + FN/2)``, ``SQ`` = mean score of the pairs. With a threshold above 0.5
    on the IoU a lesion has at most one partner; below, the matcher decides:

    - "greedy": one to one, highest score first; equal scores in scan order.
    - "hungarian": one to one, largest sum of scores.
    - "merge": as "greedy", but further predicted components join a lesion if that raises its score.

    Args:
        pred: Predicted voxels, bool, ``(Y, X)`` or ``(Z, Y, X)``.
        ref: True voxels, bool, same shape.
        metric: "iou" or "dsc", which decides about a match.
        threshold: Lowest score of a match, included, 0 to 1. Only components that share a voxel can match.
        matcher: See above.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D make one lesion. Default: all neighbours.

    Returns:
        Pairs, counts and the scores from 0 to 1; scores are ``nan`` if there is neither a lesion nor a prediction.

    Raises:
        ConfigError: Unknown metric or matcher, or a threshold outside 0..1.
        ValueError: The shapes differ, a mask is not bool, or the connectivity does not exist.

    Example:
        >>> truth, found = np.zeros((2, 1, 1, 16), bool)
        >>> truth[..., [1, 2, 3, 4, 9, 12, 13]] = found[..., [1, 2, 3, 6, 13, 14]] = True
        >>> quality = panoptic_quality(found, truth)
        >>> quality.true_positives, quality.false_positives, quality.false_negatives, quality.sq_iou, quality.pq
        (1, 2, 2, 0.75, 0.25)

    Source:
        Kirillov et al., CVPR 2019, arXiv 1801.00868 (published); matchers and edge cases as in panoptica 2.1
        (Kofler et al., arXiv 2312.02608), except that there the 2-D default is 4 neighbours.
    """
    check_matching(metric, threshold, matcher)
    table = count_overlaps(pred, ref, connectivity)
    matches = MATCHERS[matcher](table, metric, threshold)
    common = table.common()
    pairs = tuple(_describe(table, common, truth, matches[truth]) for truth in sorted(matches))
    used = sum(len(pair.prediction) for pair in pairs)
    return PanopticQuality(pairs, table.pred.count - used, table.ref.count - len(pairs))


def check_matching(metric: str, threshold: float, matcher: str) -> None:
    """Refuse what `panoptic_quality` does not know.

    Raises:
        ConfigError: Unknown metric or matcher, or a threshold outside 0..1.
    """
    for name, value, known in (("metric", metric, MatchingMetric), ("matcher", matcher, Matcher)):
        if value not in get_args(known):
            raise ConfigError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold {threshold}: expected a score from 0 to 1")


def _describe(table: Overlaps, common: dict[tuple[int, int], int], truth: int, found: list[int]) -> MatchedPair:
    overlap = sum(common[number, truth] for number in found)
    sizes = int(table.pred.sizes[found].sum()), int(table.ref.sizes[truth])
    return MatchedPair(truth, tuple(found), union_score(overlap, *sizes, "iou"), union_score(overlap, *sizes, "dsc"))
