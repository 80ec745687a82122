"""The catalogue of losses: this list is complete, in alphabetical order."""

from nnunet_imbal.losses._base import SegmentationLoss
from nnunet_imbal.losses.agtal import AGTALLoss
from nnunet_imbal.losses.blob_ce import BlobCELoss, blob_ce_loss
from nnunet_imbal.losses.blob_dice import BlobDiceLoss, blob_dice_loss
from nnunet_imbal.losses.breakage_cldice import BreakageClDiceLoss, breakage_cldice_loss, breakage_weights
from nnunet_imbal.losses.cat_tversky import CATverskyLoss, cat_tversky_loss
from nnunet_imbal.losses.cbdice import CbDiceLoss, cbdice_loss
from nnunet_imbal.losses.cc_ce import CCCELoss, cc_ce_loss
from nnunet_imbal.losses.cc_dice import CCDiceLoss, cc_dice_loss
from nnunet_imbal.losses.cc_dice_ce import CCDiceCELoss, cc_dice_ce_loss
from nnunet_imbal.losses.clce import ClCELoss, clce_loss
from nnunet_imbal.losses.cldice import ClDiceLoss, cldice_loss
from nnunet_imbal.losses.co_occurrence import co_occurrence_loss, junction_loss, junction_mask
from nnunet_imbal.losses.combine import DeepSupervision, WeightedSum
from nnunet_imbal.losses.focal_ce import FocalCELoss, focal_ce_loss
from nnunet_imbal.losses.focal_tversky import FocalTverskyLoss, focal_tversky_loss
from nnunet_imbal.losses.instance_ce import InstanceCELoss, instance_ce_loss
from nnunet_imbal.losses.inverse_size_ce import InverseSizeCELoss, inverse_size_ce_loss
from nnunet_imbal.losses.inverse_size_dice import InverseSizeDiceLoss, inverse_size_dice_loss
from nnunet_imbal.losses.label_proportion import LabelProportion, label_proportion_loss
from nnunet_imbal.losses.lcr import LCRLoss, implication_loss, lcr_weights, nested_pairs, reweighted_bce_loss
from nnunet_imbal.losses.ldam import LDAMLoss, ldam_loss, ldam_margins
from nnunet_imbal.losses.lesion_mil import LesionMILLoss, lesion_mil_loss
from nnunet_imbal.losses.logit_adjusted_ce import LogitAdjustedCELoss, adjust_logits, logit_adjusted_ce_loss
from nnunet_imbal.losses.radius_dice import RadiusDiceLoss, radius_dice_loss, radius_weights
from nnunet_imbal.losses.scdl import SCDL, PriorInjection, SCDLTerms
from nnunet_imbal.losses.scnp import SCNPLoss, same_class_neighbor_penalty, scnp_loss
from nnunet_imbal.losses.skeleton_recall import SkeletonRecallLoss, skeleton_recall_loss, skeleton_tubes
from nnunet_imbal.losses.unified_focal import UnifiedFocalLoss, unified_focal_loss

__all__ = [
    "SCDL",
    "AGTALLoss",
    "BlobCELoss",
    "BlobDiceLoss",
    "BreakageClDiceLoss",
    "CATverskyLoss",
    "CCCELoss",
    "CCDiceCELoss",
    "CCDiceLoss",
    "CbDiceLoss",
    "ClCELoss",
    "ClDiceLoss",
    "DeepSupervision",
    "FocalCELoss",
    "FocalTverskyLoss",
    "InstanceCELoss",
    "InverseSizeCELoss",
    "InverseSizeDiceLoss",
    "LCRLoss",
    "LDAMLoss",
    "LabelProportion",
    "LesionMILLoss",
    "LogitAdjustedCELoss",
    "PriorInjection",
    "RadiusDiceLoss",
    "SCDLTerms",
    "SCNPLoss",
    "SegmentationLoss",
    "SkeletonRecallLoss",
    "UnifiedFocalLoss",
    "WeightedSum",
    "adjust_logits",
    "blob_ce_loss",
    "blob_dice_loss",
    "breakage_cldice_loss",
    "breakage_weights",
    "cat_tversky_loss",
    "cbdice_loss",
    "cc_ce_loss",
    "cc_dice_ce_loss",
    "cc_dice_loss",
    "clce_loss",
    "cldice_loss",
    "co_occurrence_loss",
    "focal_ce_loss",
    "focal_tversky_loss",
    "implication_loss",
    "instance_ce_loss",
    "inverse_size_ce_loss",
    "inverse_size_dice_loss",
    "junction_loss",
    "junction_mask",
    "label_proportion_loss",
    "lcr_weights",
    "ldam_loss",
    "ldam_margins",
    "lesion_mil_loss",
    "logit_adjusted_ce_loss",
    "nested_pairs",
    "radius_dice_loss",
    "radius_weights",
    "reweighted_bce_loss",
    "same_class_neighbor_penalty",
    "scnp_loss",
    "skeleton_recall_loss",
    "skeleton_tubes",
    "unified_focal_loss",
]
