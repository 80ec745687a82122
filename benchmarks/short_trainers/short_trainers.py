"""The two trainers of the comparison, cut short alike. nnU-Net finds them through ``nnUNet_extTrainer``.

Budget and seed come from the environment: ``BENCHMARK_EPOCHS``, ``BENCHMARK_ITERATIONS``, ``BENCHMARK_SEED``; if
set, also ``BENCHMARK_LEARNING_RATE`` (AdamW instead of nnU-Net's optimiser), ``BENCHMARK_FORCED_PATCHES``
and ``BENCHMARK_WEIGHTS`` (a checkpoint to start from).
"""

import os
import random
import zlib

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from trainers import ImbalTrainer, ImbalTrainerCC


class _Short:
    """Budget and random numbers; everything that makes a trainer what it is stays untouched.

    The state of the generators depends on the number of steps only, not on the loss. Hence two trainers with one
    seed start from the same weights and see the same patches; the checksum in the log lets the benchmark prove it.
    """

    _checksum = 0

    def on_train_start(self):
        self.num_epochs = int(os.environ["BENCHMARK_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["BENCHMARK_ITERATIONS"])
        self.num_val_iterations_per_epoch = 1  # nnU-Net wants a number to plot; here it would be measured on fold all
        for seed in (random.seed, np.random.seed, torch.manual_seed):  # nnU-Net draws from all three
            seed(int(os.environ["BENCHMARK_SEED"]))
        if "BENCHMARK_FORCED_PATCHES" in os.environ:
            self.oversample_foreground_percent = float(os.environ["BENCHMARK_FORCED_PATCHES"])
            # nnU-Net forces whole patches of a batch: of two, a share of 0.66 would force one, as its own 0.33 does.
            self.probabilistic_oversampling = self.oversample_foreground_percent < 1
        if "OMP_NUM_THREADS" in os.environ:  # nnU-Net took a thread per core; on a busy one they wait for each other
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        super().on_train_start()
        if "BENCHMARK_WEIGHTS" in os.environ:  # nnU-Net's -pretrained_weights would leave out the last layers
            checkpoint = torch.load(os.environ["BENCHMARK_WEIGHTS"], self.device, weights_only=False)  # made by us
            self.network.load_state_dict(checkpoint["network_weights"])

    def configure_optimizers(self):
        if "BENCHMARK_LEARNING_RATE" not in os.environ:
            return super().configure_optimizers()
        rate = float(os.environ["BENCHMARK_LEARNING_RATE"])
        optimizer = torch.optim.AdamW(self.network.parameters(), rate, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, rate, self.num_epochs)

    def train_step(self, batch):
        self._checksum = zlib.crc32(batch["data"].numpy(), self._checksum)
        return super().train_step(batch)

    def on_train_end(self):
        super().on_train_end()
        self.print_to_log_file(f"Checksum of all patches: {self._checksum:08x}")

    def perform_actual_validation(self, save_probabilities=False):
        """Left out: with fold ``all`` it would predict the training case."""


class StockShort(_Short, nnUNetTrainer):
    """nnU-Net as it comes: Dice + CE."""


class ImbalShort(_Short, ImbalTrainer):
    """nnU-Net with what the plans name under ``imbal``, else with what `ImbalTrainer` chooses for the dataset."""

    epochs = int(os.environ.get("BENCHMARK_EPOCHS", "1"))  # a recipe starts some terms late


class CCShort(_Short, ImbalTrainerCC):
    """nnU-Net with Dice + CE + CC-Dice."""
