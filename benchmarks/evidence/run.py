"""Does it help? One study of the evidence suite: every arm with every seed, trained, predicted and measured.

Budgets, seeds and arms are fixed in ``STUDY.json`` beside this file. All arms of a seed start from the same weights and
take the same number of steps; where the choice of patches is what an arm is about, they see other patches. With the
budget for a processor all arms of a seed go on from a network that stock nnU-Net has warmed up: minutes are too few to
learn the task from nothing. Started again with the same folder, a study goes on where it was interrupted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))  # the other benchmarks: this file is started as a script

import numpy as np  # noqa: E402
from _data import SOURCES, write_raw  # noqa: E402
from _machine import describe_machine  # noqa: E402
from _scores import score_run  # noqa: E402
from _short_nnunet import Budget, Workspace, plan, predict, train, warm_up, working_folder, write_plans  # noqa: E402

from nnunet_imbal.fingerprint import FILE_NAME, fingerprint_dataset  # noqa: E402
from nnunet_imbal.io import read_label, write_atomically  # noqa: E402
from nnunet_imbal.recipe import choose_recipe  # noqa: E402
from trainers._recipe import recipe_entry  # noqa: E402


def read_settings(study: str, budget: str) -> dict[str, Any]:
    """Title, seeds, arms and one budget of a study."""
    settings = json.loads((HERE / f"{study}.json").read_text(encoding="utf-8"))
    del settings["notes"]  # words may change while a study goes on
    return settings | {"budgets": None, "budget": {"name": budget, **settings["budgets"][budget]}}


def prepare(study: str, settings: Mapping[str, Any], out: Path, data: Path | None) -> Workspace:
    """Make, plan and preprocess the dataset; done once."""
    workspace = Workspace(out / "nnunet", settings["number"], "Evidence")
    if not workspace.planned.is_file():
        if not workspace.raw.is_dir():
            write_raw(SOURCES[study], workspace.raw, data)
        budget = settings["budget"]
        plan(workspace, budget["patch"], budget["batch"], budget["features"])
    return workspace


def start_weights(workspace: Workspace, budget: Mapping[str, Any], seed: int, device: str) -> Path | None:
    """The checkpoint from which every arm goes on with this seed; None if they begin with random weights."""
    start = budget["warm_up"]
    if start is None:
        return None
    steps = Budget(start["epochs"], start["iterations"], seed, start["learning_rate"])
    plans = write_plans(workspace.plans, f"warm-up {seed}", network=network_for(device))
    return warm_up(workspace, plans, steps, device)


def imbal_entry(workspace: Workspace, choice: Mapping[str, Any], budget: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry ``imbal`` in the plans of an arm; None: stock nnU-Net, or what `ImbalTrainer` then chooses itself."""
    if "trainer" not in choice or budget["warm_up"] is None:
        return choice.get("imbal")
    before = budget["warm_up"]["epochs"]
    epochs, patch = before + budget["epochs"], budget["patch"]
    found = fingerprint_dataset(workspace.raw, out=workspace.folder / FILE_NAME)  # measured once for all seeds
    return begun(recipe_entry(choose_recipe(found, epochs=epochs, patch_size=patch)), before)


def begun(entry: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """The same training after some epochs: what starts late has fewer of them to wait, a begun ramp begins anew."""
    terms = []
    for term in entry["terms"]:
        start, ramp = term["from_epoch"] - epochs, term["ramp_epochs"]
        terms.append({**term, "from_epoch": max(start, 0), "ramp_epochs": min(max(start + ramp, 0), ramp)})
    return {**entry, "terms": terms}


def network_for(device: str) -> str | None:
    """Processors are more than twice as fast in bfloat16; a GPU has nnU-Net's own mixed precision."""
    return "half_unet.HalfUNet" if device == "cpu" else None


def run_arm(
    workspace: Workspace, settings: Mapping[str, Any], arm: str, seed: int, weights: Path | None, device: str
) -> dict[str, Any]:
    """Train, predict and measure one arm with one seed."""
    choice, budget, name = settings["arms"][arm], settings["budget"], f"{arm}_{seed}"
    trainer = "StockShort" if choice.keys() <= {"forced_patches"} else "ImbalShort"
    entry = imbal_entry(workspace, choice, budget)
    plans = write_plans(workspace.plans, arm, entry, network_for(device))
    rate, forced = budget["learning_rate"], choice.get("forced_patches")
    steps = Budget(budget["epochs"], budget["iterations"], seed, rate, forced, weights)
    run = {"arm": arm, "seed": seed}
    run |= train(workspace, trainer, steps, device, plans=plans, log=f"logs/train_{name}.txt")
    words = ["-step_size", budget["step_size"], *(["--save_probabilities"] if settings["probabilities"] else [])]
    out = workspace.folder / "predictions" / name
    predict(workspace, trainer, out, device, *words, plans=plans, log=f"logs/predict_{name}.txt")
    run |= score_run(workspace, out, settings)
    shutil.rmtree(out)
    return run


def show_network() -> None:
    """Let nnU-Net's commands find `half_unet`."""
    paths = [str(HERE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def run_study(study: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All arms with all seeds, seed by seed; runs that the folder already holds are kept."""
    settings, stored = read_settings(study, arguments.budget), arguments.out / f"evidence_{study}.json"
    result = json.loads(stored.read_text()) if stored.is_file() else {"study": study, "settings": settings, "runs": []}
    if result["settings"] != settings:
        raise SystemExit(f"{stored} was made with {result['settings']}, asked is {settings}: use another folder")
    result.setdefault("machine", describe_machine(arguments.device))
    show_network()
    workspace = prepare(study, settings, arguments.out, arguments.data)
    result.setdefault("voxels", training_voxels(workspace))
    done = {(run["arm"], run["seed"]) for run in result["runs"]}
    for seed in arguments.seeds or settings["seeds"]:
        weights = start_weights(workspace, settings["budget"], seed, arguments.device)
        for arm in arguments.arms or settings["arms"]:
            if (arm, seed) not in done:
                print(f"{study}: seed {seed}, {arm}", flush=True)
                run = run_arm(workspace, settings, arm, seed, weights, arguments.device)
                result["runs"].append(run | {"commit": commit()})
                write_atomically(stored, json.dumps(result) + "\n")
    return result


def training_voxels(workspace: Workspace) -> dict[str, float]:
    """Mean voxels of each class in the training cases."""
    labels = json.loads((workspace.raw / "dataset.json").read_text())["labels"]
    counts = [np.bincount(read_label(path).array.ravel(), minlength=len(labels))
              for path in sorted((workspace.raw / "labelsTr").glob("*.nii.gz"))]  # fmt: skip
    means = np.mean(counts, axis=0)
    return {name: float(means[value]) for name, value in labels.items() if value}


def commit() -> str:
    """The state of this checkout."""
    line = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(line, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(SOURCES))
    parser.add_argument("out", type=Path, help="folder for everything the study makes")
    parser.add_argument("--data", type=Path, help="folder that holds open_ms_data and synthseg")
    parser.add_argument("--budget", default="short", choices=("short", "full"), help="default: %(default)s")
    parser.add_argument("--arms", nargs="+", help="default: all of the study")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: all of the study")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args(words)


def main() -> None:
    """Run what is missing."""
    arguments = parse_arguments()
    arguments.out = working_folder(arguments.out)
    run_study(arguments.study, arguments)


if __name__ == "__main__":
    main()
