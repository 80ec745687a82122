"""nnU-Net's own commands on a small budget: plan, train, predict. The benchmarks that train share this."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CONFIGURATION",
    "Budget",
    "Workspace",
    "plan",
    "predict",
    "read_log",
    "short_configuration",
    "train",
    "warm_up",
    "working_folder",
    "write_plans",
]

HERE = Path(__file__).resolve().parent
CONFIGURATION = "3d_short"


@dataclass(frozen=True)
class Budget:
    """How long a trainer may learn, and how fast.

    Attributes:
        epochs: see ``iterations``.
        iterations: training steps per epoch.
        seed: of weights and patches.
        learning_rate: of AdamW; None = nnU-Net's own optimiser and rate.
        forced_patches: share of patches that must hold foreground; None = nnU-Net's own.
        weights: checkpoint to start from; None = random weights.
    """

    epochs: int
    iterations: int
    seed: int
    learning_rate: float | None = None
    forced_patches: float | None = None
    weights: Path | None = None

    @property
    def environment(self) -> dict[str, object]:
        """What the trainers of `short_trainers` read."""
        chosen = {f"BENCHMARK_{name.upper()}": value for name, value in asdict(self).items()}
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass(frozen=True)
class Workspace:
    """The three nnU-Net folders of one dataset, all of them inside ``folder``."""

    folder: Path
    number: int
    title: str

    @property
    def dataset(self) -> str:
        """Name of the dataset, as nnU-Net wants it."""
        return f"Dataset{self.number}_{self.title}"

    @property
    def raw(self) -> Path:
        """Folder with images and labels."""
        return self.folder / "raw" / self.dataset

    @property
    def plans(self) -> Path:
        """The plans that nnU-Net made."""
        return self.folder / "preprocessed" / self.dataset / "nnUNetPlans.json"

    @property
    def planned(self) -> Path:
        """Empty file that says: planning and preprocessing are complete."""
        return self.folder / "planned"

    def run(self, command: str, *words: object, log: str, **environment: object) -> None:
        """Run one of nnU-Net's console commands; its output goes to ``log``."""
        path = self.folder / log
        path.parent.mkdir(parents=True, exist_ok=True)
        line = [str(Path(sys.executable).parent / command), *map(str, words)]
        with path.open("w") as out:
            done = subprocess.run(line, env=self._environment(environment), stdout=out, stderr=subprocess.STDOUT)
        if done.returncode:
            raise SystemExit(f"{' '.join(line)} ended with {done.returncode}; the end of {path}:\n{_tail(path)}")

    def _environment(self, extra: dict[str, object]) -> dict[str, str]:
        return {
            **os.environ,
            **{f"nnUNet_{name}": str(self.folder / name) for name in ("raw", "preprocessed", "results")},
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            "nnUNet_extTrainer": str(HERE / "short_trainers"),
            "MPLBACKEND": "agg",
            **{name: str(value) for name, value in extra.items()},
        }


def plan(workspace: Workspace, patch: tuple[int, ...], batch: int, features: tuple[int, ...]) -> None:
    """Plan and preprocess with nnU-Net, then derive a configuration that two processor cores can train."""
    workspace.run(
        "nnUNetv2_plan_and_preprocess",
        *("-d", workspace.number, "-c", "3d_fullres", "-np", 1, "-npfp", 1, "--verify_dataset_integrity"),
        log="logs/plan.txt",
        nnUNet_n_proc_DA=1,  # nnU-Net 2.8 cannot plan with 0 workers
    )
    plans = json.loads(workspace.plans.read_text())
    full = plans["configurations"]["3d_fullres"]
    plans["configurations"][CONFIGURATION] = short_configuration(full, patch, batch, features)
    workspace.plans.write_text(json.dumps(plans, indent=1))
    workspace.planned.touch()


def short_configuration(
    full: Mapping[str, Any], patch: tuple[int, ...], batch: int, features: tuple[int, ...]
) -> dict[str, Any]:
    """Make nnU-Net's planned configuration smaller: patch, batch and network."""
    stages = len(features)
    architecture = json.loads(json.dumps(full["architecture"]))
    architecture["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=features,
        kernel_sizes=[[3, 3, 3]] * stages,
        strides=[[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1),
    )
    return {"inherits_from": "3d_fullres", "patch_size": patch, "batch_size": batch, "architecture": architecture}


def write_plans(stock: Path, arm: str, imbal: Mapping[str, Any] | None = None, network: str | None = None) -> str:
    """Write the plans of one arm beside nnU-Net's own; return their name.

    Args:
        stock: nnU-Net's own.
        arm: its name.
        imbal: entry of that name; None: none.
        network: class of the network; None: nnU-Net's own.
    """
    plans = json.loads(stock.read_text())
    plans["plans_name"] = "nnUNetPlans_" + "".join(filter(str.isalnum, arm))
    configuration = plans["configurations"][CONFIGURATION]
    if network is not None:
        configuration["architecture"]["network_class_name"] = network
    if imbal is not None:
        configuration["imbal"] = imbal
    stock.with_name(plans["plans_name"] + ".json").write_text(json.dumps(plans, indent=1))
    return str(plans["plans_name"])


def warm_up(workspace: Workspace, plans: str, budget: Budget, device: str) -> Path:
    """Train stock nnU-Net once; return the checkpoint from which every arm goes on."""
    folder = workspace.folder / "results" / workspace.dataset / f"StockShort__{plans}__{CONFIGURATION}" / "fold_all"
    checkpoint = folder / "checkpoint_final.pth"
    if not checkpoint.is_file():
        train(workspace, "StockShort", budget, device, plans=plans, log=f"logs/{plans}.txt")
    return checkpoint


def working_folder(path: Path) -> Path:
    """The folder as a whole path, made if need be: nnU-Net's commands run in it."""
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def train(
    workspace: Workspace, trainer: str, budget: Budget, device: str, *, plans: str = "nnUNetPlans", log: str
) -> dict[str, Any]:
    """Train on all cases and return what the log says."""
    begin = time.monotonic()
    workspace.run(
        "nnUNetv2_train",
        *(workspace.number, CONFIGURATION, "all", "-tr", trainer, "-p", plans, "-device", device),
        log=log,
        nnUNet_n_proc_DA=0,  # patches are drawn in the training process: only so are they the same for all trainers
        **budget.environment,
    )
    return {"command_s": round(time.monotonic() - begin, 1), **read_log(workspace.folder / log)}


def read_log(path: Path) -> dict[str, Any]:
    """Training time, last loss and the checksum of all patches."""
    log = path.read_text()
    return {
        "epochs_s": round(sum(map(float, re.findall(r"Epoch time: ([\d.]+)", log))), 1),
        "last_train_loss": float(re.findall(r"train_loss (\S+)", log)[-1]),
        "patches_checksum": re.findall(r"Checksum of all patches: (\w+)", log)[-1],
    }


def predict(
    workspace: Workspace, trainer: str, out: Path, device: str, *words: object, plans: str = "nnUNetPlans", log: str
) -> Path:
    """Predict the test cases without mirroring, with further ``words`` for nnU-Net's command; return the folder."""
    workspace.run(
        "nnUNetv2_predict",
        *("-i", workspace.raw / "imagesTs", "-o", out, "-d", workspace.number, "-c", CONFIGURATION, "-f", "all"),
        *("-tr", trainer, "-p", plans, "-npp", 1, "-nps", 1, "-device", device, "--disable_tta", *words),
        log=log,
    )
    return out


def _tail(path: Path, lines: int = 25) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
