"""nnU-Net adapter: trainers for ``nnUNetv2_train -tr``."""

from trainers.imbal_trainer import ImbalTrainer
from trainers.semi import (
    ImbalTrainerSCDL,
    ImbalTrainerSCDL_5epochs,
    ImbalTrainerSemi,
    ImbalTrainerSemi_5epochs,
    ImbalTrainerSemiSCDL,
    ImbalTrainerSemiSCDL_5epochs,
)
from trainers.variants import (
    ImbalTrainer_5epochs,
    ImbalTrainer_demo,
    ImbalTrainerAGTAL,
    ImbalTrainerAGTAL_5epochs,
    ImbalTrainerBlob,
    ImbalTrainerCATMIL,
    ImbalTrainerCbDice,
    ImbalTrainerCbDice_5epochs,
    ImbalTrainerCC,
    ImbalTrainerCCSampler,
    ImbalTrainerClDice,
    ImbalTrainerClDice_5epochs,
    ImbalTrainerSampler,
    ImbalTrainerSCNP,
    ImbalTrainerSCNP_5epochs,
    ImbalTrainerSkeletonRecall,
    ImbalTrainerSkeletonRecall_5epochs,
)

__distribution__ = "nnunet-imbal"
__all__ = [
    "ImbalTrainer",
    "ImbalTrainerAGTAL",
    "ImbalTrainerAGTAL_5epochs",
    "ImbalTrainerBlob",
    "ImbalTrainerCATMIL",
    "ImbalTrainerCC",
    "ImbalTrainerCCSampler",
    "ImbalTrainerCbDice",
    "ImbalTrainerCbDice_5epochs",
    "ImbalTrainerClDice",
    "ImbalTrainerClDice_5epochs",
    "ImbalTrainerSCDL",
    "ImbalTrainerSCDL_5epochs",
    "ImbalTrainerSCNP",
    "ImbalTrainerSCNP_5epochs",
    "ImbalTrainerSampler",
    "ImbalTrainerSemi",
    "ImbalTrainerSemiSCDL",
    "ImbalTrainerSemiSCDL_5epochs",
    "ImbalTrainerSemi_5epochs",
    "ImbalTrainerSkeletonRecall",
    "ImbalTrainerSkeletonRecall_5epochs",
    "ImbalTrainer_5epochs",
    "ImbalTrainer_demo",
]
