"""The seven scores of the TopCoW 2024 challenge: segmentation of the circle of Willis, the ring of brain arteries.

Everything here follows the rules of that challenge, also where they differ from the rest of this package: a vessel
missing on one side scores 0 (Dice) or 90 mm (distance), and what is not defined is 0 instead of ``nan``. For other
vessels there are `cldice`, `betti_errors` and `match_contacts`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from nnunet_imbal.errors import DataError, GeometryError, LabelError
from nnunet_imbal.metrics._masks import Mask, bounding_box, check_spacing
from nnunet_imbal.metrics.cldice import cldice
from nnunet_imbal.metrics.contacts import touching_classes
from nnunet_imbal.metrics.surface import SurfaceDistances
from numba_kernels import connected_components

__all__ = [
    "CowVessel",
    "TopcowRegion",
    "TopcowRegionSummary",
    "TopcowScores",
    "TopcowSummary",
    "VesselScores",
    "topcow_scores",
    "topcow_summary",
]

Labels = NDArray[Any]
Pairs = frozenset[tuple[int, int]]
Detection = Literal["TP", "FN", "FP", "TN"]
Variant = tuple[bool, ...]

_MISSING_MM = 90.0  # about the diagonal of the region of interest
_DETECTED_IOU = 0.25
_CONNECTIVITY = 26


class CowVessel(IntEnum):
    """Labels of the TopCoW data; R and L are the patient's right and left."""

    BA = 1
    R_PCA = 2
    L_PCA = 3
    R_ICA = 4
    R_MCA = 5
    L_ICA = 6
    L_MCA = 7
    R_PCOM = 8
    L_PCOM = 9
    ACOM = 10
    R_ACA = 11
    L_ACA = 12
    THIRD_A2 = 15


_RARE = (CowVessel.R_PCOM, CowVessel.L_PCOM, CowVessel.ACOM, CowVessel.THIRD_A2)


class _Half(NamedTuple):
    """What the challenge looks at in the front or back half of the circle."""

    vessels: tuple[CowVessel, ...]
    parts: tuple[CowVessel | tuple[CowVessel, CowVessel], ...]  # a vessel that is there, or two that touch
    sides: tuple[tuple[CowVessel, CowVessel], ...]  # right and left partner; the first pair that is there decides


_ANTERIOR = _Half(
    vessels=(CowVessel.ACOM, CowVessel.R_ACA, CowVessel.L_ACA, CowVessel.THIRD_A2),
    parts=(
        (CowVessel.L_ICA, CowVessel.L_ACA),
        CowVessel.ACOM,
        CowVessel.THIRD_A2,
        (CowVessel.R_ICA, CowVessel.R_ACA),
    ),
    sides=((CowVessel.R_ICA, CowVessel.L_ICA), (CowVessel.R_ACA, CowVessel.L_ACA)),
)
_POSTERIOR = _Half(
    vessels=(CowVessel.R_PCA, CowVessel.L_PCA, CowVessel.R_PCOM, CowVessel.L_PCOM),
    parts=(CowVessel.L_PCOM, (CowVessel.BA, CowVessel.L_PCA), (CowVessel.BA, CowVessel.R_PCA), CowVessel.R_PCOM),
    sides=((CowVessel.R_PCA, CowVessel.L_PCA),),
)


@dataclass(frozen=True)
class VesselScores:
    """One score for each vessel that is in the truth or in the prediction, and for all vessels as one.

    Attributes:
        vessels: Score of each vessel.
        merged: Score of all vessels merged; 0 if both maps are empty.
    """

    vessels: dict[CowVessel, float]
    merged: float

    @property
    def mean(self) -> float:
        """Mean over the vessels of this patient; 0 if both maps are empty."""
        return float(np.mean(list(self.vessels.values()))) if self.vessels else 0.0


@dataclass(frozen=True)
class TopcowRegion:
    """The front or the back half of the circle of one patient.

    Attributes:
        reference: Which parts the patient has. Front: left A1, Acom, third A2, right A1. Back: left Pcom, left P1,
            right P1, right Pcom. A1 = ACA that touches the ICA of its side, P1 = PCA that touches the BA.
        prediction: Which parts the prediction has.
        topology_matches: Whether every vessel of the half is found (IoU >= 0.25) or rightly absent, has as many
            pieces and touches the same vessels as in truth, and left is left.
    """

    reference: Variant
    prediction: Variant
    topology_matches: bool


@dataclass(frozen=True)
class TopcowScores:
    """Scores of one patient, see `topcow_scores`.

    Attributes:
        dice: 0 to 1; 0 for a vessel that is missing on one side. The challenge ranks by ``mean``.
        cldice: 0 to 1; 0 for a vessel that is missing on one side. The challenge ranks by ``merged``.
        b0_error: Difference of the numbers of pieces. The challenge ranks by ``mean``.
        hd95_mm: mm; 90 for a vessel that is missing on one side. The challenge ranks by ``mean``.
        detection: Of the vessels that many people lack: "TP" (IoU >= 0.25), "FN", "FP" (not in truth) or "TN".
        anterior: The front half.
        posterior: The back half.
    """

    dice: VesselScores
    cldice: VesselScores
    b0_error: VesselScores
    hd95_mm: VesselScores
    detection: dict[CowVessel, Detection]
    anterior: TopcowRegion
    posterior: TopcowRegion


@dataclass(frozen=True)
class TopcowRegionSummary:
    """One half of the circle over all patients; every variant of anatomy counts the same, however rare.

    Attributes:
        variant_accuracy: Mean over the true variants of the share of patients whose variant was predicted.
        topology_match: Mean over the true variants of the share of patients whose topology matches.
    """

    variant_accuracy: float
    topology_match: float


@dataclass(frozen=True)
class TopcowSummary:
    """The challenge's seven scores over all patients, see `topcow_summary`.

    Attributes:
        dice: Mean over patients of the mean over vessels, 0 to 1.
        cldice: Mean over patients of the merged clDice, 0 to 1.
        b0_error: Mean over patients of the mean over vessels.
        hd95_mm: Mean over patients of the mean over vessels, in mm.
        detection_f1: F1 of each rare vessel over all patients, 0 to 1; 0 if it is never there nor predicted.
        anterior: Front half: graph classification and topology match.
        posterior: Back half.
    """

    dice: float
    cldice: float
    b0_error: float
    hd95_mm: float
    detection_f1: dict[CowVessel, float]
    anterior: TopcowRegionSummary
    posterior: TopcowRegionSummary

    @property
    def mean_detection_f1(self) -> float:
        """Mean F1 of the four rare vessels."""
        return float(np.mean(list(self.detection_f1.values())))


def topcow_scores(pred: Labels, ref: Labels, spacing: Sequence[float]) -> TopcowScores:
    """Score one patient's circle of Willis as the TopCoW 2024 challenge does.

    Pieces and contacts use all 26 neighbours, centre lines are those of scikit-image (``compat`` of `cldice`), HD95
    runs from each outline voxel (26 neighbours) to the nearest one of the other outline.

    Args:
        pred: Predicted labels `CowVessel`, 0 elsewhere, integer, ``(Z, Y, X)``; the index of X must grow towards the
            patient's left, as in the challenge's files (LPS) read with SimpleITK. Cut both maps to the region of
            interest first if the challenge's numbers are wanted.
        ref: True labels, same shape.
        spacing: mm per voxel along Z, Y and X.

    Returns:
        Scores per vessel, merged, and of both halves of the circle.

    Raises:
        GeometryError: The shapes differ or are not 3-D.
        LabelError: The maps are not integer or hold other labels than `CowVessel`.
        ValueError: There is not one positive spacing per axis.

    Example:
        >>> truth = np.zeros((3, 3, 9), np.uint8)
        >>> truth[1, 1, :4], truth[1, 1, 4:] = CowVessel.R_PCA, CowVessel.R_PCOM
        >>> found = np.where(truth == CowVessel.R_PCOM, 0, truth)
        >>> scores = topcow_scores(found, truth, spacing=(1, 1, 1))
        >>> scores.dice.mean, scores.hd95_mm.mean, scores.detection[CowVessel.R_PCOM], scores.posterior.topology_matches
        (0.5, 45.0, 'FN', False)

    Source:
        Yang et al., arXiv 2312.17670, and the challenge's public evaluation code, CoWBenchmark/TopCoW_Eval_Metrics
        at commit 25ca839, published. That code carries no licence; ours is written from its rules and agrees with
        its numbers. Scores of single vessels for clDice follow TopBrain 2025.
    """
    _check_maps(pred, ref)
    step = check_spacing(spacing, ref.shape)
    vessels = [CowVessel(label) for label in np.union1d(pred, ref).tolist() if label]
    single = {vessel: _measure(pred == vessel, ref == vessel, step) for vessel in vessels}
    merged = _measure(pred != 0, ref != 0, step) if vessels else _Measures(0, 0, 0, 0, 0, False)
    return TopcowScores(
        dice=_collect(single, merged, lambda m: m.dice),
        cldice=_collect(single, merged, lambda m: m.cldice),
        b0_error=_collect(single, merged, lambda m: m.b0_error),
        hd95_mm=_collect(single, merged, lambda m: m.hd95_mm),
        detection={vessel: _detect(vessel, single) for vessel in _RARE},
        anterior=_compare(_ANTERIOR, pred, ref, single),
        posterior=_compare(_POSTERIOR, pred, ref, single),
    )


def topcow_summary(patients: Iterable[TopcowScores]) -> TopcowSummary:
    """Sum up the patients as the TopCoW 2024 challenge does.

    F1 counts the detections of all patients per vessel: ``2 TP / (2 TP + FP + FN)``. Balanced means that first the
    patients of one true variant are averaged, then the variants.

    Args:
        patients: Results of `topcow_scores`.

    Returns:
        The seven scores by which the challenge ranks.

    Raises:
        DataError: There are no patients.

    Example:
        >>> circle = np.full((3, 3, 9), CowVessel.ACOM)
        >>> topcow_summary([topcow_scores(circle, circle, spacing=(1, 1, 1))]).mean_detection_f1
        0.25
    """
    patients = list(patients)
    if not patients:
        raise DataError("no patients to sum up; give at least one result of topcow_scores")
    return TopcowSummary(
        dice=float(np.mean([patient.dice.mean for patient in patients])),
        cldice=float(np.mean([patient.cldice.merged for patient in patients])),
        b0_error=float(np.mean([patient.b0_error.mean for patient in patients])),
        hd95_mm=float(np.mean([patient.hd95_mm.mean for patient in patients])),
        detection_f1={vessel: _f1(Counter(patient.detection[vessel] for patient in patients)) for vessel in _RARE},
        anterior=_sum_up([patient.anterior for patient in patients]),
        posterior=_sum_up([patient.posterior for patient in patients]),
    )


# ------------------------------------------------------------------------------------------------ vessel by vessel


class _Measures(NamedTuple):
    dice: float
    iou: float
    cldice: float
    hd95_mm: float
    b0_error: int
    in_truth: bool


def _check_maps(pred: Labels, ref: Labels) -> None:
    if pred.shape != ref.shape or pred.ndim != 3:
        raise GeometryError(f"prediction {pred.shape} and reference {ref.shape}: expected two volumes of one shape")
    for name, labels in (("prediction", pred), ("reference", ref)):
        if labels.dtype.kind not in "iu":
            raise LabelError(f"the {name} is {labels.dtype}, expected integer labels; round or convert it first")
        unknown = sorted(set(np.unique(labels).tolist()) - {0, *CowVessel})
        if unknown:
            raise LabelError(f"the {name} holds the label {unknown[0]}; TopCoW has 1 to 12 and 15, map yours to these")


def _measure(pred: Mask, ref: Mask, step: NDArray[np.float64]) -> _Measures:
    line_score = cldice(pred, ref, compat="skimage-0.26").score  # before the cut: thinning takes one slice as 2-D
    box = bounding_box(pred | ref)
    pred, ref = pred[box], ref[box]
    common, total = int((pred & ref).sum()), int(pred.sum()) + int(ref.sum())
    pieces, true_pieces = (connected_components(mask, _CONNECTIVITY)[1] for mask in (pred, ref))
    return _Measures(
        dice=2 * common / total,
        iou=common / (total - common),
        cldice=float(np.nan_to_num(line_score)),
        hd95_mm=_hd95(pred, ref, step) if pieces and true_pieces else _MISSING_MM,
        b0_error=abs(pieces - true_pieces),
        in_truth=true_pieces > 0,
    )


def _hd95(pred: Mask, ref: Mask, step: NDArray[np.float64]) -> float:
    """Unlike in `hd95`, a voxel with only a diagonal neighbour outside belongs to the outline too."""
    outlines = [np.argwhere(mask & ~binary_erosion(mask, np.ones((3, 3, 3)))) * step for mask in (pred, ref)]
    ours, theirs = (KDTree(outline) for outline in outlines)
    return SurfaceDistances(theirs.query(outlines[0])[0], ours.query(outlines[1])[0]).hausdorff(95)


def _collect(
    single: dict[CowVessel, _Measures], merged: _Measures, score: Callable[[_Measures], float]
) -> VesselScores:
    return VesselScores({vessel: score(measures) for vessel, measures in single.items()}, score(merged))


def _detect(vessel: CowVessel, single: dict[CowVessel, _Measures]) -> Detection:
    if vessel not in single:
        return "TN"
    if not single[vessel].in_truth:
        return "FP"
    return "TP" if single[vessel].iou >= _DETECTED_IOU else "FN"


# --------------------------------------------------------------------------------------------------- the two halves


class _Graph(NamedTuple):
    vessels: set[int]
    contacts: Pairs


def _graph(labels: Labels) -> _Graph:
    return _Graph(set(np.unique(labels).tolist()), touching_classes(labels))


def _compare(half: _Half, pred: Labels, ref: Labels, single: dict[CowVessel, _Measures]) -> TopcowRegion:
    found, true = _graph(pred), _graph(ref)
    matches = all(
        _detect(vessel, single) in ("TP", "TN")
        and _neighbours(vessel, found) == _neighbours(vessel, true)
        and (vessel not in single or single[vessel].b0_error == 0)
        for vessel in half.vessels
    )
    return TopcowRegion(_variant(half, true), _variant(half, found), matches and not _swapped(half, pred))


def _variant(half: _Half, graph: _Graph) -> Variant:
    return tuple(part in graph.vessels or part in graph.contacts for part in half.parts)


def _neighbours(vessel: CowVessel, graph: _Graph) -> set[tuple[int, int]]:
    return {pair for pair in graph.contacts if vessel in pair}


def _swapped(half: _Half, labels: Labels) -> bool:
    """Whether left lies right of right, by the median of X."""
    for right, left in half.sides:
        places = [np.nonzero(labels == vessel)[2] for vessel in (right, left)]
        if all(place.size for place in places):
            return bool(np.median(places[1]) < np.median(places[0]))
    return False


# ------------------------------------------------------------------------------------------------------ summing up


def _f1(detections: Counter[Detection]) -> float:
    wrong = detections["FP"] + detections["FN"]
    return 2 * detections["TP"] / (2 * detections["TP"] + wrong) if detections["TP"] or wrong else 0.0


def _sum_up(regions: list[TopcowRegion]) -> TopcowRegionSummary:
    return TopcowRegionSummary(
        variant_accuracy=_balanced(regions, lambda region: region.prediction == region.reference),
        topology_match=_balanced(regions, lambda region: region.topology_matches),
    )


def _balanced(regions: list[TopcowRegion], right: Callable[[TopcowRegion], bool]) -> float:
    by_variant: dict[Variant, list[bool]] = defaultdict(list)
    for region in regions:
        by_variant[region.reference].append(right(region))
    return float(np.mean([np.mean(rights) for rights in by_variant.values()]))
