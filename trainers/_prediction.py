"""``nnunet-imbal predict``: nnU-Net's predictor. Its last step decides at the model's operating point, if any."""

import argparse
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnunet_imbal.errors import ConfigError, DataError, ImbalError
from nnunet_imbal.io import write_atomically
from nnunet_imbal.operating_point import (
    FILE_NAME,
    ClassPoint,
    OperatingPoint,
    check_model,
    decide,
    load_operating_point,
    read_channels,
)

__all__ = ["OperatingPointPredictor", "main"]

_RECORD = "applied_operating_point.json"  # beside the label maps
_QUEUE = 2  # predictions that may wait for a free process, as in nnU-Net
_FLAT = 999  # nnU-Net's thickness of a picture, in pixels


@dataclass(frozen=True)
class _Writer:
    """Does in another process what nnU-Net's ``export_prediction_from_logits`` does, but decides at ``points``."""

    model: Path
    points: Mapping[str, ClassPoint]
    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]

    def write(self, logits: NDArray[Any], properties: dict[str, Any], stem: str, save_probabilities: bool) -> None:
        _, probs = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            self.plans,
            self.configuration,
            self.plans.get_label_manager(self.dataset_json),
            properties,
            return_probabilities=True,
        )
        channels = read_channels(self.model / "dataset.json")
        labels = decide(probs, channels, self.points, _true_spacing(properties["spacing"], probs.shape[1:]))
        if save_probabilities:
            np.savez_compressed(f"{stem}.npz", probabilities=probs)
            save_pickle(properties, f"{stem}.pkl")
        writer = self.plans.image_reader_writer_class()
        writer.write_seg(labels, stem + self.dataset_json["file_ending"], properties)


class OperatingPointPredictor(nnUNetPredictor):
    """nnU-Net's predictor with another last step: label maps are decided at an operating point, see `decide`."""

    def use_points(self, model: Path, points: Mapping[str, ClassPoint]) -> None:
        """Take the points of a model, after the model was loaded."""
        self.writer = _Writer(model, points, self.plans_manager, self.configuration_manager, self.dataset_json)

    def predict_from_data_iterator(
        self, data_iterator: Iterable[Any], save_probabilities: bool = False, num_processes_segmentation_export: int = 3
    ) -> list[None]:
        """Predict and write one preprocessed case after the other, as nnU-Net's method of this name.

        Raises:
            ImbalError: A process that writes label maps was killed.
        """
        waiting, jobs = num_processes_segmentation_export + _QUEUE, list[Future[None]]()
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(num_processes_segmentation_export, mp_context=context) as pool:
                for case in data_iterator:
                    print(f"Predicting {Path(case['ofile']).name}")
                    logits = self.predict_logits_from_preprocessed_data(case["data"]).cpu().numpy()
                    properties, stem = case["data_properties"], case["ofile"]
                    jobs.append(pool.submit(self.writer.write, logits, properties, stem, save_probabilities))
                    if len(jobs) > waiting:
                        jobs[-waiting - 1].result()
                return [job.result() for job in jobs]
        except BrokenProcessPool as error:
            raise ImbalError("a process was killed, probably for want of memory; try again with -nps 1") from error
        finally:
            empty_cache(self.device)


def main(arguments: Sequence[str]) -> None:
    """Run the command; its options are those of ``nnUNetv2_predict``, and ``--operating-point``.

    Raises:
        ConfigError: Options contradict each other.
        DataError: The operating point is missing, damaged, or not of this model.
    """
    options = _parser().parse_args(arguments)
    model = _model_folder(options)
    point = _find_point(model, options.f, options.operating_point)
    if point and 0 in (options.npp, options.nps):
        raise ConfigError("an operating point is applied in processes of its own: give -npp 1 -nps 1 or more")
    predictor = _predictor(options, OperatingPointPredictor if point else nnUNetPredictor)
    predictor.initialize_from_trained_model_folder(str(model), options.f, options.chk)
    if isinstance(predictor, OperatingPointPredictor) and point:
        predictor.use_points(model, point.points)
    _record(model, Path(options.o), point)
    _run(predictor, options)


def _run(predictor: nnUNetPredictor, options: argparse.Namespace) -> None:
    shared = {
        "save_probabilities": options.save_probabilities,
        "overwrite": not options.continue_prediction,
        "folder_with_segs_from_prev_stage": options.prev_stage_predictions,
    }
    if options.npp == options.nps == 0:
        predictor.predict_from_files_sequential(options.i, options.o, **shared)
        return
    workers = {"num_processes_preprocessing": options.npp, "num_processes_segmentation_export": options.nps}
    parts = {"num_parts": options.num_parts, "part_id": options.part_id}
    predictor.predict_from_files(options.i, options.o, **shared, **workers, **parts)


def _parser() -> argparse.ArgumentParser:
    """nnU-Net's own option names, so that nobody has to learn others."""
    parser = argparse.ArgumentParser("nnunet-imbal predict", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("-i", required=True, help="folder with images, CASE_0000.nii.gz")
    add("-o", required=True, help="folder for the label maps")
    add("-m", help="results folder of the model; or name it by -d, -c, -tr and -p")
    add("-d", help="dataset, number or name")
    add("-c", help="configuration, e.g. 3d_fullres")
    add("-tr", default="nnUNetTrainer", help="trainer (%(default)s)")
    add("-p", default="nnUNetPlans", help="plans (%(default)s)")
    add("-f", nargs="+", type=_fold, default=[0, 1, 2, 3, 4], help="folds, e.g. 0 1 2 or all (0 1 2 3 4)")
    add(
        "--operating-point",
        choices=("auto", "on", "off"),
        default="auto",
        help="apply the model's operating_point.json: if it has one, always, or never (%(default)s)",
    )
    add("-step_size", type=float, default=0.5, help="of the sliding window, in patches (%(default)s)")
    add("-chk", default="checkpoint_final.pth", help="checkpoint (%(default)s)")
    add("-npp", type=int, default=_workers("nnUNet_npp"), help="processes that preprocess (%(default)s)")
    add("-nps", type=int, default=_workers("nnUNet_nps"), help="processes that write label maps (%(default)s)")
    add("-device", "--device", choices=("cuda", "cpu", "mps"), default="cuda", help="%(default)s")
    add("-prev_stage_predictions", help="label maps of the low resolution, for a cascade")
    add("-num_parts", type=int, default=1, help="number of calls that share the work (%(default)s)")
    add("-part_id", type=int, default=0, help="which of them this is, from 0")
    add("--disable_tta", action="store_true", help="no mirroring: faster, less accurate")
    add("--save_probabilities", action="store_true", help="also write the probabilities, .npz")
    add("--continue_prediction", action="store_true", help="skip cases that are predicted already")
    add("--not_on_device", action="store_true", help="less GPU memory, slower")
    add("--disable_progress_bar", action="store_true")
    add("--verbose", action="store_true")
    return parser


def _workers(variable: str) -> int:
    return int(os.environ.get(variable, "3"))


def _fold(word: str) -> int | str:
    return word if word == "all" else int(word)


def _model_folder(options: argparse.Namespace) -> Path:
    named = bool(options.d and options.c)
    if named == bool(options.m) or (options.m and (options.d or options.c)):
        raise ConfigError(
            "name the model either by -m FOLDER, or by -d DATASET -c CONFIGURATION (-tr TRAINER -p PLANS)"
        )
    model = Path(options.m or get_output_folder(options.d, options.tr, options.p, options.c))
    files = ["plans.json", "dataset.json", *(f"fold_{fold}/{options.chk}" for fold in options.f)]
    if missing := [file for file in files if not (model / file).is_file()]:
        raise DataError(f"{model} lacks {', '.join(missing)}; name a trained model, and the trained folds as in -f 0 1")
    return model


def _find_point(model: Path, folds: Sequence[int | str], wanted: str) -> OperatingPoint | None:
    """The point to apply, and one line that tells the user; None for nnU-Net's own decision."""
    file = model / FILE_NAME
    if wanted == "off" or (wanted == "auto" and not file.exists()):
        return None
    if not file.exists():
        raise DataError(f"{file} does not exist; choose it with: nnunet-imbal operating-point {model}")
    point = load_operating_point(file)
    check_model(point, model, folds)
    if point.is_stock:
        print(f"{file} says that stock nnU-Net's decision is best; nothing is changed.")
        return None
    used = "; ".join(
        f"{name} above {each.threshold:g}, from {each.min_volume_mm3:g} mm³ on" for name, each in point.points.items()
    )
    print(f"Operating point of {file}: {used}. For nnU-Net's own decision: --operating-point off.")
    return point


def _predictor(options: argparse.Namespace, kind: type[nnUNetPredictor]) -> nnUNetPredictor:
    """The number of threads is nnU-Net's choice, too: other numbers round otherwise."""
    torch.set_num_threads(multiprocessing.cpu_count() if options.device == "cpu" else 1)
    return kind(
        tile_step_size=options.step_size,
        use_mirroring=not options.disable_tta,
        perform_everything_on_device=not options.not_on_device,
        device=torch.device(options.device),
        verbose=options.verbose,
        verbose_preprocessing=options.verbose,
        allow_tqdm=not options.disable_progress_bar,
    )


def _record(model: Path, out: Path, point: OperatingPoint | None) -> None:
    """Leave beside the label maps what they were decided with, and nothing that they were not decided with."""
    out.mkdir(parents=True, exist_ok=True)
    if point:
        write_atomically(out / _RECORD, (model / FILE_NAME).read_bytes())
    else:
        (out / _RECORD).unlink(missing_ok=True)


def _true_spacing(spacing: Sequence[float], shape: tuple[int, ...]) -> tuple[float, ...]:
    """Spacing in mm, with 1 mm for the thickness of a picture, as `nnunet_imbal.io` reads it."""
    first, *others = map(float, spacing)
    return (1.0 if shape[0] == 1 and first >= _FLAT * max(others) * 0.999 else first, *others)
