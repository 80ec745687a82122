"""The whole chain on a small dataset, with nnU-Net's own commands: dataset, training, prediction, report."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.text import Text

from nnunet_imbal._version import __version__
from nnunet_imbal.check import check_dataset, print_problems
from nnunet_imbal.discovery import VARIABLE, active_mechanism, discovery_folder
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.evaluation import evaluate_folders, load_evaluation, print_summary
from nnunet_imbal.io import write_atomically
from nnunet_imbal.phantoms import LesionPhantom, Phantom, SpinePhantom, write_dataset
from nnunet_imbal.registry import unknown_name
from nnunet_imbal.report import write_report

__all__ = ["run_demo"]

_CONFIGURATION = "3d_demo"
_FEATURES, _BATCH_SIZE = (16, 32, 64), 2
_DEVICES = ("cpu", "cuda", "mps")
_CONSOLE = Console(highlight=False)


@dataclass(frozen=True)
class _Size:
    """A dataset and a network that fit into a few minutes of two CPU cores."""

    phantom: Phantom
    dataset_id: int
    cases: int
    test_cases: int
    patch_size: tuple[int, int, int]


# Many lesions in few cases, so that the report has something to count: as in patients with at least 5 metastases
# (median 10 lesions, 5.2 cm³ in all; PMC12802373).
_LESIONS = LesionPhantom(median_mm3=150, log_sd=1.5, count_median=10, count_log_sd=0.5, count_range=(5, 20))
_SIZES = MappingProxyType(
    {
        "phantom-lesions": _Size(_LESIONS, 900, 20, 4, (44, 44, 44)),
        "spine": _Size(SpinePhantom(), 901, 12, 2, (52, 36, 52)),
    }
)


@dataclass(frozen=True)
class _Step:
    """One step: a console command (its words) or a function, and what exists when it is done."""

    name: str
    title: str
    output: Path
    action: tuple[str, ...] | Callable[[], object]


def run_demo(data: str, out: Path, *, trainer: str = "ImbalTrainer_demo", device: str = "cpu") -> Path:
    """Make a dataset, train on it, predict unseen cases and write a report; 3 to 4 minutes on two CPU cores.

    Every step on nnU-Net's side is one of its own console commands; what it prints is kept in ``out/logs``. After
    an interruption the same call goes on where it stopped. The folder is never emptied.

    Args:
        data: ``"phantom-lesions"``, or ``"spine"``: real scans with ten classes, of which a training of minutes
            learns the largest only. See `nnunet_imbal.phantoms`.
        out: Folder for everything; new, empty, or left by the same demo.
        trainer: nnU-Net trainer class; the default trains for minutes, most others for days.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Returns:
        The report, ``out/report.html``.

    Raises:
        ConfigError: Unknown data or device, ``out`` belongs to something else, or nnU-Net is not installed.
        DataError: A step failed; the message holds the end of its log.
    """
    if data not in _SIZES:
        raise ConfigError(unknown_name("dataset", data, _SIZES))
    if device not in _DEVICES:
        raise ConfigError(f"The device is {device!r}; expected one of {', '.join(_DEVICES)}.")
    demo, begin = _Demo(data, Path(out).resolve(), trainer, device), time.monotonic()
    _claim(demo.out, {"data": data, "trainer": trainer, "version": __version__})
    steps = demo.steps()
    for number in range(len(steps)):
        _perform(steps, number, demo)
    print_summary(load_evaluation(demo.evaluation), _CONSOLE)
    _CONSOLE.print(f"{_clock(time.monotonic() - begin)} in all. Open the report: {demo.report}", soft_wrap=True)
    return demo.report


@dataclass(frozen=True)
class _Demo:
    """One demo in one folder: where things lie, and the steps that make them."""

    data: str
    out: Path
    trainer: str
    device: str

    @property
    def size(self) -> _Size:
        return _SIZES[self.data]

    @property
    def dataset(self) -> str:
        return f"Dataset{self.size.dataset_id:03d}_{self.size.phantom.title}"

    @property
    def raw(self) -> Path:
        return self.out / "nnUNet_raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        return self.out / "nnUNet_preprocessed" / self.dataset

    @property
    def predictions(self) -> Path:
        return self.out / "predictions"

    @property
    def evaluation(self) -> Path:
        return self.out / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.out / "report.html"

    def steps(self) -> list[_Step]:
        """All steps in their order; each needs the ones before it."""
        ready, planned = self.preprocessed, self._planning()
        return [
            _Step("dataset", "Make the dataset", self.raw, self._make_dataset),
            _Step("fingerprint", "Measure the images", ready / "dataset_fingerprint.json", planned[0]),
            _Step("plan", "Plan the network", ready / "nnUNetPlans.json", planned[1]),
            _Step("configure", "Make it small", ready / "splits_final.json", self._configure),
            _Step("preprocess", "Prepare the images", ready / "nnUNetPlans_3d_fullres", planned[2]),
            _Step("train", "Train", self._checkpoint(), self._training()),
            _Step("predict", "Predict unseen cases", self.predictions, self._prediction()),
            _Step("evaluate", "Compare with the truth", self.evaluation, self._evaluate),
            _Step("report", "Write the report", self.report, self._write_report),
        ]

    def environment(self) -> dict[str, str]:
        """Variables for nnU-Net's commands; the user's own nnU-Net folders are left alone."""
        variables = {f"nnUNet_{name}": str(self.out / f"nnUNet_{name}") for name in ("raw", "preprocessed", "results")}
        variables |= {"MPLBACKEND": "agg", "PYTHONUNBUFFERED": "1", "nnUNet_def_n_proc": "1"}
        if self.device == "cpu":
            # Two cores are best left to the network. Not 0: nnU-Net 2.8 cannot plan then.
            variables |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
            # Threads that spin while they wait take the cores from those that work.
            variables |= {"OMP_WAIT_POLICY": "passive"}
        if active_mechanism() == "none":
            listed = [entry for entry in (os.environ.get(VARIABLE), str(discovery_folder())) if entry]
            variables[VARIABLE] = os.pathsep.join(listed)
        return {**os.environ, **variables}

    def _planning(self) -> tuple[tuple[str, ...], ...]:
        number = str(self.size.dataset_id)
        return (
            ("nnUNetv2_extract_fingerprint", "-d", number, "-np", "1", "--verify_dataset_integrity", "--no_pbar"),
            ("nnUNetv2_plan_experiment", "-d", number),
            ("nnUNetv2_preprocess", "-d", number, "-c", _CONFIGURATION, "-np", "1", "--no_pbar"),
        )

    def _training(self) -> tuple[str, ...]:
        where = (str(self.size.dataset_id), _CONFIGURATION, "0")
        # --c goes on after an interruption, and starts anew if there is nothing to go on from.
        return ("nnUNetv2_train", *where, "-tr", self.trainer, "-device", self.device, "--c")

    def _prediction(self) -> tuple[str, ...]:
        folders = ("-i", str(self.raw / "imagesTs"), "-o", str(self.predictions))
        model = ("-d", str(self.size.dataset_id), "-c", _CONFIGURATION, "-f", "0", "-tr", self.trainer)
        light = ("-npp", "1", "-nps", "1", "--disable_tta", "--disable_progress_bar")
        return ("nnUNetv2_predict", *folders, *model, "-device", self.device, *light)

    def _checkpoint(self) -> Path:
        model = f"{self.trainer}__nnUNetPlans__{_CONFIGURATION}"
        return self.out / "nnUNet_results" / self.dataset / model / "fold_0" / "checkpoint_final.pth"

    def _make_dataset(self) -> None:
        if not self.raw.exists():
            size = self.size
            numbers = {"dataset_id": size.dataset_id, "cases": size.cases, "test_cases": size.test_cases}
            write_dataset(size.phantom, self.raw.parent, **numbers)
        if print_problems(self.raw, check_dataset(self.raw), _CONSOLE):
            raise DataError(f"{self.raw} was changed after the demo had made it. Choose another folder.")

    def _configure(self) -> None:
        """Add a small configuration to the plans, and set a training case aside for validation."""
        path = self.preprocessed / "nnUNetPlans.json"
        plans = json.loads(path.read_text(encoding="utf-8"))
        configurations = plans["configurations"]
        configurations[_CONFIGURATION] = _small(configurations["3d_fullres"], self.size.patch_size)
        write_atomically(path, json.dumps(plans, indent=4) + "\n")
        cases = sorted(file.name.removesuffix(".nii.gz") for file in (self.raw / "labelsTr").iterdir())
        # One is enough, for nnU-Net predicts it in eight mirrored versions.
        splits = [{"train": cases[:-1], "val": cases[-1:]}]
        write_atomically(self.preprocessed / "splits_final.json", json.dumps(splits, indent=4) + "\n")

    def _evaluate(self) -> None:
        evaluate_folders(self.predictions, self.raw / "labelsTs", self.evaluation)

    def _write_report(self) -> None:
        title = f"Demo: {self.data} with {self.trainer}"
        write_report(self.evaluation, self.report, images=self.raw / "imagesTs", title=title)


def _small(full: dict[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
    """Return a configuration for a network that learns in minutes on a CPU."""
    stages = len(_FEATURES)
    sizes = {
        "n_stages": stages,
        "features_per_stage": list(_FEATURES),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
    }
    architecture = full["architecture"]
    return {
        "inherits_from": "3d_fullres",
        "patch_size": list(patch_size),
        "batch_size": _BATCH_SIZE,
        "architecture": {**architecture, "arch_kwargs": {**architecture["arch_kwargs"], **sizes}},
    }


def _claim(out: Path, claim: dict[str, str]) -> None:
    """Make the folder ours, or refuse it: a demo never works in a folder that holds something else."""
    note = out / "demo.json"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; expected a folder for what the demo makes.")
    if note.is_file():
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            found = "something unreadable"
        if found != claim:
            raise ConfigError(f"{out} holds another demo ({found}, now {claim}); choose another folder with --out.")
    elif out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no demo; choose another folder with --out.")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(claim, indent=1) + "\n")


def _perform(steps: list[_Step], number: int, demo: _Demo) -> None:
    """Do one step, unless an earlier run finished it."""
    step, logs = steps[number], demo.out / "logs"
    markers = [logs / f"{n:02d}_{each.name}.done" for n, each in enumerate(steps, start=1)]
    heading = f"{number + 1}/{len(steps)} {step.title:<24}"
    if markers[number].exists() and step.output.exists():
        _CONSOLE.print(f"{heading} done before")
        return
    for marker in markers[number:]:  # what follows was made from what is made again now
        marker.unlink(missing_ok=True)
    begin = time.monotonic()
    if isinstance(step.action, tuple):
        _run(step.action, markers[number].with_suffix(".log"), demo.environment(), heading)
    else:
        step.action()
    if not step.output.exists():
        raise DataError(f"{step.title}: {step.output} was not made, though no error was reported; see {logs}.")
    write_atomically(markers[number], "")
    _CONSOLE.print(f"{heading} {_clock(time.monotonic() - begin)}")


def _run(words: Sequence[str], log: Path, environment: dict[str, str], heading: str) -> None:
    """Run a console command of this environment; what it prints goes to the log, its last line to the screen."""
    program = Path(sys.executable).parent / words[0]
    if not program.exists():
        raise ConfigError(f"{program} does not exist. Install nnU-Net into this environment: pip install nnunetv2")
    with log.open("ab") as stream, _CONSOLE.status(heading) as status:
        process = subprocess.Popen(
            [str(program), *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while process.poll() is None:
                status.update(Text(f"{heading} {_tail(log, 1)}", overflow="ellipsis", no_wrap=True))
                _wait(process)
        except KeyboardInterrupt:
            _wait(process, 10)  # the command was interrupted as well, and tidies up after itself
            process.terminate()
            raise
    if process.returncode:
        raise DataError(
            f"{words[0]} ended with status {process.returncode}. The end of {log}:\n{_tail(log, 20)}\n"
            "Correct the cause and start the demo again: it goes on from here."
        )


def _wait(process: subprocess.Popen[bytes], seconds: float = 0.5) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _tail(log: Path, count: int) -> str:
    """Return the last lines of a log that are not empty."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 8192))
        lines = stream.read().decode(errors="replace").splitlines()
    return "\n".join([line.strip() if count == 1 else line for line in lines if line.strip()][-count:])


def _clock(seconds: float) -> str:
    """Minutes and seconds.

    Example:
        >>> _clock(61.7)
        '1:02'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
