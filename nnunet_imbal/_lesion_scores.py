"""The lesion-wise part of an evaluation: scores of one class of one case as JSON-ready dictionaries."""

import math
from collections.abc import Sequence

from nnunet_imbal.metrics import (
    BRATS2023_RULES,
    Matcher,
    MatchingMetric,
    lesionwise_brats2023,
    lesionwise_brats_mets2026,
    panoptic_quality,
)
from nnunet_imbal.metrics._masks import Mask

__all__ = ["LESION_RULES", "Entry", "lesionwise_entry", "number", "panoptic_entry"]

Entry = dict[str, float | None]
METS2026 = "brats-mets2026"
LESION_RULES = (*(f"brats2023-{task.lower()}" for task in BRATS2023_RULES), METS2026)


def panoptic_entry(
    pred: Mask, ref: Mask, metric: MatchingMetric, threshold: float, matcher: Matcher, connectivity: int
) -> Entry:
    """Counts and scores of `panoptic_quality`; None where a score is not defined."""
    quality = panoptic_quality(
        pred, ref, metric=metric, threshold=threshold, matcher=matcher, connectivity=connectivity
    )
    counts = ("true_positives", "false_positives", "false_negatives")
    return _read(quality, *counts, "rq", "sq_iou", "sq_dsc", "pq", "pq_dsc")


def lesionwise_entry(pred: Mask, ref: Mask, spacing: Sequence[float], rule: str) -> Entry:
    """Scores by the rule of a challenge; None where a score is not defined."""
    if rule == METS2026:
        new = lesionwise_brats_mets2026(pred, ref, spacing)
        return _read(new, "false_positives", "dice", "nsd", "hd95_mm", "large_f1", "small_f1")
    old = lesionwise_brats2023(pred, ref, spacing, BRATS2023_RULES[rule.removeprefix("brats2023-").upper()])
    return _read(old, "true_positives", "false_positives", "false_negatives", "dice", "hd95_mm")


def number(value: float) -> float | None:
    """JSON knows neither nan nor infinity."""
    return value if math.isfinite(value) else None


def _read(scores: object, *names: str) -> Entry:
    return {name: number(getattr(scores, name)) for name in names}
