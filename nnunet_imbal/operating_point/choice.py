"""Choose threshold and smallest volume of one class from what its cases show, and ask whether the choice holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics import FROC_THRESHOLDS, FrocCounts
from nnunet_imbal.operating_point.channels import ClassPoint

__all__ = [
    "THRESHOLDS",
    "VOLUMES_MM3",
    "Criterion",
    "Fit",
    "Scores",
    "fit_class",
    "is_better",
    "loses_dice",
    "single_point",
    "summarise",
]

THRESHOLDS = FROC_THRESHOLDS
VOLUMES_MM3 = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0, 200.0, 300.0, 500.0, 1000.0)

Numbers = NDArray[np.float64]
Index = tuple[int, int]
_STOCK = (THRESHOLDS.index(0.5), VOLUMES_MM3.index(0.0))


@dataclass(frozen=True)
class Criterion:
    """What makes one operating point better than another.

    Attributes:
        at_most_false_positives: None: the highest lesion-wise F1. A number: the highest lesion recall among the points
            with at most so many false positives per case.
        largest_dice_loss: The mean Dice may be so much lower than with stock nnU-Net, no more.

    Raises:
        ConfigError: A number is negative or not finite.
    """

    at_most_false_positives: float | None = None
    largest_dice_loss: float = 0.01

    def __post_init__(self) -> None:
        for name in ("at_most_false_positives", "largest_dice_loss"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value}: expected a number, 0 or more")

    def __str__(self) -> str:
        """The criterion in words."""
        price = self.at_most_false_positives
        what = "highest lesion F1" if price is None else f"highest lesion recall at {price:g} false positives per case"
        return f"{what}, mean Dice at most {self.largest_dice_loss:g} below stock"


@dataclass(frozen=True)
class Scores:
    """How good a set of cases is for one class; None = not defined.

    Attributes:
        recall: Detected lesions / lesions of all cases.
        precision: Predicted components that touch a lesion / predicted components of all cases.
        f1: Harmonic mean of both.
        false_positives_per_case: Predicted components without a true voxel / cases.
        dice: Mean over the cases in which something is true or predicted.
    """

    recall: float | None
    precision: float | None
    f1: float | None
    false_positives_per_case: float
    dice: float | None


@dataclass(frozen=True)
class Fit:
    """The choice for one class.

    Attributes:
        point: What to use: the best point, or that of stock nnU-Net if the best one did not hold.
        best: The best point on all cases together.
        held_out: For each group of cases the point chosen without it.
        stock: Scores at the point of stock nnU-Net.
        fitted: Scores of ``best`` on the cases it was chosen on: too good to be true.
        tested: Scores of ``held_out``, each on the cases it was not chosen on.
        reason: Why ``point`` is what it is, one sentence.
    """

    point: ClassPoint
    best: ClassPoint
    held_out: dict[int, ClassPoint]
    stock: Scores
    fitted: Scores
    tested: Scores
    reason: str


@dataclass(frozen=True, eq=False)
class _Surface:
    """The `Scores` of a set of cases at all points; ``nan`` = not defined."""

    recall: Numbers
    precision: Numbers
    f1: Numbers
    false_positives_per_case: Numbers
    dice: Numbers

    def at(self, index: Index) -> Scores:
        values = {name: float(getattr(self, name)[index]) for name in Scores.__dataclass_fields__}
        return Scores(**{name: None if math.isnan(value) else value for name, value in values.items()})  # type: ignore[arg-type]


def fit_class(counts: Sequence[FrocCounts], groups: Sequence[int], criterion: Criterion) -> Fit:
    """Choose the point of one class on all cases, and test it by leaving out one group of cases after the other.

    The choice is kept if, on the cases it was *not* chosen on, it is better than stock nnU-Net by the criterion and
    costs no more Dice than that allows.

    Args:
        counts: What each case shows at `THRESHOLDS` and `VOLUMES_MM3`.
        groups: Group of each case, for example its fold; at least two different ones.
        criterion: What to look for.
    """
    surface = _surface(counts)
    best, stock = _select(surface, criterion), surface.at(_STOCK)
    held_out = {
        group: _select(_surface([c for c, g in zip(counts, groups, strict=True) if g != group]), criterion)
        for group in sorted(set(groups))
    }
    tested = summarise([single_point(c, held_out[g]) for c, g in zip(counts, groups, strict=True)])
    kept, reason = _verdict(best, stock, tested, criterion)
    points = {group: _point(index) for group, index in held_out.items()}
    return Fit(_point(best) if kept else ClassPoint(), _point(best), points, stock, surface.at(best), tested, reason)


def summarise(counts: Sequence[FrocCounts]) -> Scores:
    """Scores of cases counted at one point each."""
    return _surface(counts).at((0, 0))


def single_point(counts: FrocCounts, index: Index) -> FrocCounts:
    """The same case at one point only. Points of different cases may differ, so the point is not kept."""
    box = slice(index[0], index[0] + 1), slice(index[1], index[1] + 1)
    return replace(
        counts,
        thresholds=np.zeros(1),
        volumes_mm3=np.zeros(1),
        detected=counts.detected[box],
        components=counts.components[box],
        false_positives=counts.false_positives[box],
        predicted_voxels=counts.predicted_voxels[box],
        common_voxels=counts.common_voxels[box],
    )


def _surface(counts: Sequence[FrocCounts]) -> _Surface:
    lesions = sum(case.lesions for case in counts)
    detected = np.sum([case.detected for case in counts], axis=0)
    components = np.sum([case.components for case in counts], axis=0)
    alarms = np.sum([case.false_positives for case in counts], axis=0)
    dice = np.stack([case.dice for case in counts])
    recall, precision = _share(detected, np.full_like(components, lesions)), _share(components - alarms, components)
    return _Surface(
        recall=recall,
        precision=precision,
        f1=_f1(recall, precision),
        false_positives_per_case=alarms / len(counts),
        dice=_share(np.nansum(dice, axis=0), (~np.isnan(dice)).sum(axis=0)),
    )


def _share(part: NDArray[Any], whole: NDArray[Any]) -> Numbers:
    return np.divide(part, whole, out=np.full(whole.shape, math.nan), where=whole > 0)


def _f1(recall: Numbers, precision: Numbers) -> Numbers:
    """As `nnunet_imbal.metrics.f1_score`, for arrays."""
    r, p = np.nan_to_num(recall), np.nan_to_num(precision)
    f1 = np.divide(2 * r * p, r + p, out=np.zeros(r.shape), where=r + p > 0)
    f1[np.isnan(recall) & np.isnan(precision)] = math.nan
    return f1


def _select(surface: _Surface, criterion: Criterion) -> Index:
    """The best point; of equally good ones that of stock nnU-Net, or the one nearest to it."""
    price = criterion.at_most_false_positives
    value = surface.f1 if price is None else surface.recall
    allowed = surface.dice >= surface.dice[_STOCK] - criterion.largest_dice_loss
    if price is not None:
        allowed &= surface.false_positives_per_case <= price
    allowed &= ~np.isnan(value)
    if not allowed.any() or np.isnan(surface.recall).all():
        return _STOCK
    ties = np.argwhere(allowed & (value == value[allowed].max()))
    distance = [(abs(THRESHOLDS[i] - 0.5), VOLUMES_MM3[j], THRESHOLDS[i]) for i, j in ties]
    i, j = ties[min(range(len(ties)), key=distance.__getitem__)]
    return int(i), int(j)


def _point(index: Index) -> ClassPoint:
    return ClassPoint(THRESHOLDS[index[0]], VOLUMES_MM3[index[1]])


def _verdict(best: Index, stock: Scores, tested: Scores, criterion: Criterion) -> tuple[bool, str]:
    if stock.recall is None:
        return False, "stock: the validation cases show no lesion of this class"
    if best == _STOCK:
        return False, _why_stock(stock, criterion)
    change = f"{_describe(stock, criterion)} -> {_describe(tested, criterion)} on cases it was not chosen on"
    if not is_better(tested, stock, criterion):
        return False, f"stock: what looked best did not hold, {change}"
    if loses_dice(tested, stock, criterion):
        return False, f"stock: what looked best costs Dice, {stock.dice:.3f} -> {tested.dice or 0:.3f}"
    return True, change


def _why_stock(stock: Scores, criterion: Criterion) -> str:
    price = criterion.at_most_false_positives
    if price is None or stock.false_positives_per_case <= price:
        return "stock: no point is better"
    return f"stock: no point has at most {price:g} false positives per case at so little Dice"


def is_better(scores: Scores, stock: Scores, criterion: Criterion) -> bool:
    """Whether the scores are better than those of stock nnU-Net by the criterion, whatever they cost in Dice."""
    price = criterion.at_most_false_positives
    if price is None:
        return (scores.f1 or 0) > (stock.f1 or 0)
    if stock.false_positives_per_case > price:
        return scores.false_positives_per_case < stock.false_positives_per_case
    return (scores.recall or 0) > (stock.recall or 0)


def loses_dice(scores: Scores, stock: Scores, criterion: Criterion) -> bool:
    """Whether the mean Dice is lower than with stock nnU-Net by more than the criterion allows."""
    return stock.dice is not None and (scores.dice or 0) < stock.dice - criterion.largest_dice_loss


def _describe(scores: Scores, criterion: Criterion) -> str:
    if criterion.at_most_false_positives is None:
        return f"F1 {scores.f1 or 0:.3f}"
    return f"recall {scores.recall or 0:.3f} at {scores.false_positives_per_case:.2f} false positives per case"
