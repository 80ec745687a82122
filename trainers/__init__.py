"""nnU-Net adapter: trainers for ``nnUNetv2_train -tr``."""

from trainers.imbal_trainer import ImbalTrainer
from trainers.variants import (
    ImbalTrainer_5epochs,
    ImbalTrainer_demo,
    ImbalTrainerBlob,
    ImbalTrainerCATMIL,
    ImbalTrainerCC,
    ImbalTrainerCCSampler,
    ImbalTrainerSampler,
)

__distribution__ = "nnunet-imbal"
__all__ = [
    "ImbalTrainer",
    "ImbalTrainerBlob",
    "ImbalTrainerCATMIL",
    "ImbalTrainerCC",
    "ImbalTrainerCCSampler",
    "ImbalTrainerSampler",
    "ImbalTrainer_5epochs",
    "ImbalTrainer_demo",
]
