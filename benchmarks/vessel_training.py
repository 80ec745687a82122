"""Thin vessels with names: which loss keeps them whole, on artificial angiographies of the circle of Willis.

Every arm gets the same patches, the same first weights and the same number of steps. The first arm is stock nnU-Net,
which mirrors without exchanging left and right; all others exchange them, so the second shows what that alone does.
Meant for a GPU: 240 steps, what two processor cores do in minutes, teach no class of vessels at all (Dice 0).
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _machine import describe_machine, machine_lines
from _short_nnunet import Budget, Workspace, plan, predict, train

import trainers
from nnunet_imbal.evaluation import EvaluationSettings, evaluate_folders
from nnunet_imbal.phantoms import VesselPhantom, write_dataset

PHANTOM = VesselPhantom(shape=(56, 60, 76), spacing=(1.2, 1.0, 1.0))
CASES, TEST_CASES = 16, 8
PATCH, BATCH, FEATURES = (40, 48, 56), 2, (16, 32, 64)
STOCK = "stock nnU-Net"
ARMS: Mapping[str, Mapping[str, Any] | None] = {
    STOCK: None,
    "stock loss": {"terms": [], "mirroring": "auto"},
    "clDice": trainers.ImbalTrainerClDice.imbal,
    "Skeleton Recall": trainers.ImbalTrainerSkeletonRecall.imbal,
    "AG-TAL-R": trainers.ImbalTrainerAGTAL.imbal,
}
RARE = ("Acom", "R-Pcom", "L-Pcom")


def prepare(folder: Path) -> Workspace:
    """Make the dataset, plan it, and write the plans of every arm; done once."""
    workspace = Workspace(folder, 710, PHANTOM.title)
    if not workspace.planned.is_file():
        write_dataset(PHANTOM, workspace.raw.parent, dataset_id=710, cases=CASES, test_cases=TEST_CASES)
        plan(workspace, PATCH, BATCH, FEATURES)
    for arm, imbal in ARMS.items():
        write_plans(workspace.plans, arm, imbal)
    return workspace


def write_plans(stock: Path, arm: str, imbal: Mapping[str, Any] | None) -> str:
    """Write the plans of one arm beside nnU-Net's own; return their name."""
    plans = json.loads(stock.read_text())
    plans["plans_name"] = "nnUNetPlans_" + "".join(filter(str.isalnum, arm))
    if imbal is not None:
        # With as few steps every term counts from the start.
        terms = [{**term, "from_epoch": 0, "ramp_epochs": 0} for term in imbal["terms"]]
        plans["configurations"]["3d_short"]["imbal"] = {**imbal, "terms": terms, "mirroring": "auto"}
    stock.with_name(plans["plans_name"] + ".json").write_text(json.dumps(plans, indent=1))
    return str(plans["plans_name"])


def run_arm(workspace: Workspace, arm: str, budget: Budget, device: str) -> dict[str, Any]:
    """Train, predict and measure one arm with one seed."""
    name = f"{arm.replace(' ', '_')}_{budget.seed}"
    plans = write_plans(workspace.plans, arm, ARMS[arm])
    trainer, out = "StockShort" if arm == STOCK else "ImbalShort", workspace.folder / "predictions" / name
    run = {"arm": arm, "seed": budget.seed}
    run |= train(workspace, trainer, budget, device, plans=plans, log=f"logs/train_{name}.txt")
    predict(workspace, trainer, out, device, plans=plans, log=f"logs/predict_{name}.txt")
    settings = EvaluationSettings(topology=True)
    path = workspace.folder / f"evaluation_{name}.json"
    return run | scores(evaluate_folders(out, workspace.raw / "labelsTs", path, settings=settings))


def scores(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the table out of an evaluation."""
    summary, tree = result["summary"], result["topology"]
    return {
        "dice": {name: entry["dice"]["mean"] for name, entry in summary.items()},
        "b0_error": _mean(entry["topology"]["b0_error"]["mean"] for entry in summary.values()),
        "cldice_merged": tree["cldice"]["mean"],
        "b0_error_merged": tree["b0_error"]["mean"],
        "b1_error_merged": tree["b1_error"]["mean"],
    }


def run_benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """All arms with all seeds, seed by seed; runs that ``out`` already holds are kept."""
    stored = arguments.out / "vessel_training.json"
    result = json.loads(stored.read_text()) if stored.is_file() else {"runs": []}
    result.setdefault("machine", describe_machine(arguments.device))
    budget = asdict(Budget(arguments.epochs, arguments.iterations, 0))
    settings = {**budget, "patch": list(PATCH), "batch": BATCH, "features": list(FEATURES), "cases": CASES}
    if result.setdefault("settings", settings) != settings:
        raise SystemExit(f"{stored} was made with {result['settings']}, asked is {settings}: use another folder")
    workspace = prepare(arguments.out / "nnunet")
    for seed in arguments.seeds:
        for arm in ARMS:
            if any((run["arm"], run["seed"]) == (arm, seed) for run in result["runs"]):
                continue
            budget_now = Budget(arguments.epochs, arguments.iterations, seed)
            result["runs"].append(run_arm(workspace, arm, budget_now, arguments.device))
            write_results(result, arguments.out)
            print(result["runs"][-1], flush=True)
    return result


def write_results(result: dict[str, Any], out: Path) -> None:
    """Write ``vessel_training.json`` and ``.md``."""
    (out / "vessel_training.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "vessel_training.md").write_text(markdown(result))


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    settings, runs = result["settings"], result["runs"]
    seeds = sorted({run["seed"] for run in runs})
    same = all(len({run["patches_checksum"] for run in runs if run["seed"] == seed}) == 1 for seed in seeds)
    columns = ["arm", "seeds", "mean Dice", *(f"Dice {name}" for name in RARE), "B0 error per class", "clDice merged"]
    columns += ["B0 error merged", "B1 error merged", "train s"]
    lines = [
        "# Artificial circles of Willis, 13 classes",
        "",
        f"Mean over {len(seeds)} seeds and {TEST_CASES} test cases [lowest, highest seed]. Differences between arms",
        "that are smaller than between seeds mean nothing.",
        "",
        _row(columns),
        _row(["---"] * len(columns)),
        *(_row(_cells(arm, [run for run in runs if run["arm"] == arm])) for arm in ARMS),
        "",
        f"- `nnunet-imbal dataset phantom-vessels`, {'x'.join(map(str, PHANTOM.shape))} voxels of "
        f"{'x'.join(map(str, PHANTOM.spacing))} mm, {settings['cases']} training cases",
        f"- budget: {settings['epochs']} epochs x {settings['iterations']} iterations, batch {settings['batch']}, "
        f"patch {'x'.join(map(str, settings['patch']))}, features {'-'.join(map(str, settings['features']))}, "
        "fold `all`, last checkpoint, no test-time mirroring; every term counts from the first step",
        f"- all arms saw the same patches: {'yes' if same else 'NO'} (checksum of all training patches)",
        f"- {STOCK}: mirrors without exchanging left and right; stock loss: the same loss, sides exchanged",
        "- a class that is in neither map of a case does not count; Dice 0 if it is in one of them",
        *machine_lines(result["machine"]),
    ]
    return "\n".join([*lines, ""])


def _cells(arm: str, runs: list[dict[str, Any]]) -> list[str]:
    if not runs:
        return [arm, "0"]
    means = [_mean(run["dice"].values()) for run in runs]
    rare = [[run["dice"][name] for run in runs] for name in RARE]
    others = ("b0_error", "cldice_merged", "b0_error_merged", "b1_error_merged")
    columns = [means, *rare, *([run[key] for run in runs] for key in others)]
    seconds = np.mean([run["epochs_s"] for run in runs])
    return [arm, str(len(runs)), *(_spread(column) for column in columns), f"{seconds:.0f}"]


def _mean(values: Any) -> float:
    return float(np.mean([value for value in values if value is not None]))


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f} [{min(known):.3f}, {max(known):.3f}]" if known else "-"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything the benchmark makes")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=100, help="steps per epoch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args(words)


def main() -> None:
    """Run, then print the table."""
    arguments = parse_arguments()
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(markdown(run_benchmark(arguments)))


if __name__ == "__main__":
    main()
