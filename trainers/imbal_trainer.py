"""`ImbalTrainer`: stock nnU-Net plus losses that see rare structures, and patches that show them."""

import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_imbal.config import ImbalConfig
from nnunet_imbal.errors import ConfigError, NonFiniteLossError
from trainers._adapter import (
    ImbalLoss,
    build_terms,
    describe,
    describe_sampling,
    difference,
    label_spec,
    record,
    repair_levels,
    require_hosts,
)
from trainers._anatomy import learn_anatomy, learn_frequencies, tell_guarded, wanted
from trainers._loader import PatchRecipe, dataset_index, loaders_by
from trainers._mirroring import Mirroring, choose_mirroring, directions_of, use_label_swap
from trainers._recipe import dataset_recipe, recipe_entry, stored_entry
from trainers._semi_loader import Mix, describe_mix, forced_share, mix_patches, training_loader
from trainers._unlabelled import (
    SPOILT_FINGERPRINT,
    counts_unlabelled,
    extend_splits,
    find_unlabelled,
    only_in_training,
)

__all__ = ["ImbalTrainer"]

ALLOW_CHANGE = "NNUNET_IMBAL_ALLOW_CONFIG_CHANGE"


class ImbalTrainer(nnUNetTrainer):
    """nnU-Net with the losses, the patches and the mirroring that fit what is imbalanced in the dataset.

    Without an entry ``imbal`` in the plans, and without a class attribute, `nnunet_imbal.recipe` chooses them from the
    dataset's fingerprint when training starts; a training that is resumed goes on as it began. Everything else is
    stock nnU-Net, and so is the whole of it if nothing is imbalanced. What was used, and why, is stored in the plans
    of the results and in every checkpoint.

    Attributes:
        imbal: configuration if the plans name none, see `nnunet_imbal.config.ImbalConfig`; None: chosen from the data.
        imbal_config: the one in use; if it is chosen from the data, only `initialize` or `load_checkpoint` sets it.
        hosts: entries of the configuration that only some trainers know.
        epochs: overrides nnU-Net's 1000 epochs.
        iterations: overrides nnU-Net's 250 training iterations an epoch.
        val_iterations: overrides nnU-Net's 50 validation iterations an epoch.
    """

    imbal: ClassVar[Mapping[str, Any] | None] = None
    hosts: ClassVar[frozenset[str]] = frozenset()
    epochs: ClassVar[int | None] = None
    iterations: ClassVar[int | None] = None
    val_iterations: ClassVar[int | None] = None

    imbal_config: ImbalConfig
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    oversample_foreground_percent: float

    def __init__(
        self,
        plans: dict,  # type: ignore[type-arg]
        configuration: str,
        fold: int,
        dataset_json: dict,  # type: ignore[type-arg]
        device: torch.device = torch.device("cuda"),  # noqa: B008  # upstream's signature, word for word
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.epochs or self.num_epochs
        self.num_iterations_per_epoch = self.iterations or self.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.val_iterations or self.num_val_iterations_per_epoch
        entry = self.configuration_manager.configuration.get("imbal")
        self._entry = self.imbal if entry is None else entry
        self._learned: dict[str, Any] = {}
        self._choices: list[dict[str, str]] = []
        if self._entry is not None:
            self._configure(self._entry)
        self._iteration = 0
        self._forced = self.oversample_foreground_percent
        self._forced_overall = self.oversample_foreground_percent
        self._training_set: Any = None
        self._unlabelled: frozenset[str] | None = None
        self._mix: Mix | None = None
        self._mirroring: Mirroring | None = None

    def _configure(self, entry: Mapping[str, Any]) -> None:
        self.imbal_config = ImbalConfig.from_dict(entry)
        require_hosts(self.imbal_config, self.hosts, type(self).__name__)
        self._learned = dict(entry.get("learned", {}))
        self._choices = list(entry.get("recipe", []))
        self._imbal_terms()  # a wrong option must stop us here, before the dataset is unpacked
        self._record()

    def _record(self) -> None:
        plans = self.plans_manager.plans
        record(self.imbal_config, self._learned, plans, self.configuration_name, self._choices)

    def initialize(self) -> None:
        """Build everything as nnU-Net does; before that, choose what fits the dataset if nobody has chosen.

        Raises:
            DataError: the dataset's labels cannot be measured.
        """
        if not hasattr(self, "imbal_config"):
            self._choose_recipe()
        super().initialize()

    def _choose_recipe(self) -> None:
        folder, size = Path(self.preprocessed_dataset_folder_base), self.configuration_manager.patch_size
        recipe = dataset_recipe(folder, epochs=self.num_epochs, patch_size=size, say=self.print_to_log_file)
        self._configure(recipe_entry(recipe))
        self._tell_recipe(f"Chosen by what is imbalanced in {folder.name}:")

    def _tell_recipe(self, title: str) -> None:
        lines = [f"- {choice['what']}: {choice['reason']}" for choice in self._choices]
        self.print_to_log_file("\n".join([title, *lines]))

    def _build_loss(self) -> ImbalLoss:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)  # see repair_levels
            host = repair_levels(super()._build_loss()) if self.imbal_config.base == "nnunet" else None
        self.print_to_log_file("Loss:", describe(self.imbal_config))
        return ImbalLoss(host, self._imbal_terms(), label_spec(self.label_manager)).to(self.device)

    def _imbal_terms(self) -> list[Any]:
        return build_terms(self.imbal_config, label_spec(self.label_manager), self._spacing(), self._learned)

    def _spacing(self) -> list[float]:
        spacing = self.configuration_manager.spacing[-len(self.configuration_manager.patch_size) :]
        return [float(mm) for mm in spacing]

    def _set_batch_size_and_oversample(self) -> None:
        sampling, stock = self.imbal_config.sampling, self.oversample_foreground_percent
        if sampling is not None and sampling.forced is not None:
            self.oversample_foreground_percent = sampling.forced
        self._forced_overall = self.oversample_foreground_percent
        super()._set_batch_size_and_oversample()  # splits the share over the ranks, for whole patches only
        coin = sampling is not None and sampling.coin
        self._forced = self._forced_overall if coin else self.oversample_foreground_percent
        if sampling is not None and sampling.forced is not None:  # validation keeps nnU-Net's share, to be comparable
            self.oversample_foreground_percent = stock
            super()._set_batch_size_and_oversample()

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """nnU-Net's own choice, without flips that would give left structures the names of right ones."""
        rotation, dummy_2d, patch_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        labels = {name: value for name, value in self.dataset_json["labels"].items() if name != "ignore"}
        directions = directions_of(Path(self.preprocessed_dataset_folder))
        transpose = self.plans_manager.transpose_forward
        mirroring = choose_mirroring(self.imbal_config.mirroring, axes, labels, directions, transpose)
        if mirroring.reason:
            self.print_to_log_file(
                f"Mirroring: axes {mirroring.axes}, at test time {mirroring.test_axes}, because {mirroring.reason}."
            )
        self._mirroring = mirroring
        self.inference_allowed_mirroring_axes = mirroring.test_axes or None  # nnU-Net's predictor fails on ()
        return rotation, dummy_2d, patch_size, mirroring.axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """nnU-Net's own augmentation; flips exchange the names of left and right where the configuration says so."""
        transforms = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        return transforms if self._mirroring is None else use_label_swap(transforms, self._mirroring)

    def do_split(self) -> tuple[Any, Any]:
        """nnU-Net's own split, with the cases that nobody annotated in training only.

        Raises:
            ConfigError: no labelled case would be left to train or to validate with.
        """
        unlabelled = self._unlabelled_cases()
        if unlabelled and self.fold != "all":
            splits = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
            extend_splits(splits, self._all_cases().identifiers, unlabelled)
        training, validation = super().do_split()
        return only_in_training(training, validation, unlabelled) if unlabelled else (training, validation)

    def _all_cases(self) -> Any:
        folder = self.preprocessed_dataset_folder
        return infer_dataset_class(folder)(folder)

    def _unlabelled_cases(self) -> frozenset[str]:
        if self._unlabelled is None:
            path = Path(self.preprocessed_dataset_folder_base) / "imbal_unlabelled"
            path = path / f"{Path(self.preprocessed_dataset_folder).name}.json"
            self._unlabelled = find_unlabelled(self._all_cases(), self.label_manager, path)
        return self._unlabelled

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's own datasets; unlabelled cases are left to the loader."""
        training, validation = super().get_tr_and_val_datasets()
        unlabelled = self._unlabelled_cases()
        training.identifiers = [case for case in training.identifiers if case not in unlabelled]
        self._training_set = training
        return training, validation

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's own loaders; in training with unlabelled and balanced patches as the configuration asks for them.

        Raises:
            DataError: a preprocessed label map cannot be read; names the case.
        """
        self.print_to_log_file("Sampling:", describe_sampling(self.imbal_config.sampling))
        with loaders_by(self._build_loader):
            loaders: tuple[Any, Any] = super().get_dataloaders()
        self._learn_anatomy(loaders[0])
        return loaders

    def _learn_anatomy(self, batches: Any) -> None:
        words = wanted(self.imbal_config) - self._learned.keys()
        if words:
            mirroring = self._mirroring
            table = None if mirroring is None or mirroring.lateral_axis is None else mirroring.table
            say, spacing = self.print_to_log_file, self._spacing()
            self._learned |= learn_anatomy(words, self._training_set, self.label_manager, spacing, table, say)
            if "frequencies" in words:
                self._learned["frequencies"] = learn_frequencies(batches, self.label_manager, self.device, say)
            self._record()
        if self._learned:
            self.loss.use(self._imbal_terms())
            self.loss.to(self.device)
            tell_guarded(self.loss.terms, self.print_to_log_file)

    def _build_loader(self, data: Any, *args: Any, **kwargs: Any) -> nnUNetDataLoader:
        if data is not self._training_set:
            return nnUNetDataLoader(data, *args, **kwargs)
        self._mix = self._choose_mix()
        return training_loader(data, self._patch_recipe(data), self._mix, *args, **kwargs)

    def _choose_mix(self) -> Mix | None:
        cases, share = self._unlabelled_cases(), self.imbal_config.unlabelled_share
        self.print_to_log_file("Unlabelled:", describe_mix(len(cases), share, self.is_cascaded))
        fingerprint = Path(self.preprocessed_dataset_folder_base) / "dataset_fingerprint.json"
        if counts_unlabelled(fingerprint, len(self._all_cases().identifiers), cases):
            self.print_to_log_file("WARNING:", SPOILT_FINGERPRINT)
        if not cases or not share or self.is_cascaded:
            return None
        size, sampling = self.configuration_manager.batch_size, self.imbal_config.sampling
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if self.is_ddp else (0, 1)
        coin = self.probabilistic_oversampling or (sampling is not None and (sampling.coin or size == 1))
        ignore = None if self.label_manager.has_regions else self.label_manager.ignore_label
        return mix_patches(cases, share, size, rank, ranks, forced_share(self._forced_overall, size, coin), ignore)

    def _patch_recipe(self, data: Any) -> PatchRecipe | None:
        sampling = self.imbal_config.sampling
        if sampling is None:
            return None
        folder = Path(self.preprocessed_dataset_folder_base) / "imbal_instances"
        path = folder / f"{Path(self.preprocessed_dataset_folder).name}_fold_{self.fold}.npz"
        index = dataset_index(data, self.label_manager, path, sampling.min_voxels, self.print_to_log_file)
        if not len(index):
            self.print_to_log_file("No training case contains foreground: patches are drawn as nnU-Net draws them.")
            return None
        return PatchRecipe(sampling, index, self._forced, self.local_rank, self.current_epoch)

    def on_train_epoch_start(self) -> None:
        """Let terms that start later come into force."""
        super().on_train_epoch_start()
        self.loss.epoch = self.current_epoch
        self._iteration = 0

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One stock training step, stopped at the first loss that is not a number.

        Raises:
            NonFiniteLossError: names epoch, iteration and the value of each term.
        """
        with self._on_labelled_patches(batch):
            result = super().train_step(batch)
        if not np.isfinite(result["loss"]):
            terms = ", ".join(f"{name} = {value.item():g}" for name, value in self.loss.values.items())
            cases = ", ".join(str(key) for key in batch.get("keys", ()))
            raise NonFiniteLossError(
                f"the loss became {result['loss']} in epoch {self.current_epoch}, iteration {self._iteration} "
                f"({terms}) on {cases}. The last checkpoint in {self.output_folder} is from before; "
                "usual causes are NaN or infinite voxels in an image and a learning rate that is too high."
            )
        self._iteration += 1
        return result

    def _on_labelled_patches(self, batch: dict[str, Any]) -> AbstractContextManager[None]:
        if self._mix is None:
            return nullcontext()
        unlabelled = sum(key in self._mix.cases for key in batch["keys"])
        return self.loss.leaving_out(unlabelled, self._mix.weight(unlabelled))

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Load as nnU-Net does, then refuse to train on with another loss.

        What was chosen from the data goes on as it began, also if the data would now call for something else.

        Raises:
            ConfigError: shows where the stored and the present configuration differ.
        """
        if self._entry is None and not self.was_initialized:
            self._go_on_as_in(filename_or_checkpoint)
        present = self.plans_manager.plans
        super().load_checkpoint(filename_or_checkpoint)
        stored = self.my_init_kwargs["plans"]["configurations"][self.configuration_name].get("imbal", {})
        self._learned = dict(stored.get("learned", {}))  # the labels may have changed, the training goes on as it began
        self._record()
        lines = difference(stored, present["configurations"][self.configuration_name]["imbal"])
        if not lines or self.current_epoch >= self.num_epochs:  # nothing changed, or nothing left to train
            return
        message = "\n".join(["losses or sampling differ from those this training began with:", *lines])
        if os.environ.get(ALLOW_CHANGE) != "1":
            raise ConfigError(f"{message}\nRestore it, start a new training, or set {ALLOW_CHANGE}=1 to go on anyway.")
        self.print_to_log_file(f"{message}\n{ALLOW_CHANGE}=1: going on with the present one.")
        self.my_init_kwargs["plans"] = present

    def _go_on_as_in(self, checkpoint: str) -> None:
        entry = stored_entry(checkpoint, self.configuration_name)
        if entry is not None:
            self._configure(entry)
            self._tell_recipe("Going on as this training began:")
