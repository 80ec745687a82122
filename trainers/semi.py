"""Trainers for data with unlabelled voxels, and for class distributions among the features."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.semi import ramp_up, unwrap
from trainers._adapter import Levels, label_spec
from trainers._proportions import Proportion, measure_proportions
from trainers._scdl import ClassDistributions
from trainers._teacher import Teacher, exchanged_weights, read_own_state, write_own_state
from trainers.imbal_trainer import ImbalTrainer

__all__ = [
    "ImbalTrainerSCDL",
    "ImbalTrainerSCDL_5epochs",
    "ImbalTrainerSemi",
    "ImbalTrainerSemiSCDL",
    "ImbalTrainerSemiSCDL_5epochs",
    "ImbalTrainerSemi_5epochs",
]


class _HostTrainer(ImbalTrainer):
    """`ImbalTrainer` with a mean teacher (entry ``semi``), with SCDL (entry ``scdl``), or with both.

    Both act in training steps only: validation losses stay comparable, and prediction needs nothing of this.
    """

    hosts = frozenset({"semi", "scdl"})

    def __init__(
        self,
        plans: dict,  # type: ignore[type-arg]
        configuration: str,
        fold: int,
        dataset_json: dict,  # type: ignore[type-arg]
        device: torch.device = torch.device("cuda"),  # noqa: B008  # upstream's signature, word for word
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.imbal_config.semi is not None and not self.label_manager.has_ignore_label:
            raise ConfigError(
                "the plans ask for learning from unlabelled voxels (semi), but dataset.json declares no ignore label, "
                "so there are none; add unlabelled cases with `nnunet-imbal add-unlabelled`, or train with ImbalTrainer"
            )
        self._teacher: Teacher | None = None
        self._scdl: ClassDistributions | None = None
        self._proportion: Proportion | None = None
        self._validation = ExitStack()

    def initialize(self) -> None:
        """Build everything as nnU-Net does, then the teacher as a copy of the network."""
        super().initialize()
        if (semi := self.imbal_config.semi) is not None:
            names = self.dataset_json.get("channel_names") or self.dataset_json["modality"]
            labels, channels = label_spec(self.label_manager), self.label_manager.num_segmentation_heads
            self._teacher = Teacher(self.network, semi, labels, channels, len(names), self._do_i_compile())
        if self._scdl is not None:
            self._scdl.watch()
        self.loss.companions = self._companions

    def configure_optimizers(self) -> tuple[Any, Any]:
        """nnU-Net's own, with the parameters of SCDL beside those of the network."""
        optimizer, schedule = super().configure_optimizers()
        if (scdl := self.imbal_config.scdl) is not None:
            labels, channels = label_spec(self.label_manager), self.label_manager.num_segmentation_heads
            self._scdl = ClassDistributions(self.network, scdl, labels, channels, self.is_ddp)
            for group in self._scdl.module.parameter_groups():
                optimizer.add_param_group(group)
        return optimizer, schedule

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Those of `ImbalTrainer`; measures how much of a patch each class fills, if the configuration asks for it."""
        loaders = super().get_dataloaders()
        semi = self.imbal_config.semi
        if semi is None or not semi.proportion or self._proportion is not None:
            return loaders
        if self._mix is None:
            self.print_to_log_file("Label proportion: no patch is unlabelled as a whole, so it never acts.")
            return loaders
        bank = measure_proportions(self._training_set, self.configuration_manager, self.label_manager)
        self._proportion = Proportion(bank, label_spec(self.label_manager), self.device)
        shares = ", ".join(f"{share:.3g}" for share in bank.mean(0).tolist())
        self.print_to_log_file(f"Label proportion: in {len(bank)} patches the channels fill {shares} on average.")
        return loaders

    def on_train_start(self) -> None:
        """Let the teacher begin where the network does, also after weights were loaded from elsewhere."""
        super().on_train_start()
        if self._teacher is not None:
            self._teacher.start(self.network)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One training step of `ImbalTrainer`, with the teacher before and after it."""
        if self._teacher is None:
            return super().train_step(batch)
        images = self._teacher.look(batch["data"].to(self.device, non_blocking=True), batch["target"])
        result = super().train_step({**batch, "data": images})
        self._teacher.update(self.network)
        return result

    def _companions(self, output: Levels, target: Levels) -> dict[str, Tensor]:
        if not self.network.training:
            if self._scdl is not None:
                self._scdl.forget()
            return {}
        terms = {}
        if self._teacher is not None:
            terms["unlabelled"] = self._unlabelled_ramp() * self._teacher.judge(output)
        if self._proportion is not None and (semi := self.imbal_config.semi) is not None:
            terms["proportion"] = semi.proportion * self._unlabelled_ramp() * self._proportion.loss(output, target)
        if self._scdl is not None and (scdl := self.imbal_config.scdl) is not None:
            weight = scdl.weight * self._ramp(scdl.ramp)
            terms["scdl"] = weight * self._scdl.loss(target, self._unlabelled_ramp())
        return terms

    def _unlabelled_ramp(self) -> float:
        return 0.0 if self.imbal_config.semi is None else self._ramp(self.imbal_config.semi.ramp)

    def _ramp(self, share: float) -> float:
        epochs = self.current_epoch + self._iteration / self.num_iterations_per_epoch
        return ramp_up(epochs, share * self.num_epochs)

    @property
    def _teacher_predicts(self) -> bool:
        return self.imbal_config.semi is not None and self.imbal_config.semi.predict_with == "teacher"

    def on_validation_epoch_start(self) -> None:
        """Validate the weights that will predict."""
        super().on_validation_epoch_start()
        if self._teacher is not None and self._teacher_predicts:
            self._validation.enter_context(exchanged_weights(self.network, self._teacher.average))

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Give the network its own weights back."""
        self._validation.close()
        super().on_validation_epoch_end(val_outputs)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's own, with the weights that will predict."""
        with ExitStack() as stack:
            if self._teacher is not None and self._teacher_predicts:
                stack.enter_context(exchanged_weights(self.network, self._teacher.average))
            super().perform_actual_validation(save_probabilities)

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with our state under a key of its own; the file is complete or not there."""
        written = f"{filename}.part"
        super().save_checkpoint(written)
        if self.local_rank or not Path(written).exists():  # nnU-Net writes on rank 0, and only if it is allowed to
            return
        weights = self._teacher.average.module.state_dict() if self._teacher and self._teacher_predicts else None
        write_own_state(written, filename, self._own_state(), weights)

    def _own_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self._teacher is not None:
            state["teacher"] = self._teacher.state_dict()
        if self._scdl is not None:
            state["scdl"] = self._scdl.state_dict()
        if self._proportion is not None:
            state["proportion"] = self._proportion.state_dict()
        if self._teacher_predicts:
            state["student"] = unwrap(self.network).state_dict()
        return state

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Load as `ImbalTrainer` does, then teacher and distributions."""
        super().load_checkpoint(filename_or_checkpoint)
        self._load_own_state(read_own_state(filename_or_checkpoint))

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        if self._teacher is not None and "teacher" in state:
            self._teacher.load_state_dict(state["teacher"])
        if self._scdl is not None and "scdl" in state:
            self._scdl.load_state_dict(state["scdl"])
        if "proportion" in state:
            self._proportion = Proportion.restore(state["proportion"], label_spec(self.label_manager), self.device)
        if "student" in state:
            unwrap(self.network).load_state_dict(state["student"])


class ImbalTrainerSemi(_HostTrainer):
    """Stock loss on labelled voxels; a mean teacher for those labelled ``ignore`` (`nnunet_imbal.semi`)."""

    imbal = {"terms": [], "mirroring": "auto", "semi": {}}  # noqa: RUF012


class ImbalTrainerSCDL(_HostTrainer):
    """Stock loss and SCDL: features of rare classes are kept apart from those of frequent ones."""

    imbal = {"terms": [], "mirroring": "auto", "scdl": {}}  # noqa: RUF012


class ImbalTrainerSemiSCDL(_HostTrainer):
    """`ImbalTrainerSemi` with SCDL, which takes in unlabelled voxels as the teacher's say grows."""

    imbal = {"terms": [], "mirroring": "auto", "semi": {}, "scdl": {}}  # noqa: RUF012


class ImbalTrainerSemi_5epochs(ImbalTrainerSemi):
    """`ImbalTrainerSemi` for five epochs, to see whether everything runs."""

    epochs = 5


class ImbalTrainerSCDL_5epochs(ImbalTrainerSCDL):
    """`ImbalTrainerSCDL` for five epochs, to see whether everything runs."""

    epochs = 5


class ImbalTrainerSemiSCDL_5epochs(ImbalTrainerSemiSCDL):
    """`ImbalTrainerSemiSCDL` for five epochs, to see whether everything runs."""

    epochs = 5
