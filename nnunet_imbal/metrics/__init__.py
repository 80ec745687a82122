"""How good a segmentation is: overlap, surface distance, and lesion by lesion.

All functions take boolean masks of one class on one grid, ``(Z, Y, X)`` or ``(Y, X)``, and spacings in mm in the
same axis order. ``nan`` always means "not defined for this case", never "bad". ``docs/metrics.md`` says which metric
answers which question.
"""

from nnunet_imbal.metrics.betti import BettiNumbers, betti_errors, betti_numbers
from nnunet_imbal.metrics.brats2023 import (
    BRATS2023_RULES,
    Brats2023Lesion,
    Brats2023Rule,
    LesionwiseBrats2023,
    lesionwise_brats2023,
)
from nnunet_imbal.metrics.brats_mets2026 import (
    BratsMets2026Lesion,
    LesionwiseBratsMets2026,
    lesionwise_brats_mets2026,
)
from nnunet_imbal.metrics.cc_dice import CCDice, cc_dice
from nnunet_imbal.metrics.cldice import ClDice, cldice
from nnunet_imbal.metrics.contacts import ContactMatch, match_contacts, touching_classes
from nnunet_imbal.metrics.detection import Lesion, LesionMatch, f1_score, match_lesions, share
from nnunet_imbal.metrics.dice import dice
from nnunet_imbal.metrics.froc import FROC_THRESHOLDS, FrocCounts, FrocCurve, froc, froc_counts
from nnunet_imbal.metrics.junctions import JunctionMatch, junctions, match_junctions
from nnunet_imbal.metrics.panoptic_quality import (
    MatchedPair,
    Matcher,
    MatchingMetric,
    PanopticQuality,
    check_matching,
    panoptic_quality,
)
from nnunet_imbal.metrics.recall_by_size import SizeBin, recall_by_size
from nnunet_imbal.metrics.surface import SurfaceDistances, hd95, surface_dice, surface_distances
from nnunet_imbal.metrics.surface_elements import surface_element_hd95
from nnunet_imbal.metrics.topcow import (
    CowVessel,
    TopcowRegion,
    TopcowRegionSummary,
    TopcowScores,
    TopcowSummary,
    VesselScores,
    topcow_scores,
    topcow_summary,
)

__all__ = [
    "BRATS2023_RULES",
    "FROC_THRESHOLDS",
    "BettiNumbers",
    "Brats2023Lesion",
    "Brats2023Rule",
    "BratsMets2026Lesion",
    "CCDice",
    "ClDice",
    "ContactMatch",
    "CowVessel",
    "FrocCounts",
    "FrocCurve",
    "JunctionMatch",
    "Lesion",
    "LesionMatch",
    "LesionwiseBrats2023",
    "LesionwiseBratsMets2026",
    "MatchedPair",
    "Matcher",
    "MatchingMetric",
    "PanopticQuality",
    "SizeBin",
    "SurfaceDistances",
    "TopcowRegion",
    "TopcowRegionSummary",
    "TopcowScores",
    "TopcowSummary",
    "VesselScores",
    "betti_errors",
    "betti_numbers",
    "cc_dice",
    "check_matching",
    "cldice",
    "dice",
    "f1_score",
    "froc",
    "froc_counts",
    "hd95",
    "junctions",
    "lesionwise_brats2023",
    "lesionwise_brats_mets2026",
    "match_contacts",
    "match_junctions",
    "match_lesions",
    "panoptic_quality",
    "recall_by_size",
    "share",
    "surface_dice",
    "surface_distances",
    "surface_element_hd95",
    "topcow_scores",
    "topcow_summary",
    "touching_classes",
]
