"""Real lesions: train on one patient with multiple sclerosis, find the lesions of another, and the reverse.

Stock nnU-Net and ImbalTrainerCC get the same patches, the same first weights and the same number of steps.
With one patient each way this shows that the chain works on real data; it cannot show which trainer is better.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from _machine import describe_machine, machine_lines, table
from _short_nnunet import Budget, Workspace, plan, predict, train, working_folder

from nnunet_imbal.evaluation import evaluate_folders
from nnunet_imbal.report import write_report

CHANNELS = ("FLAIR", "T1")
PATIENTS = ("07", "26")
TITLE = "MSPatient"
SHORT = {"nnUNetTrainer": "StockShort", "ImbalTrainerCC": "CCShort"}
SIZES = ((0, 10), (10, 100), (100, float("inf")))  # mm³
PATCH, BATCH, FEATURES = (40, 40, 40), 2, (16, 32, 64)


def write_raw_dataset(data: Path, workspace: Workspace, training: str, test: str) -> Path:
    """Write the nnU-Net raw dataset of one direction: one training patient, one test patient.

    Args:
        data: folder with ``patientNN_FLAIR.nii.gz``, ``patientNN_T1.nii.gz`` and ``patientNN_gold.nii.gz``.
        workspace: where to.
        training: number of the patient to learn from.
        test: number of the patient to predict.

    Returns:
        The dataset folder; the expert's labels of the test patient lie in ``labelsTs``.
    """
    for part, patient in (("Tr", training), ("Ts", test)):
        images, labels = workspace.raw / f"images{part}", workspace.raw / f"labels{part}"
        for folder in (images, labels):
            folder.mkdir(parents=True, exist_ok=True)
        for number, channel in enumerate(CHANNELS):
            image = sitk.ReadImage(str(data / f"patient{patient}_{channel}.nii.gz"), sitk.sitkFloat32)
            sitk.WriteImage(image, str(images / f"patient{patient}_{number:04d}.nii.gz"))
        gold = sitk.ReadImage(str(data / f"patient{patient}_gold.nii.gz"), sitk.sitkFloat32) > 0.5
        sitk.WriteImage(gold, str(labels / f"patient{patient}.nii.gz"))
    description = {
        "channel_names": {str(number): channel for number, channel in enumerate(CHANNELS)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (workspace.raw / "dataset.json").write_text(json.dumps(description, indent=1))
    return workspace.raw


def measure(workspace: Workspace, trainer: str, prediction: Path) -> dict[str, Any]:
    """Evaluate one prediction and return the numbers of the table."""
    path = workspace.folder / f"evaluation_{trainer}.json"
    result = evaluate_folders(prediction, workspace.raw / "labelsTs", path, workers=1)
    summary, case = result["summary"]["lesion"], result["cases"][0]["classes"]["lesion"]
    return {
        "dice": summary["dice"]["mean"],
        **{key: summary[key] for key in ("lesions", "detected", "recall", "precision", "f1")},
        "false_positives_per_case": summary["false_positives_per_case"],
        "by_size_mm3": [_found(case["lesions"], low, high) for low, high in SIZES],
        "volume_reference_mm3": case["volume_reference_mm3"],
        "volume_prediction_mm3": case["volume_prediction_mm3"],
    }


def write_page(workspace: Workspace, trainer: str) -> Path:
    """Write the report that a clinician reads."""
    evaluation, page = (workspace.folder / name for name in (f"evaluation_{trainer}.json", f"report_{trainer}.html"))
    title = f"{trainer}, trained on patient {workspace.title.removeprefix(TITLE)}"
    return write_report(evaluation, page, images=workspace.raw / "imagesTs", title=title)


def _found(lesions: list[dict[str, Any]], low: float, high: float) -> dict[str, Any]:
    within = [lesion["detected"] for lesion in lesions if low <= lesion["volume_mm3"] < high]
    return {"from": low, "below": None if high == float("inf") else high, "lesions": len(within), "found": sum(within)}


def calibrate(workspace: Workspace, seed: int, minutes: float, device: str) -> Budget:
    """Turn minutes per training into a number of epochs, by timing ten steps of stock nnU-Net."""
    first = train(workspace, "StockShort", Budget(1, 10, seed), device, log="logs/calibrate.txt")
    seconds = first["epochs_s"] / 10
    return Budget(max(1, round(60 * minutes / seconds / 50)), 50, seed)


def run_benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both directions, all trainers, one after the other; runs that ``out`` already holds are kept."""
    stored = arguments.out / "ms_two_patients.json"
    result = json.loads(stored.read_text()) if stored.is_file() else {"runs": []}
    result.setdefault("machine", describe_machine(arguments.device))
    budget = Budget(arguments.epochs, arguments.iterations, arguments.seed)
    for number, (first, second) in enumerate((PATIENTS, PATIENTS[::-1]), start=701):
        workspace = Workspace(arguments.out / f"train_on_{first}", number, TITLE + first)
        missing = [name for name in arguments.trainers if not _has_run(result["runs"], first, name)]
        if missing and not workspace.planned.is_file():
            write_raw_dataset(arguments.data, workspace, first, second)
            plan(workspace, PATCH, BATCH, FEATURES)
        if arguments.minutes and not result["runs"]:
            budget = calibrate(workspace, arguments.seed, arguments.minutes, arguments.device)
        settings = {**asdict(budget), "patch": list(PATCH), "batch": BATCH, "features": list(FEATURES)}
        if result.setdefault("settings", settings) != settings:
            raise SystemExit(f"{stored} was made with {result['settings']}, asked is {settings}: use another folder")
        for trainer in missing:
            print(f"patient {first} -> patient {second}, {trainer}, {budget}", flush=True)
            run = {"train": first, "test": second, "trainer": trainer}
            name, out = SHORT[trainer], workspace.folder / "predictions" / trainer
            run |= train(workspace, name, budget, arguments.device, log=f"logs/train_{trainer}.txt")
            predict(workspace, name, out, arguments.device, log=f"logs/predict_{trainer}.txt")
            run |= measure(workspace, trainer, out)
            result["runs"].append(run)
            write_results(result, arguments.out)
            write_page(workspace, trainer)
    return result


def _has_run(runs: list[dict[str, Any]], patient: str, trainer: str) -> bool:
    return any(run["train"] == patient and run["trainer"] == trainer for run in runs)


def write_results(result: dict[str, Any], out: Path) -> None:
    """Write ``ms_two_patients.json`` and ``.md``; called after every run, so that an interrupted one loses nothing."""
    (out / "ms_two_patients.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "ms_two_patients.md").write_text("\n".join([*_heading(result), "", *_table(result["runs"]), ""]))


def _heading(result: dict[str, Any]) -> list[str]:
    settings = result["settings"]
    per_test: dict[str, set[str]] = {}
    for run in result["runs"]:
        per_test.setdefault(run["test"], set()).add(run["patches_checksum"])
    same = all(len(checksums) == 1 for checksums in per_test.values())
    return [
        "# Two patients with multiple sclerosis",
        "",
        "**One training patient and one test patient each way, one seed: no statistical claim.** The numbers show",
        "that the whole chain runs on real data and what minutes on a processor give; they do not rank the trainers.",
        "",
        "- data: `open_ms_data/`, patients 07 and 26, FLAIR + T1, expert consensus (Lesjak et al. 2017, CC-BY)",
        f"- budget: {settings['epochs']} epochs x {settings['iterations']} iterations, batch {settings['batch']}, "
        f"patch {'x'.join(map(str, settings['patch']))}, features {'-'.join(map(str, settings['features']))}, "
        f"fold `all`, seed {settings['seed']}, last checkpoint, no test-time mirroring",
        f"- the trainers saw the same patches: {'yes' if same else 'NO'} (checksum of all training patches)",
        "- training seconds are wall time on a machine that others used too: see `iteration_time.md` for speed",
        "- a lesion is found if one voxel of it is predicted; 26 neighbours make one lesion; 1 mm³ voxels",
        *machine_lines(result["machine"]),
    ]


def _table(runs: list[dict[str, Any]]) -> list[str]:
    sizes = [f"found {low}-{high} mm³" if high < float("inf") else f"found ≥ {low} mm³" for low, high in SIZES]
    columns = ["train → test", "trainer", "Dice", "found", *sizes, "recall", "precision", "F1", "false+ per case"]
    columns += ["volume mm³ (true)", "train s", "last loss"]
    return table(columns, [_cells(run) for run in runs])


def _cells(run: dict[str, Any]) -> list[str]:
    return [
        f"{run['train']} → {run['test']}",
        run["trainer"],
        _number(run["dice"]),
        f"{run['detected']}/{run['lesions']}",
        *(f"{size['found']}/{size['lesions']}" for size in run["by_size_mm3"]),
        *(_number(run[key]) for key in ("recall", "precision", "f1")),
        f"{run['false_positives_per_case']:g}",
        f"{run['volume_prediction_mm3']:.0f} ({run['volume_reference_mm3']:.0f})",
        f"{run['epochs_s']:.0f}",
        f"{run['last_train_loss']:.3f}",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder open_ms_data with patientNN_{FLAIR,T1,gold}.nii.gz")
    parser.add_argument("out", type=Path, help="folder for everything the benchmark makes")
    parser.add_argument(
        "--minutes", type=float, help="training time per run: a step is timed, then all runs take as many"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=50, help="steps per epoch")
    parser.add_argument("--trainers", nargs="+", choices=sorted(SHORT), default=list(SHORT))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args(words)


def main() -> None:
    """Run, then print the table."""
    arguments = parse_arguments()
    arguments.out = working_folder(arguments.out)
    print("\n".join(_table(run_benchmark(arguments)["runs"])))


if __name__ == "__main__":
    main()
