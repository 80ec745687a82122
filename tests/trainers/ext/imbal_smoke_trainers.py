"""Trainers for tests, found by nnU-Net because the folder is named in nnUNet_extTrainer, as a user's own would be."""

import random

import numpy as np
import torch

from trainers import ImbalTrainer, ImbalTrainerSemi, ImbalTrainerSemiSCDL


class ImbalTrainerSmoke(ImbalTrainer):
    epochs = 1
    iterations = 2
    val_iterations = 1


class ImbalTrainerSeeded(ImbalTrainer):
    """Draws the same patches in the same epoch, whether or not the training was interrupted before."""

    epochs = 3
    iterations = 2
    val_iterations = 1

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.save_every = 1

    def on_epoch_start(self):
        super().on_epoch_start()
        for seed in (random.seed, np.random.seed, torch.manual_seed):  # nnU-Net draws from these
            seed(1000 + self.current_epoch)


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
