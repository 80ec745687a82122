"""What the runs of `brain_semi.py` amount to: Dice per class, paired differences and their intervals, as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _machine import machine_lines, table
from numpy.typing import NDArray

__all__ = ["bootstrap_interval", "dice_scores", "page", "rarest_third", "summary"]

_DRAWS = 10_000
_GROUPS = ("all classes", "tail", "others")
_REFERENCES = ("supervised", "mean teacher")
_UNLEARNED = 0.1  # Dice below which arms fail alike

Scores = NDArray[np.float64]


def rarest_third(voxels: Mapping[str, int]) -> list[str]:
    """Return the third of the classes with the fewest voxels, rarest first."""
    return sorted(voxels, key=lambda name: voxels[name])[: round(len(voxels) / 3)]


def dice_scores(runs: Sequence[Mapping[str, Any]], arm: str) -> Scores:
    """Return Dice of one arm, shape (seeds, test cases, classes); NaN where neither side has the class."""
    own = sorted((run for run in runs if run["arm"] == arm), key=lambda run: run["seed"])
    return np.array([[list(case.values()) for case in run["dice"].values()] for run in own], dtype=float)


def bootstrap_interval(differences: Scores) -> tuple[float, float]:
    """Return the 95 % interval of the mean of ``differences``, shape (seeds, test cases).

    Seeds and test cases are drawn anew, both with replacement: each may be peculiar.
    """
    rng = np.random.default_rng(0)
    seeds, cases = (rng.integers(n, size=(_DRAWS, n)) for n in differences.shape)
    means = differences[seeds[:, :, None], cases[:, None, :]].mean(axis=(1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return Dice and paired differences of every arm of which all seeds are there."""
    settings, names, tail = result["settings"], list(result["voxels"]), rarest_third(result["voxels"])
    groups = _members(names, tail)
    scores = {arm: dice_scores(result["runs"], arm) for arm in settings["arms"]}
    complete = {arm: own for arm, own in scores.items() if len(own) == len(settings["seeds"])}
    means = {arm: {group: _mean(own[..., rows]) for group, rows in groups.items()} for arm, own in complete.items()}
    return {
        "tail": tail,
        "arms": {
            arm: {
                "dice": {group: float(values.mean()) for group, values in means[arm].items()},
                "training_cpu_s": _median_seconds(result["runs"], arm),
                "per_class": dict(zip(names, np.nanmean(own, axis=(0, 1)).tolist(), strict=True)),
                "against": {
                    other: {group: _difference(means[arm][group], means[other][group]) for group in groups}
                    for other in _references(arm)
                    if other in complete
                },
            }
            for arm, own in complete.items()
        },
    }


def page(result: Mapping[str, Any]) -> str:
    """Return the Markdown page."""
    found = summary(result)
    tables = [_group_table(found), _difference_table(found), _class_table(result, found)]
    parts = [_heading(result, found), _reading(found), *tables]
    return "\n".join("\n".join([*part, ""]) for part in parts)


def _references(arm: str) -> list[str]:
    """Return with which arms this one is compared: the simpler ones."""
    return [] if arm == "supervised" else [other for other in _REFERENCES if other != arm]


def _median_seconds(runs: Sequence[Mapping[str, Any]], arm: str) -> float:
    return float(np.median([run["training_cpu_s"] for run in runs if run["arm"] == arm]))


def _members(names: list[str], tail: list[str]) -> dict[str, NDArray[np.bool_]]:
    rare = np.array([name in tail for name in names])
    return dict(zip(_GROUPS, (np.ones_like(rare), rare, ~rare), strict=True))


def _mean(scores: Scores) -> Scores:
    """Mean over classes that the case or its prediction has, shape (seeds, test cases)."""
    return np.nanmean(scores, axis=-1)


def _difference(own: Scores, other: Scores) -> dict[str, Any]:
    difference = own - other
    low, high = bootstrap_interval(difference)
    return {"mean": float(difference.mean()), "low": low, "high": high, "better": int((difference > 0).sum())}


def _heading(result: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    settings = result["settings"]
    pairs = len(settings["seeds"]) * 4
    return [
        "# Brains with few labels",
        "",
        "**Real label maps, synthesised images, four test brains, a training of minutes on a processor.** The numbers",
        "compare arms under one small budget; they say nothing about long trainings, real images or patients.",
        "",
        "- data: label maps 01 to 14 of SynthSeg (Apache-2.0), 2 mm. Each seed draws one contrast that all its cases "
        f"share, the {settings['labelled']} labelled cases of 01 to 10 and the first weights; 11 to 14 are for testing",
        f"- classes: {len(result['voxels'])}, left and right in one. Tail is the rarest third in the training cases: "
        + ", ".join(found["tail"]),
        f"- network: {settings['network']}; input: image and position, patch {settings['patch']}",
        f"- budget: {settings['warm_up']} iterations on labelled patches, made once per seed; from there every arm "
        f"goes on for {settings['iterations']}. An iteration has one labelled patch, the same in all arms, and in all "
        "arms but the supervised one an unlabelled patch besides: they see more voxels and take longer",
        f"- optimiser: {settings['optimiser']}. Labelled patches: Dice + cross-entropy. Last weights of the student",
        f"- seeds: {', '.join(map(str, settings['seeds']))}. Intervals: 95 %, bootstrap over seeds and test cases, of "
        f"the mean of {pairs} paired differences. Three seeds and four brains are few, so they are rather too narrow, "
        "and of many such intervals some miss 0 by chance",
        *machine_lines(result["machine"]),
    ]


def _reading(found: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences that follow from them."""
    lines = [
        f"- {arm} against {other}, {group}: {'better' if difference['low'] > 0 else 'worse'}, {_cell(difference)}"
        for arm, own in found["arms"].items()
        for other, differences in own["against"].items()
        for group, difference in differences.items()
        if difference["low"] > 0 or difference["high"] < 0
    ]
    best = max(own["dice"]["tail"] for own in found["arms"].values())
    if best < _UNLEARNED:
        lines.append(
            f"- **No arm learned the tail in this budget (mean Dice at most {best:.3f}), so differences there mean "
            "nothing in practice, whatever their interval.**"
        )
    return ["## Which intervals miss 0", "", *(lines or ["- None."])]


def _group_table(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [arm, *(f"{own['dice'][group]:.3f}" for group in _GROUPS), f"{own['training_cpu_s']:.0f}"]
        for arm, own in found["arms"].items()
    ]
    columns = ["arm", *_GROUPS, "processor seconds after the start (median; busy machine)"]
    return ["## Dice", "", *table(columns, rows)]


def _difference_table(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [arm, other, *(_cell(differences[group]) for group in _GROUPS)]
        for arm, own in found["arms"].items()
        for other, differences in own["against"].items()
    ]
    return ["## Difference in Dice, with its interval", "", *table(["arm", "against", *_GROUPS], rows)]


def _class_table(result: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    voxels, arms = result["voxels"], found["arms"]
    rows = [
        [name + (" (tail)" if name in found["tail"] else ""), str(round(voxels[name])),
         *(f"{own['per_class'][name]:.3f}" for own in arms.values())]
        for name in sorted(voxels, key=lambda name: -voxels[name])
    ]  # fmt: skip
    return ["## Dice of each class", "", *table(["class", "voxels per training case", *arms], rows)]


def _cell(difference: Mapping[str, Any]) -> str:
    return f"{difference['mean']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})"
