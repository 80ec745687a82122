"""Trainers for tests, found by nnU-Net because the folder is named in nnUNet_extTrainer, as a user's own would be."""

import random

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from trainers import ImbalTrainer, ImbalTrainerSemi, ImbalTrainerSemiSCDL

CC_DICE = {"terms": [{"loss": "cc_dice"}], "mirroring": "auto"}


def set_seeds(seed):
    for each in (random.seed, np.random.seed, torch.manual_seed):  # nnU-Net draws from these
        each(seed)


class ImbalTrainerSmoke(ImbalTrainer):
    imbal = CC_DICE
    epochs = 1
    iterations = 2
    val_iterations = 1


class ImbalTrainerSeeded(ImbalTrainer):
    """Draws the same patches in the same epoch, whether or not the training was interrupted before."""

    imbal = CC_DICE
    epochs = 3
    iterations = 2
    val_iterations = 1

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.save_every = 1

    def on_epoch_start(self):
        super().on_epoch_start()
        set_seeds(1000 + self.current_epoch)


class ImbalTrainerSemiSmoke(ImbalTrainerSemi):
    epochs = 1
    iterations = 2
    val_iterations = 1


class ImbalTrainerSemiSCDLSmoke(ImbalTrainerSemiSCDL):
    epochs = 1
    iterations = 2
    val_iterations = 1


class ImbalTrainerSemiSCDLSeeded(ImbalTrainerSeeded, ImbalTrainerSemiSCDL):
    """Draws the same patches and the same noise in the same epoch."""

    imbal = ImbalTrainerSemiSCDL.imbal
    epochs = 2


class _TwoEpochs:
    """The same first weights and the same patches, whatever trainer it is mixed into."""

    def initialize(self):
        set_seeds(7)
        super().initialize()

    def on_train_start(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 2, 1
        super().on_train_start()

    def on_epoch_start(self):
        super().on_epoch_start()
        set_seeds(1000 + self.current_epoch)

    def perform_actual_validation(self, save_probabilities=False):
        """Left out: equal weights predict alike."""


class StockTwoEpochs(_TwoEpochs, nnUNetTrainer):
    """nnU-Net as it comes."""


class RecipeTwoEpochs(_TwoEpochs, ImbalTrainer):
    """ImbalTrainer as it comes."""
