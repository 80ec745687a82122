"""Learning from voxels nobody annotated: a mean teacher, which of its labels to believe, and the losses they enter."""

from nnunet_imbal.semi.features import FeatureTap
from nnunet_imbal.semi.gate import ConfidenceGate, PseudoLabels
from nnunet_imbal.semi.losses import UnlabelledLoss, consistency_loss, cross_pseudo_loss, pseudo_label_loss
from nnunet_imbal.semi.teacher import MeanTeacher, ramp_up, unwrap
from nnunet_imbal.semi.views import perturb_intensity

__all__ = [
    "ConfidenceGate",
    "FeatureTap",
    "MeanTeacher",
    "PseudoLabels",
    "UnlabelledLoss",
    "consistency_loss",
    "cross_pseudo_loss",
    "perturb_intensity",
    "pseudo_label_loss",
    "ramp_up",
    "unwrap",
]
