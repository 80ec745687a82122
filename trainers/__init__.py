"""nnU-Net adapter: trainers for ``nnUNetv2_train -tr``."""

from trainers.imbal_trainer import ImbalTrainer
from trainers.variants import (
    ImbalTrainer_5epochs,
    ImbalTrainer_demo,
    ImbalTrainerAGTAL,
    ImbalTrainerBlob,
    ImbalTrainerCATMIL,
    ImbalTrainerCbDice,
    ImbalTrainerCC,
    ImbalTrainerCCSampler,
    ImbalTrainerClDice,
    ImbalTrainerSampler,
    ImbalTrainerSkeletonRecall,
)

__distribution__ = "nnunet-imbal"
__all__ = [
    "ImbalTrainer",
    "ImbalTrainerAGTAL",
    "ImbalTrainerBlob",
    "ImbalTrainerCATMIL",
    "ImbalTrainerCC",
    "ImbalTrainerCCSampler",
    "ImbalTrainerCbDice",
    "ImbalTrainerClDice",
    "ImbalTrainerSampler",
    "ImbalTrainerSkeletonRecall",
    "ImbalTrainer_5epochs",
    "ImbalTrainer_demo",
]
