"""Stock nnU-Net beside the trainers for vessels on one dataset: same patches, same first weights, same steps.

All arms go on from the same warmed-up network: minutes on two processor cores are too few to learn a vessel from
nothing, and the published recipes start their terms on topology late, too.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _machine import describe_machine, machine_lines, table
from _short_nnunet import Budget, Workspace, predict, train, warm_up, write_plans

import trainers
from nnunet_imbal.evaluation import EvaluationSettings, evaluate_folders
from nnunet_imbal.io import write_atomically

__all__ = [
    "ARMS",
    "BATCH",
    "FEATURES",
    "PATCH",
    "STOCK",
    "Study",
    "at_once",
    "make_parser",
    "markdown",
    "run_study",
]

STOCK = "stock nnU-Net"
ARMS: Mapping[str, Mapping[str, Any] | None] = {
    STOCK: None,
    "clDice": trainers.ImbalTrainerClDice.imbal,
    "Skeleton Recall": trainers.ImbalTrainerSkeletonRecall.imbal,
    "AG-TAL-R": trainers.ImbalTrainerAGTAL.imbal,
}
PATCH, BATCH, FEATURES = (24, 32, 32), 2, (8, 16, 32)
SETTING: Mapping[str, Any] = {
    "patch": list(PATCH),
    "batch": BATCH,
    "features": list(FEATURES),
    "forced_patches": 1.0,
    "warm_up": [10, 100],
    "warm_up_rate": 3e-3,
    "rate": 1e-3,
}


@dataclass(frozen=True)
class Study:
    """What differs from dataset to dataset.

    Attributes:
        name: of the two files with the result.
        title: heading of the page.
        prepare: makes, plans and preprocesses the dataset in a folder; done once.
        rare: classes with a column of their own.
        test_cases: how many cases are predicted.
        setting: everything that must be the same when a benchmark goes on.
        notes: what a reader must know about the data.
    """

    name: str
    title: str
    prepare: Callable[[Path], Workspace]
    rare: Sequence[str]
    test_cases: int
    setting: Mapping[str, Any]
    notes: Sequence[str]


def at_once(imbal: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The same terms from the first step on: there are too few steps to let some wait."""
    if imbal is None:
        return None
    return {**imbal, "terms": [{**term, "from_epoch": 0, "ramp_epochs": 0} for term in imbal["terms"]]}


def run_arm(workspace: Workspace, arm: str, budget: Budget, device: str) -> dict[str, Any]:
    """Train, predict and measure one arm with one seed."""
    name = f"{arm.replace(' ', '_')}_{budget.seed}"
    plans = write_plans(workspace.plans, arm, at_once(ARMS[arm]))
    trainer, out = "StockShort" if arm == STOCK else "ImbalShort", workspace.folder / "predictions" / name
    run = {"arm": arm, "seed": budget.seed}
    run |= train(workspace, trainer, budget, device, plans=plans, log=f"logs/train_{name}.txt")
    predict(workspace, trainer, out, device, plans=plans, log=f"logs/predict_{name}.txt")
    settings = EvaluationSettings(topology=True)
    path = workspace.folder / f"evaluation_{name}.json"
    return run | scores(evaluate_folders(out, workspace.raw / "labelsTs", path, settings=settings))


def scores(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the tables out of an evaluation."""
    summary, tree = result["summary"], result["topology"]
    return {
        "dice": {name: entry["dice"]["mean"] for name, entry in summary.items()},
        "cldice": {name: entry["topology"]["cldice"]["mean"] for name, entry in summary.items()},
        "b0_error": {name: entry["topology"]["b0_error"]["mean"] for name, entry in summary.items()},
        "cldice_merged": tree["cldice"]["mean"],
        "b0_error_merged": tree["b0_error"]["mean"],
        "b1_error_merged": tree["b1_error"]["mean"],
    }


def run_study(study: Study, arguments: argparse.Namespace) -> dict[str, Any]:
    """All arms with all seeds, seed by seed; runs that the folder already holds are kept."""
    stored = arguments.out / f"{study.name}.json"
    result = json.loads(stored.read_text()) if stored.is_file() else {"runs": []}
    result.setdefault("machine", describe_machine(arguments.device))
    setting = {**SETTING, **study.setting, "steps": [arguments.epochs, arguments.iterations]}
    if result.setdefault("setting", setting) != setting:
        raise SystemExit(f"{stored} was made with {result['setting']}, asked is {setting}: use another folder")
    workspace = study.prepare(arguments.out / "nnunet")
    done = {(run["arm"], run["seed"]) for run in result["runs"]}
    start = Budget(*setting["warm_up"], 0, setting["warm_up_rate"], setting["forced_patches"])
    weights = warm_up(workspace, write_plans(workspace.plans, "warm-up"), start, arguments.device)
    for seed in arguments.seeds:
        budget = Budget(*setting["steps"], seed, setting["rate"], setting["forced_patches"], weights)
        for arm in ARMS:
            if (arm, seed) not in done:
                result["runs"].append(run_arm(workspace, arm, budget, arguments.device))
                write_results(study, result, arguments.out)
                print(result["runs"][-1], flush=True)
    return result


def write_results(study: Study, result: Mapping[str, Any], out: Path) -> None:
    """Write JSON and page."""
    write_atomically(out / f"{study.name}.json", json.dumps(result, indent=1) + "\n")
    write_atomically(out / f"{study.name}.md", markdown(study, result))


def markdown(study: Study, result: Mapping[str, Any]) -> str:
    """The result as a page."""
    runs, setting = result["runs"], result["setting"]
    seeds = sorted({run["seed"] for run in runs})
    same = all(len({run["patches_checksum"] for run in runs if run["seed"] == seed}) == 1 for seed in seeds)
    cases = "1 test case" if study.test_cases == 1 else f"{study.test_cases} test cases"
    lines = [
        f"# {study.title}",
        "",
        f"Mean over {cases} and seed {', '.join(map(str, seeds))}; in brackets the lowest and the highest seed.",
        "Differences between arms that are smaller than between seeds mean nothing; one seed alone cannot tell.",
        "",
        *_table(runs, _main_columns(study)),
        "",
        "Each class, Dice:",
        "",
        *_table(runs, _class_columns(runs, "dice")),
        "",
        "Each class, clDice (1 = the centre lines of each lie inside the other):",
        "",
        *_table(runs, _class_columns(runs, "cldice")),
        "",
        "Each class, pieces too many or too few (B0 error):",
        "",
        *_table(runs, _class_columns(runs, "b0_error")),
        "",
        *(f"- {note}" for note in study.notes),
        f"- stock nnU-Net learns for {_steps(setting['warm_up'])} steps (AdamW, learning rate "
        f"{setting['warm_up_rate']} falling to 0), once; from there every arm takes "
        f"{_steps(setting['steps'])} steps (learning rate {setting['rate']} falling to 0). A seed chooses the patches "
        "of these steps only, so seeds differ less than whole trainings would",
        f"- batch {setting['batch']}, patch "
        f"{' x '.join(map(str, setting['patch']))}, features {'-'.join(map(str, setting['features']))}, share of "
        f"forced foreground patches {setting['forced_patches']}, fold `all`, last checkpoint, no test-time mirroring",
        "- every term of the loss counts from the first of these steps; weights and options are those of the trainers",
        f"- all arms saw the same patches: {'yes' if same else 'NO'} (checksum of all training patches)",
        "- a class that is in neither map of a case does not count; Dice and clDice are 0 if it is in one of them only",
        *machine_lines(result["machine"]),
    ]
    return "\n".join([*lines, ""])


def _steps(epochs_and_iterations: Sequence[int]) -> int:
    epochs, iterations = epochs_and_iterations
    return epochs * iterations


Column = tuple[str, Callable[[Mapping[str, Any]], float | None]]


def _main_columns(study: Study) -> list[Column]:
    return [
        ("mean Dice", lambda run: _mean(run["dice"].values())),
        *((f"Dice {name}", lambda run, name=name: run["dice"][name]) for name in study.rare),
        ("mean B0 error", lambda run: _mean(run["b0_error"].values())),
        ("clDice merged", lambda run: run["cldice_merged"]),
        ("B0 error merged", lambda run: run["b0_error_merged"]),
        ("B1 error merged", lambda run: run["b1_error_merged"]),
        ("training, s by the clock", lambda run: run["epochs_s"]),
    ]


def _class_columns(runs: Sequence[Mapping[str, Any]], key: str) -> list[Column]:
    return [(name, lambda run, name=name: run[key][name]) for name in runs[0][key]]


def _table(runs: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[str]:
    """One line per arm."""
    rows = []
    for arm in ARMS:
        own = [run for run in runs if run["arm"] == arm]
        rows.append([arm, str(len(own)), *(_spread([value(run) for run in own]) for _, value in columns)])
    return table(["arm", "seeds", *(name for name, _ in columns)], rows)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    digits = 0 if max(known) >= 100 else 3
    middle, low, high = (f"{value:.{digits}f}" for value in (np.mean(known), min(known), max(known)))
    return middle if len(known) == 1 else f"{middle} [{low}, {high}]"


def make_parser(description: str | None, epochs: int, iterations: int) -> argparse.ArgumentParser:
    """The command line of a study."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything the benchmark makes")
    parser.add_argument("--epochs", type=int, default=epochs, help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=iterations, help="steps per epoch (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser
