"""Trained nnU-Net models inside MONAI: the same labels as ``nnUNetv2_predict``, from a `MetaTensor` in memory.

MONAI's own `monai.apps.nnunet` cannot do this with nnU-Net 2.8: it refuses checkpoints of nnU-Net, does not find
trainers outside nnU-Net's own folder, and builds the network in a way that nnU-Net has given up.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from torch import Tensor, nn

from monai_ext._derived_map import array_spacing
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.export import load_checkpoint

__all__ = ["NNUNetModel", "load_nnunet_model"]

# How nnU-Net's readers turn the axes of a file: not at all, or to right, anterior, superior.
_TURNS = {"SimpleITKIO": False, "NibabelIO": False, "SimpleITKIOWithReorient": True, "NibabelIOWithReorient": True}


class NNUNetModel(nn.Module):
    """A trained nnU-Net with its preprocessing, sliding window, test-time mirroring and resampling.

    Call it with a batch of whole images as MONAI loads them: ``(B, C, X, Y, Z)`` `MetaTensor`, any real dtype, raw
    grey values, the channels in the order of the model's ``dataset.json``, and the axes as in the file (no
    ``Orientationd``, no ``Spacingd``: nnU-Net does its own). It returns a `MetaTensor` ``(B, 1, X, Y, Z)``, uint8 or
    uint16, with nnU-Net's labels on the grid of the images. As any network it moves with ``.to("cuda")`` and serves
    as the ``network`` of MONAI's `SupervisedEvaluator` with `SimpleInferer`.

    Args:
        predictor: an initialised ``nnUNetPredictor``; see `load_nnunet_model`.

    Attributes:
        network: the U-Net alone, which sees preprocessed patches; of several folds the one that was used last.
        predictor: nnU-Net's own object, for plans, labels and settings.

    Raises:
        ConfigError: the model is the second stage of a cascade, or was trained on files MONAI does not read.
        DataError: not ``(B, C, X, Y, Z)``, another number of channels, or no affine to tell the spacing (when called).
    """

    def __init__(self, predictor: Any) -> None:
        super().__init__()
        reader = predictor.plans_manager.plans["image_reader_writer"]
        if reader not in _TURNS:
            raise ConfigError(f"the model reads its images by {reader}; expected one of {', '.join(_TURNS)}")
        if predictor.configuration_manager.previous_stage_name is not None:
            raise ConfigError("the model is the second stage of a cascade and needs labels of the first: load another")
        self.predictor = predictor
        self.network: nn.Module = predictor.network
        self.channels = len(predictor.dataset_json["channel_names"])
        self._turn = Orientation(axcodes="RAS", labels=None) if _TURNS[reader] else None

    @property
    def labels(self) -> dict[str, Any]:
        """Names and values of the classes or regions, as in ``dataset.json``."""
        return dict(self.predictor.dataset_json["labels"])

    def forward(self, images: Tensor) -> Tensor:
        """Segment whole images; see the class."""
        if not isinstance(images, MetaTensor):
            raise DataError(f"got a {type(images).__name__} without affine; LoadImage gives the MetaTensor needed here")
        if images.ndim != 5 or images.shape[1] != self.channels:
            raise DataError(
                f"got shape {tuple(images.shape)}, expected (B, {self.channels}, X, Y, Z): the channels of dataset.json"
            )
        affines = images.affine.expand(len(images), 4, 4)
        pairs = zip(images.as_tensor(), affines, strict=True)
        labels = [self._segment(MetaTensor(image, affine=affine)) for image, affine in pairs]
        result = MetaTensor(torch.stack([each.as_tensor() for each in labels]).to(images.device))
        result.copy_meta_from(images)
        # One channel now: MONAI 1.6.1 cannot write what claims to come from several files but has lost their axis.
        result.meta["original_channel_dim"] = torch.full((len(images),), math.nan) if images.is_batch else math.nan
        return result

    def _segment(self, image: MetaTensor) -> MetaTensor:
        """``(C, X, Y, Z)`` to ``(1, X, Y, Z)``."""
        placed = image if self._turn is None else self._turn(image)
        labels = MetaTensor(self._predict(placed), meta=placed.meta, applied_operations=placed.applied_operations)
        return labels if self._turn is None else self._turn.inverse(labels)

    @torch.no_grad()
    def _predict(self, image: MetaTensor) -> Tensor:
        """NnU-Net counts axes from the last of a NIfTI file to the first."""
        self._follow_device()
        array = image.as_tensor().cpu().numpy().astype(np.float32).transpose(0, 3, 2, 1)
        spacing = array_spacing(image) or []
        labels = self.predictor.predict_single_npy_array(array, {"spacing": spacing[::-1]})
        return torch.from_numpy(np.ascontiguousarray(labels.transpose(2, 1, 0)[None]))

    def _follow_device(self) -> None:
        device = next(self.network.parameters()).device
        self.predictor.device = device
        self.predictor.perform_everything_on_device = device.type == "cuda"


def load_nnunet_model(
    model_folder: str | Path,
    folds: Sequence[int | str] | int | str | None = None,
    checkpoint: str = "checkpoint_final.pth",
    *,
    use_mirroring: bool = True,
    tile_step_size: float = 0.5,
    trust: bool = False,
) -> NNUNetModel:
    """Load what ``nnUNetv2_train`` left, with any trainer nnU-Net finds, ours included.

    Args:
        model_folder: results folder, for example
            ``nnUNet_results/Dataset004_X/ImbalTrainer__nnUNetPlans__3d_fullres``.
        folds: folds whose outputs are averaged, ``"all"`` for the one of all cases. Default: every numbered fold that
            has the checkpoint, as in ``nnUNetv2_predict_from_modelfolder``.
        checkpoint: file name in the folders of the folds.
        use_mirroring: average over mirrored images; False is nnU-Net's ``--disable_tta``.
        tile_step_size: step of the sliding window as a share of the patch, above 0, at most 1.
        trust: unpickle checkpoints that hold more than weights and numbers; only for files of your own.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        ConfigError: nnU-Net finds no trainer of that name, or see `NNUNetModel`.
        DataError: a file is missing or damaged, the weights do not fit the plans, or a checkpoint is not safe to load.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = Path(model_folder)
    checkpoints = [load_checkpoint(path, trust=trust) for path in _checkpoints(folder, folds, checkpoint)]
    predictor = nnUNetPredictor(
        tile_step_size=tile_step_size, use_mirroring=use_mirroring, device=torch.device("cpu"), allow_tqdm=False
    )
    _initialise(predictor, folder, checkpoints)
    return NNUNetModel(predictor).eval()


def _checkpoints(folder: Path, folds: Sequence[int | str] | int | str | None, name: str) -> list[Path]:
    for needed in ("plans.json", "dataset.json"):
        if not (folder / needed).is_file():
            raise DataError(f"{folder} lacks {needed}; give a results folder such as .../ImbalTrainer__nnUNetPlans__2d")
    found = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{name}"))
    if folds is None:
        folds = [fold for fold in found if fold != "all"]
    wanted = [str(fold) for fold in ([folds] if isinstance(folds, int | str) else folds)]
    missing = [fold for fold in wanted if fold not in found]
    if missing or not wanted:
        raise DataError(
            f"{folder} has {name} for the folds {', '.join(found) or 'none'}, asked for {', '.join(wanted) or 'any'}; "
            f"train them, or name another checkpoint"
        )
    return [folder / f"fold_{fold}" / name for fold in wanted]


def _initialise(predictor: Any, folder: Path, checkpoints: Sequence[dict[str, Any]]) -> None:
    """As nnU-Net's predictor does from a folder, but from checkpoints that were read without running their code."""
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    first, dataset = checkpoints[0], load_json(str(folder / "dataset.json"))
    plans = PlansManager(load_json(str(folder / "plans.json")))
    configuration = plans.get_configuration(first["init_args"]["configuration"])
    network = _trainer(first["trainer_name"]).build_network_architecture(
        plans,
        configuration,
        determine_num_input_channels(plans, configuration, dataset),
        plans.get_label_manager(dataset).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    weights = [each["network_weights"] for each in checkpoints]
    try:
        network.load_state_dict(weights[0])
    except RuntimeError as error:
        raise DataError(f"the weights in {folder} do not fit the network of its plans.json: copy both again") from error
    axes = first.get("inference_allowed_mirroring_axes")
    predictor.manual_initialization(network, plans, configuration, weights, dataset, first["trainer_name"], axes)


def _trainer(name: str) -> Any:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise ConfigError(
            f"nnU-Net finds no trainer {name}, by which the model was trained: install the package it comes from, or "
            f"name its folder in nnUNet_extTrainer"
        ) from error
