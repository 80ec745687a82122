"""What do our trainers cost? Time of one training iteration over that of stock nnU-Net, same patch, batch, network.

All trainers live in one process and take turns (A, B, C, A, B, C, ...), so that what else the machine does hits all
alike.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from _machine import describe_machine, machine_lines
from _vessel_classes import vessel_patch
from numpy.typing import NDArray

import numba_kernels
import trainers
from nnunet_imbal.evaluation import DatasetLabels
from nnunet_imbal.fingerprint import FILE_NAME
from nnunet_imbal.fingerprint.case import measure_case
from nnunet_imbal.fingerprint.dataset import summarise
from nnunet_imbal.phantoms import LesionPhantom, OrganPhantom

PATIENTS = ("07", "26")
NAME, CONFIGURATION = "Dataset700_IterationTime", "3d_fullres"
STOCK, CHOOSING = "nnUNetTrainer", "ImbalTrainer"
VESSEL_TRAINERS = ("ImbalTrainerClDice", "ImbalTrainerCbDice", "ImbalTrainerSkeletonRecall", "ImbalTrainerAGTAL")
TRAINERS = {
    "lesions": ("ImbalTrainerCC", "ImbalTrainerBlob", "ImbalTrainerCATMIL"),
    "patients": ("ImbalTrainerCC", "ImbalTrainerBlob", "ImbalTrainerCATMIL"),
    "vessels": VESSEL_TRAINERS,
    "vessels20": VESSEL_TRAINERS,
    "organs": (CHOOSING,),
}


def lesion_labels(patch: int, batch: int) -> NDArray[np.uint8]:
    """Patches with 30 artificial lesions each, most of them tiny: ``(B, Z, Y, X)``."""
    phantom = LesionPhantom(
        shape=(patch,) * 3, spacing=(1, 1, 1), count_median=30, count_log_sd=0, volume_range_mm3=(2, 3000)
    )
    return np.stack([phantom.training_case(0, index).label.T for index in range(batch)])


def vessel_labels(patch: int, batch: int, classes: int | None = None) -> NDArray[np.uint8]:
    """Patches of the circle of Willis, as much of it as fits, with its own classes or so many: ``(B, Z, Y, X)``."""
    return np.stack([vessel_patch((patch,) * 3, index, classes) for index in range(batch)])


def organ_labels(patch: int, batch: int) -> NDArray[np.uint8]:
    """Patches from the middle of artificial abdominal scans with 27 classes: ``(B, Z, Y, X)``."""
    return np.stack([_middle(OrganPhantom().training_case(0, index).label.T, patch) for index in range(batch)])


def _middle(labels: NDArray[np.uint8], patch: int) -> NDArray[np.uint8]:
    corner = [(length - patch) // 2 for length in labels.shape]
    if min(corner) < 0:
        raise ValueError(f"a patch of {patch} voxels along each axis does not fit into a scan of {labels.shape}")
    return labels[tuple(slice(at, at + patch) for at in corner)]


def patient_labels(data: Path, patch: int, batch: int) -> NDArray[np.uint8]:
    """From each patient in turn, the patch around the lesion with the most neighbours: ``(B, Z, Y, X)``."""
    return np.stack([_richest_patch(data / f"patient{PATIENTS[i % 2]}_gold.nii.gz", patch) for i in range(batch)])


def _richest_patch(path: Path, patch: int) -> NDArray[np.uint8]:
    gold = sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0.5
    lesions, count = numba_kernels.connected_components(gold, 26)
    centres = np.array([np.argwhere(lesions == number).mean(0) for number in range(1, count + 1)])
    corners = np.clip(centres.round().astype(int) - patch // 2, 0, np.array(gold.shape) - patch)
    inside = [np.all((centres >= corner) & (centres < corner + patch), axis=1).sum() for corner in corners]
    box = tuple(slice(start, start + patch) for start in corners[int(np.argmax(inside))])
    return gold[box].astype(np.uint8)


def describe_dataset(labels: NDArray[np.uint8]) -> dict[str, Any]:
    """The dataset.json of such labels."""
    names = {"background": 0} | {f"class {number}": number for number in range(1, int(labels.max()) + 1)}
    return {"channel_names": {"0": "MR", "1": "MR"}, "labels": names, "file_ending": ".nii.gz"}


def save_fingerprint(labels: NDArray[np.uint8], folder: Path) -> None:
    """What is imbalanced in these patches, where a trainer that chooses by it will look for it."""
    names = {name: (value,) for name, value in describe_dataset(labels)["labels"].items() if value}
    cases = {f"case {i}": measure_case(each, (1.0, 1.0, 1.0), names) for i, each in enumerate(labels)}
    summarise(NAME, cases, DatasetLabels(names, None, folder)).save(folder / FILE_NAME)


def make_batch(labels: NDArray[np.uint8], scales: list[list[float]], seed: int) -> dict[str, Any]:
    """What nnU-Net's loader would hand over: noise as image, and the target at every resolution."""
    data = torch.randn(len(labels), 2, *labels.shape[1:], generator=torch.Generator().manual_seed(seed))
    full = torch.from_numpy(labels)[:, None].float()
    sizes = [[round(n * s) for n, s in zip(labels.shape[1:], scale, strict=True)] for scale in scales]
    return {"data": data, "target": [torch.nn.functional.interpolate(full, size) for size in sizes]}


def make_plans(patch: int, batch: int) -> dict[str, Any]:
    """A plans file with the network that nnU-Net's planner gives a patch of this size at 1 mm."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, _, _ = get_pool_and_conv_props((1, 1, 1), (patch,) * 3, 4, 999)
    stages = len(strides)
    network = {
        "n_stages": stages,
        "features_per_stage": [min(320, 32 * 2**stage) for stage in range(stages)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "none",
        "patch_size": [patch] * 3,
        "batch_size": batch,
        "spacing": [1.0, 1.0, 1.0],
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {CONFIGURATION: configuration},
        "continue_training": False,
    }


def make_trainer(name: str, labels: NDArray[np.uint8], device: str, seed: int) -> Any:
    """A trainer ready for ``train_step`` with all its terms in force, without a dataset."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    cls = nnUNetTrainer if name == STOCK else getattr(trainers, name)
    batch, patch = labels.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        for part in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{part}"] = str(Path(folder) / part)
        empty = Path(folder) / "preprocessed" / NAME / "none" / "case.b2nd"  # nnU-Net looks at the ending only
        empty.parent.mkdir(parents=True)
        empty.touch()
        save_fingerprint(labels, empty.parents[1])
        torch.manual_seed(seed)
        trainer = cls(make_plans(patch, batch), CONFIGURATION, 0, describe_dataset(labels), torch.device(device))
        trainer.initialize()
        trainer.print_to_log_file = lambda *words, **options: None  # its folder is about to vanish
    trainer.network.train()
    if name != STOCK:
        never = 1 - np.eye(int(labels.max()))  # as a training on labels would learn, at its dearest
        trainer._learned = {"forbidden": never.tolist(), "radius_range": [0.5, 2.5]}
        trainer._learn_anatomy(())
        trainer.loss.epoch = trainer.num_epochs
    return trainer


def measure(
    labels: NDArray[np.uint8], names: Sequence[str], iterations: int, warm_up: int, device: str, seed: int
) -> dict[str, Any]:
    """Times in ms of one process, the trainers in turns."""
    made = {name: make_trainer(name, labels, device, seed) for name in (STOCK, *names)}
    samples = make_batch(labels, made[STOCK]._get_deep_supervision_scales(), seed)
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(warm_up + iterations):
        for name, trainer in made.items():
            times[name].append(_time_ms(lambda t=trainer: t.train_step(samples), device))
    components = [int(numba_kernels.connected_components(each, 26)[1]) for each in labels]
    chosen = [term.name for term in made[CHOOSING].loss.terms] if CHOOSING in made else []
    return {
        "components": components,
        "chosen": chosen,
        "ms": {name: values[warm_up:] for name, values in times.items()},
    }


def _time_ms(work: Callable[[], object], device: str) -> float:
    """Milliseconds by the clock on a GPU; on a CPU those of the process, in which the work of others does not show."""
    if not device.startswith("cuda"):
        begin = time.process_time()
        work()
        return 1000 * (time.process_time() - begin)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begin)


def run_benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each patch size and label map in processes of their own, one after the other."""
    machine, rows = describe_machine(arguments.device), []
    for patch in arguments.patch:
        maps = {"lesions": lesion_labels(patch, arguments.batch), "vessels": vessel_labels(patch, arguments.batch)}
        maps["vessels20"] = vessel_labels(patch, arguments.batch, 20)
        maps["organs"] = organ_labels(patch, arguments.batch)
        if arguments.data:
            maps["patients"] = patient_labels(arguments.data, patch, arguments.batch)
        for kind in arguments.labels:
            names = arguments.trainers or TRAINERS[kind]
            words = (maps[kind], names, arguments.iterations, arguments.warm_up, arguments.device)
            processes = [_in_new_process(*words, seed) for seed in range(arguments.processes)]
            row = {"patch": patch, "labels": kind, "classes": int(maps[kind].max()), "batch": arguments.batch}
            rows.append({**row, "processes": processes})
            print("\n".join(_lines(rows[-1])), flush=True)
    return {
        "machine": machine,
        "settings": {name: getattr(arguments, name) for name in ("iterations", "warm_up", "processes", "device")},
        "rows": rows,
    }


def _in_new_process(*words: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(measure, *words).result()


def markdown(result: dict[str, Any]) -> str:
    """The result as a page: the ratio first."""
    settings = result["settings"]
    columns = ["patch", "labels", "components", "trainer", "**ratio**", "ratio of each process", "ms [IQR]"]
    lines = [
        "# Time of one training iteration over that of stock nnU-Net",
        "",
        _row(columns),
        _row(["---"] * len(columns)),
        *(line for row in result["rows"] for line in _lines(row)),
        "",
        "Ratio: median over processes of (median of the trainer / median of stock), 1 = no extra cost. Times: median",
        "and quartiles of all iterations after warm-up, forward + backward + optimiser, no loading or augmentation;",
        "terms that start in a later epoch are in force. On a CPU: time of the process, all its threads together.",
        "",
        f"- processes: {settings['processes']}; in each, after {settings['warm_up']} to warm up, "
        f"{settings['iterations']} iterations of each trainer in turns",
        "- network: what nnU-Net's planner gives this patch (PlainConvUNet, 32 to at most 320 features), 2 channels",
        *machine_lines(result["machine"]),
    ]
    return "\n".join([*lines, ""])


def _lines(row: dict[str, Any]) -> list[str]:
    classes = "1 class" if row["classes"] == 1 else f"{row['classes']} classes"
    what = [f"{row['batch']} x {row['patch']}³", f"{row['labels'].removesuffix('20')}, {classes}"]
    what.append(" + ".join(str(number) for number in row["processes"][0]["components"]))
    first = row["processes"][0]
    chosen = {CHOOSING: f"{CHOOSING}: {' + '.join(first.get('chosen', ())) or 'no term'}"}
    return [_row([*what, chosen.get(name, name), *_times(row["processes"], name)]) for name in first["ms"]]


def _times(processes: list[dict[str, Any]], name: str) -> list[str]:
    ratios = [float(np.median(one["ms"][name]) / np.median(one["ms"][STOCK])) for one in processes]
    times = np.concatenate([one["ms"][name] for one in processes])
    return [f"**{np.median(ratios):.3f}**", ", ".join(f"{ratio:.3f}" for ratio in ratios), _spread(times)]


def _spread(times: NDArray[np.float64]) -> str:
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
    return f"{middle:.0f} [{low:.0f}, {high:.0f}]"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder open_ms_data, for --labels patients")
    parser.add_argument("--labels", nargs="+", default=["lesions", "vessels", "vessels20"], choices=TRAINERS)
    parser.add_argument("--trainers", nargs="+", help="instead of those made for the labels")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the result")
    parser.add_argument("--name", default="iteration_time", help="of the two files with the result")
    parser.add_argument("--patch", type=int, nargs="+", default=[64], help="edge in voxels; several are allowed")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args(words)
    if "patients" in arguments.labels and not arguments.data:
        parser.error("--labels patients needs --data")
    return arguments


def main() -> None:
    """Measure, then write a page and its numbers."""
    arguments = parse_arguments()
    result = run_benchmark(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / f"{arguments.name}.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
