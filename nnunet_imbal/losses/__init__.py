"""The catalogue of losses: this list is complete, in alphabetical order."""

from nnunet_imbal.losses._base import SegmentationLoss
from nnunet_imbal.losses.cc_dice import CCDiceLoss, cc_dice_loss
from nnunet_imbal.losses.combine import DeepSupervision, WeightedSum

__all__ = ["CCDiceLoss", "DeepSupervision", "SegmentationLoss", "WeightedSum", "cc_dice_loss"]
