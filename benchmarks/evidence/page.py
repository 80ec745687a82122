"""Turn the committed results of the evidence suite into pages and figures: one page per study, and an overview.

``python benchmarks/evidence/page.py`` reads ``benchmarks/results/evidence_*.json`` and writes the pages beside them,
``docs/evidence.md`` and ``docs/figures/evidence_*.png``.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))  # the other benchmarks: this file is started as a script

import numpy as np  # noqa: E402
from _machine import machine_lines, table  # noqa: E402
from _numbers import (  # noqa: E402
    OPERATING_PRICE,
    PRICES,
    Difference,
    Measure,
    arm_values,
    cases_of,
    class_mean,
    compare,
    finished,
    measures,
    stair,
    tail_classes,
    verdict,
)

STUDIES = ("ms_sim2real", "brain_tail", "vessels", "organs", "control")
RIVALS = ("stock", "stock_oversampling")
OURS = "ImbalTrainer"
CALIBRATED = ("Dice", "PQ", "false positives", "recall", "recall at equal false positives",
              "smallest third at equal false positives")  # fmt: skip
RESULTS, DOCS = HERE.parent / "results", HERE.parents[1] / "docs"

Json = Mapping[str, Any]


def study_page(result: Json) -> str:
    """Everything that one study found, as Markdown."""
    settings = result["settings"]
    parts = [
        [f"# {settings['title']}"],
        setting_lines(result),
        ["## Means", "", *means_table(result), *calibration_lines(result)],
        ["## Targets", "", *target_lines(result)],
        ["## Differences, with 95 % intervals", "", *difference_table(result)],
        *([["## Dice of each class", "", *class_table(result)]] if len(result["voxels"]) > 1 else []),
        ["## Machine", "", *machine_lines(result["machine"]), f"- commits: {', '.join(_commits(result))}"],
    ]
    return "\n".join("\n".join([*part, ""]) for part in parts)


def setting_lines(result: Json) -> list[str]:
    """Budget, seeds and cases, as a list."""
    settings, budget = result["settings"], result["settings"]["budget"]
    runs = {arm: len(finished(result, arm)) for arm in settings["arms"]}
    cases = cases_of(result["runs"][0])
    rate = "nnU-Net's optimiser" if budget["learning_rate"] is None else f"AdamW from {budget['learning_rate']:g} to 0"
    size = (
        "nnU-Net's own patch, batch and network"
        if budget["patch"] is None
        else f"patch {_times(budget['patch'])}, batch {budget['batch']}, "
        f"features {'-'.join(map(str, budget['features']))}, bfloat16"
    )
    missing = [f"{arm} ({n} of {len(settings['seeds'])})" for arm, n in runs.items() if n < len(settings["seeds"])]
    return [
        *(f"- {note}" for note in json.loads((HERE / f"{result['study']}.json").read_text(encoding="utf-8"))["notes"]),
        f"- budget `{budget['name']}`: {_start(budget)} {budget['epochs'] * budget['iterations']} iterations, "
        f"{rate}, {size}; last checkpoint, no test-time mirroring",
        f"- {len(cases)} test cases, seeds {', '.join(map(str, settings['seeds']))}; "
        + (f"**runs that are missing: {', '.join(missing)}**" if missing else "all runs are there"),
        *([f"- tail: {', '.join(tail_classes(result))}"] if tail_classes(result) else []),
        *_froc_lines(result),
    ]


def means_table(result: Json) -> list[str]:
    """One line per arm: means over test cases and seeds."""
    known = measures(result)
    rows = []
    for arm in result["settings"]["arms"]:
        seeds = finished(result, arm)
        if seeds:
            seconds = np.median([run["epochs_s"] for run in result["runs"] if run["arm"] == arm])
            rows.append([arm, str(len(seeds)), *_means(result, arm, known), f"{seconds:.0f}"])
    return table(["arm", "seeds", *known, "training, s by the clock"], rows)


def calibration_lines(result: Json) -> list[str]:
    """How the arms do on held-out cases of the training's kind."""
    if not result["settings"]["probabilities"]:
        return []
    known = {name: measures(result)[name] for name in CALIBRATED}
    arms = [arm for arm in result["settings"]["arms"] if finished(result, arm)]
    rows = [[arm, *_means(result, arm, known, "calibration")] for arm in arms]
    for rival in RIVALS:
        found = [compare(result, OURS, rival, each, "calibration") for each in known.values()]
        rows.append([f"{OURS} - {rival}", *map(_interval, found)])
    return [
        "",
        "The same on the calibration cases, which are of the training's kind. The weights of the recipe were chosen on",
        "them, so this is no test of it, but shows how much of the above is the way from synthetic to real images.",
        "",
        *table(["arm", *known], rows),
    ]


def target_lines(result: Json) -> list[str]:
    """Whether `ImbalTrainer` does what it should, against both rivals."""
    targets = result["settings"]["targets"]
    if not targets:
        return ["No target was set for this study."]
    known, rows = measures(result), []
    for name, kind, bound in targets:
        for rival in RIVALS:
            found = compare(result, OURS, rival, known[name])
            rows.append([name, rival, _bound(kind, bound), *_outcome(found, kind, bound)])
    return table([f"{OURS}: measure", "against", "target", "measured", "verdict"], rows)


def difference_table(result: Json) -> list[str]:
    """Every arm against the two rivals, in every measure."""
    known, rows = measures(result), []
    for arm in result["settings"]["arms"]:
        for rival in RIVALS:
            found = [compare(result, arm, rival, measure) for measure in known.values()]
            if arm not in (rival, "stock") and any(found):
                rows.append([arm, rival, *map(_interval, found)])
    return table(["arm", "against", *known], rows)


def class_table(result: Json) -> list[str]:
    """Dice of each class, most voxels first."""
    arms = [arm for arm in result["settings"]["arms"] if finished(result, arm)]
    rows = []
    for name, voxels in sorted(result["voxels"].items(), key=lambda item: -item[1]):
        own = [arm_values(result, arm, class_mean("dice", [name]), finished(result, arm)) for arm in arms]
        rows.append([name, f"{voxels:.0f}", *(_number(_nanmean(values)) for values in own)])
    return table(["class", "voxels per training case", *arms], rows)


def overview(results: Mapping[str, Json]) -> str:
    """``docs/evidence.md``."""
    parts = [_introduction(), ["## Targets", "", *_all_targets(results)]]
    for study in STUDIES:
        if study in results:
            result = results[study]
            link = f"[All numbers of this study](../benchmarks/results/evidence_{study}.md)"
            figure = [f"![{result['settings']['title']}](figures/evidence_{study}.png)", ""]
            parts.append([f"## {result['settings']['title']}", "", *setting_lines(result), "", *means_table(result),
                          *calibration_lines(result), "", *figure, link])  # fmt: skip
    missing = [study for study in STUDIES if study not in results]
    parts.append(["## Not run", "", *(f"- `{study}`" for study in missing)] if missing else ["All studies were run."])
    return "\n".join("\n".join([*part, ""]) for part in parts)


def write_pages(results: Path, docs: Path) -> None:
    """Write all pages and figures."""
    found = load_results(results)
    for study, result in found.items():
        (results / f"evidence_{study}.md").write_text(study_page(result))
        draw(result, docs / "figures" / f"evidence_{study}.png")
    (docs / "evidence.md").write_text(overview(found))


def load_results(folder: Path) -> dict[str, Any]:
    """Results of the studies that were run."""
    paths = {study: folder / f"evidence_{study}.json" for study in STUDIES}
    return {study: json.loads(path.read_text()) for study, path in paths.items() if path.is_file()}


def draw(result: Json, path: Path) -> None:
    """FROC curves where there are probabilities, else the differences from stock nnU-Net with their intervals."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    (_draw_froc if result["settings"]["probabilities"] else _draw_differences)(result, axes)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _draw_froc(result: Json, axes: Any) -> None:
    prices = np.geomspace(0.5, 64, 200)
    for arm in result["settings"]["arms"]:
        runs = [run for run in result["runs"] if run["arm"] == arm]
        if runs:
            curves = [stair(run, cases_of(run), prices) for run in runs]
            axes.plot(prices, np.mean(curves, axis=0), label=f"{arm} ({len(runs)})")
    axes.set(xscale="log", xlabel="false positives per case", ylabel="lesions found, of all", ylim=(0, 1))
    axes.legend(title="arm (seeds), mean", fontsize=8)
    axes.grid(alpha=0.3)


def _draw_differences(result: Json, axes: Any) -> None:
    name, measure = _headline(result)
    labels = []
    for arm in result["settings"]["arms"]:
        found = None if arm == "stock" else compare(result, arm, "stock", measure)
        if found is not None:
            axes.plot([found.low, found.high], [len(labels)] * 2, color="tab:blue")
            axes.plot(found.mean, len(labels), "o", color="tab:blue")
            labels.append(arm)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set(xlabel=f"{name}: difference from stock nnU-Net, 95 % interval", yticks=range(len(labels)))
    axes.set_yticklabels(labels)
    axes.grid(alpha=0.3, axis="x")


def _headline(result: Json) -> tuple[str, Any]:
    known, targets = measures(result), result["settings"]["targets"]
    name = targets[0][0] if targets else "tail Dice"
    return name, known[name]


def _introduction() -> list[str]:
    return [
        "# Evidence",
        "",
        "Does `ImbalTrainer` help, and at what price? Each study trains stock nnU-Net, stock nnU-Net with two thirds",
        "of the patches forced to show foreground (the cheap rival that anybody can switch on), `ImbalTrainer` as it",
        "configures itself, and single methods alone. All arms of a seed start from the same weights and take as many",
        "steps; budgets, seeds, arms and targets stand in `benchmarks/evidence/STUDY.json`. This page is generated",
        "from the results; we publish where we lose as well.",
        "",
        "```bash",
        "python benchmarks/evidence/run.py ms_sim2real out/ms --data DIR   # DIR holds open_ms_data and synthseg",
        "python benchmarks/evidence/run.py control out/control             # likewise vessels and organs",
        "python benchmarks/evidence/run.py brain_tail out/brains --data DIR --budget full --device cuda",
        "python benchmarks/evidence/page.py  # once the files evidence_*.json are in benchmarks/results",
        "```",
        "",
        "**Read the numbers with care.** The budget `short` is minutes on a processor, far from a full training. In",
        "all studies but the control, the arms of a seed go on from a network that stock nnU-Net has warmed up, so",
        "they differ less than whole trainings would. It compares arms under that budget and says nothing about long",
        "trainings or patients. Intervals (95 %) come from a paired bootstrap over seeds and test cases; with as few",
        "of both they are too narrow, and of many such intervals some miss 0 by chance.",
    ]


def _all_targets(results: Mapping[str, Json]) -> list[str]:
    lines = []
    for study in STUDIES:
        if study not in results:
            lines += [f"**{study}**: not run.", ""]
        else:
            lines += [f"**{study}**", "", *target_lines(results[study]), ""]
    return lines[:-1]


def _froc_lines(result: Json) -> list[str]:
    if not result["settings"]["probabilities"]:
        return []
    low, high = result["runs"][0]["size_edges_mm3"]
    prices = ", ".join(f"{price:g}" for price in PRICES)
    return [
        f"- thirds of the test lesions by size: below {low:.0f}, to {high:.0f}, above {high:.0f} mm³; a lesion is "
        "found if one voxel of it is predicted",
        "- at equal false positives: in each test case the highest recall that any threshold and smallest volume "
        f"reach with at most {prices} false positives, mean over these five prices",
        "- operating point: threshold and smallest volume with the highest recall on the calibration cases at no more "
        f"than {OPERATING_PRICE:g} false positives per case there; these are held-out cases of the training's kind",
    ]


def _start(budget: Json) -> str:
    if budget["warm_up"] is None:
        return "from random weights"
    steps = budget["warm_up"]["epochs"] * budget["warm_up"]["iterations"]
    return f"stock nnU-Net learns for {steps} iterations, once with each seed; from there every arm takes"


def _outcome(found: Difference | None, kind: str, bound: float) -> tuple[str, str]:
    if found is None:
        return "-", "not run"
    share = f", {100 * found.mean / found.other:+.0f} %" if kind == "ratio" and found.other else ""
    return _interval(found) + share, "met" if verdict(found, kind, bound) else "**missed**"


def _bound(kind: str, bound: float) -> str:
    if kind == "ratio":
        return f"{100 * bound:+.0f} % or better"
    return f"within ±{bound:g}" if kind == "within" else f"at least {bound:+g}"


def _interval(found: Difference | None) -> str:
    if found is None:
        return "-"
    interval = "one seed" if np.isnan(found.low) else f"{found.low:+.3f} to {found.high:+.3f}"
    return f"{found.mean:+.3f} ({interval})"


def _means(result: Json, arm: str, known: Mapping[str, Measure], kind: str = "test") -> list[str]:
    seeds = finished(result, arm)
    return [_number(_nanmean(arm_values(result, arm, measure, seeds, kind))) for measure in known.values()]


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _nanmean(values: Any) -> float:
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _commits(result: Json) -> list[str]:
    return sorted({run["commit"] for run in result["runs"]})


if __name__ == "__main__":
    write_pages(RESULTS, DOCS)
