"""What the runs of a study amount to: one number per seed and test case, and paired differences between arms."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from _brain_page import bootstrap_interval, rarest_third
from numpy.typing import NDArray

__all__ = [
    "OPERATING_PRICE",
    "PRICES",
    "Difference",
    "Measure",
    "arm_values",
    "cases_of",
    "class_mean",
    "compare",
    "finished",
    "measures",
    "operating_point",
    "stair",
    "tail_classes",
    "verdict",
]

PRICES = (2.0, 4.0, 8.0, 16.0, 32.0)  # false positives per case at which recalls are compared
OPERATING_PRICE = 8.0  # false positives per calibration case that an operating point may cost

Json = Mapping[str, Any]
Values = NDArray[np.float64]
Measure = Callable[[Json, str], float]


class Difference(NamedTuple):
    """Mean of the paired differences, its 95 % interval, and the mean of the arm it is compared with.

    With one seed the interval is NaN: a bootstrap over a few test cases alone would look far too sure.
    """

    mean: float
    low: float
    high: float
    other: float


def measures(result: Json) -> dict[str, Measure]:
    """Return what can be said about the runs of this study: name -> function of run and case."""
    settings, tail = result["settings"], tail_classes(result)
    known = {"Dice": class_mean("dice")}
    if tail:
        known["tail Dice"] = class_mean("dice", tail)
    if settings["topology"]:
        known |= {"clDice": class_mean("cldice"), "B0 error": class_mean("b0_error")}
    known |= {"PQ": class_mean("pq"), "false positives": _false_positives}
    return known | _LESION_MEASURES if settings["probabilities"] else known


def tail_classes(result: Json) -> list[str]:
    """The rarest third of the classes in the training cases; none if there are fewer than three."""
    return rarest_third(result["voxels"]) if len(result["voxels"]) > 2 else []


def finished(result: Json, arm: str) -> list[int]:
    """Seeds of which this arm has a run."""
    return sorted(run["seed"] for run in result["runs"] if run["arm"] == arm)


def arm_values(result: Json, arm: str, measure: Measure, seeds: Sequence[int], kind: str = "test") -> Values:
    """One number for each seed and case of a kind, shape (seeds, cases); NaN where it is not defined."""
    runs = {run["seed"]: run for run in result["runs"] if run["arm"] == arm}
    return np.array([[measure(runs[seed], case) for case in cases_of(runs[seed], kind)] for seed in seeds], dtype=float)


def cases_of(run: Json, kind: str = "test") -> list[str]:
    """Names of the test cases, or of the ``"calibration"`` cases."""
    return sorted(case for case in run["cases"] if case.startswith(kind))


def compare(result: Json, arm: str, other: str, measure: Measure, kind: str = "test") -> Difference | None:
    """Difference of two arms over the seeds that both have; None if there is none."""
    seeds = sorted(set(finished(result, arm)) & set(finished(result, other)))
    if not seeds:
        return None
    own, rival = (arm_values(result, name, measure, seeds, kind) for name in (arm, other))
    difference = own - rival
    difference = difference[:, ~np.isnan(difference).any(axis=0)]  # a case without lesions of that size
    if not difference.size:
        return None
    interval = bootstrap_interval(difference) if len(seeds) > 1 else (float("nan"), float("nan"))
    return Difference(float(difference.mean()), *interval, float(np.nanmean(rival)))


def verdict(found: Difference, kind: str, bound: float) -> bool:
    """Whether a target is met: ``at least`` and ``within`` look at the difference, ``ratio`` at its share."""
    if kind == "ratio":
        return bool(found.other > 0 and found.mean / found.other <= bound)
    return abs(found.mean) < bound if kind == "within" else found.mean >= bound


def operating_point(run: Json) -> tuple[int, int]:
    """Where in threshold and volume the calibration cases show the highest recall at the price they may cost.

    Among equal recalls the one with fewer false positives; where every point costs too much, the cheapest. Test cases
    have no say.
    """
    counts = [entry for case, entry in run["froc"].items() if case.startswith("calibration")]
    price = np.mean([entry["false_positives"] for entry in counts], axis=0)
    found = np.sum([np.sum(entry["found"], axis=0) for entry in counts], axis=0)
    best = np.lexsort((price.ravel(), -found.ravel(), np.maximum(price.ravel(), OPERATING_PRICE)))[0]
    threshold, volume = np.unravel_index(best, price.shape)
    return int(threshold), int(volume)


def stair(run: Json, cases: Sequence[str], prices: Values) -> Values:
    """Highest recall over all lesions of some cases at each price in false positives per case."""
    counts = [run["froc"][case] for case in cases]
    price = np.mean([entry["false_positives"] for entry in counts], axis=0)
    found = np.sum([np.sum(entry["found"], axis=0) for entry in counts], axis=0)
    lesions = sum(sum(entry["lesions"]) for entry in counts)
    return np.array([found[price <= most].max(initial=0) for most in prices]) / lesions


def _at_equal_price(entry: Json, thirds: Sequence[int]) -> float:
    """Mean over `PRICES` of the recall in ``thirds`` where the whole case has its highest affordable recall."""
    price, found = np.array(entry["false_positives"]).ravel(), np.array(entry["found"]).reshape(3, -1)
    lesions = sum(entry["lesions"][third] for third in thirds)
    if not lesions:
        return float("nan")
    total, own = found.sum(axis=0), found[list(thirds)].sum(axis=0)
    best = [np.lexsort((price, -own, -total, price > most))[0] for most in PRICES]
    # Where even the most timid point costs too much, nothing is affordable.
    return float(np.mean([own[n] if price[n] <= most else 0 for n, most in zip(best, PRICES, strict=True)]) / lesions)


def class_mean(key: str, names: Sequence[str] | None = None) -> Measure:
    """Mean over classes, without those where the number is not defined."""

    def measure(run: Json, case: str) -> float:
        classes = run["cases"][case]
        known = [classes[name][key] for name in names or classes if classes[name][key] is not None]
        return float(np.mean(known)) if known else float("nan")

    return measure


def _false_positives(run: Json, case: str) -> float:
    return float(sum(entry["false_positives"] for entry in run["cases"][case].values()))


def _recall(thirds: Sequence[int], point: Callable[[Json], tuple[int, int]]) -> Measure:
    def measure(run: Json, case: str) -> float:
        entry, (threshold, volume) = run["froc"][case], point(run)
        lesions = sum(entry["lesions"][third] for third in thirds)
        return sum(entry["found"][third][threshold][volume] for third in thirds) / lesions if lesions else float("nan")

    return measure


def _at_operating_point(key: str) -> Measure:
    def measure(run: Json, case: str) -> float:
        threshold, volume = operating_point(run)
        return float(run["froc"][case][key][threshold][volume])

    return measure


def _stock_point(run: Json) -> tuple[int, int]:
    """Where nnU-Net itself decides: at probability 0.5, whatever the volume."""
    return run["thresholds"].index(0.5), run["volumes_mm3"].index(0.0)


_LESION_MEASURES: Mapping[str, Measure] = {
    "recall": _recall((0, 1, 2), _stock_point),
    "recall, smallest third": _recall((0,), _stock_point),
    "recall, largest third": _recall((2,), _stock_point),
    "recall at equal false positives": lambda run, case: _at_equal_price(run["froc"][case], (0, 1, 2)),
    "smallest third at equal false positives": lambda run, case: _at_equal_price(run["froc"][case], (0,)),
    "operating point: recall": _recall((0, 1, 2), operating_point),
    "operating point: false positives": _at_operating_point("false_positives"),
    "operating point: Dice": _at_operating_point("dice"),
}
