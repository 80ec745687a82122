"""The TopCoW part of an evaluation: the challenge's scores of each patient and of all, as JSON-ready dictionaries."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.io import Volume
from nnunet_imbal.metrics import CowVessel, TopcowRegion, TopcowScores, VesselScores, topcow_scores, topcow_summary

__all__ = ["CowClasses", "patient_entry", "patients_entry", "score_patient", "topcow_classes", "topcow_tables"]

Json = dict[str, Any]
_NAMES = dict(
    zip(
        CowVessel,
        "BA R-PCA L-PCA R-ICA R-MCA L-ICA L-MCA R-Pcom L-Pcom Acom R-ACA L-ACA 3rd-A2".split(),  # noqa: SIM905
        strict=True,
    )
)
_SCORES = ("dice", "cldice", "b0_error", "hd95_mm")
_HALVES = ("anterior", "posterior")
_LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}


@dataclass(frozen=True)
class CowClasses:
    """Which classes of a dataset are which vessels.

    Attributes:
        values: Label value -> vessel.
        names: Vessel -> name of its class; TopCoW's own name where the dataset has no such class.
    """

    values: dict[int, CowVessel]
    names: dict[CowVessel, str]


def topcow_classes(classes: Mapping[str, Sequence[int]]) -> CowClasses:
    """Recognise TopCoW's vessels by the names of the classes, or by their numbers where classes have no names.

    Capitals and signs do not matter: ``R-Pcom``, ``r_pcom`` and ``RPCOM`` are the same.

    Raises:
        ConfigError: A class is no vessel of TopCoW, or two classes are the same one or share a label.
    """
    known = {_letters(name): vessel for vessel, name in _NAMES.items()} | {str(v.value): v for v in CowVessel}
    found = {name: known.get(_letters(name)) for name in classes}
    unknown = [name for name, vessel in found.items() if vessel is None]
    if unknown:
        raise ConfigError(
            f"TopCoW's scores need TopCoW's vessels, but one class is {unknown[0]!r}; dataset.json must name them "
            f"{', '.join(_NAMES.values())}"
        )
    names = {vessel: name for name, vessel in found.items() if vessel is not None}
    values = {value: vessel for vessel, name in names.items() for value in classes[name]}
    if len(values) < sum(map(len, classes.values())):
        raise ConfigError(
            f"TopCoW's scores need a class of its own for each vessel; of {', '.join(classes)}, two are the same "
            f"vessel or share a label"
        )
    return CowClasses(values, _NAMES | names)


def score_patient(
    pred: NDArray[Any], ref: NDArray[Any], volume: Volume, values: Mapping[int, CowVessel]
) -> TopcowScores:
    """Scores of one patient, however the grid of ``volume`` lies: axes and sides are those of its header."""
    table = np.zeros(max(values) + 1, np.uint8)
    table[list(values)] = list(values.values())
    axes = np.eye(4)
    axes[:3, :3] = np.reshape(volume.direction, (3, 3))
    order = nibabel.orientations.io_orientation(axes)
    found, truth = (nibabel.orientations.apply_orientation(table[labels].T, order).T for labels in (pred, ref))
    spacing = np.empty(3)
    spacing[order[:, 0].astype(int)] = volume.spacing[::-1]
    return topcow_scores(found, truth, spacing[::-1].tolist())


def patient_entry(scores: TopcowScores, names: Mapping[CowVessel, str]) -> Json:
    """Scores of one patient under the names of the dataset's classes."""
    return {
        **{score: _vessels_entry(getattr(scores, score), names) for score in _SCORES},
        "detection": {names[vessel]: verdict for vessel, verdict in scores.detection.items()},
        **{half: _region_entry(getattr(scores, half)) for half in _HALVES},
    }


def patients_entry(patients: Sequence[TopcowScores], names: Mapping[CowVessel, str]) -> Json:
    """What the challenge ranks by, and means for each vessel over the patients who have it in truth or prediction."""
    summary = topcow_summary(patients)
    ranking = {score: getattr(summary, score) for score in _SCORES} | {"detection_f1": summary.mean_detection_f1}
    for half in _HALVES:
        ranking |= {f"{half}_{name}": value for name, value in asdict(getattr(summary, half)).items()}
    return {
        "ranking": ranking,
        "vessels": {names[vessel]: _mean_of_vessel(patients, vessel) for vessel in CowVessel},
        "merged": {score: float(np.mean([getattr(p, score).merged for p in patients])) for score in _SCORES},
        "detection_f1": {names[vessel]: value for vessel, value in summary.detection_f1.items()},
    }


def topcow_tables(entry: Json) -> list[Table]:
    """The same for the terminal."""
    ranking = entry["ranking"]
    means = Table(
        "", "Dice", "clDice", "pieces\noff by", "HD95\nmm", "F1", title="TopCoW", title_justify="left", **_LOOK
    )
    for name, row in entry["vessels"].items():
        if row["patients"]:
            means.add_row(name, *(_text(row[score]) for score in _SCORES), _text(entry["detection_f1"].get(name)))
    means.add_row("all as one", *(_text(entry["merged"][score]) for score in _SCORES), "")
    means.add_row("as ranked", *(_text(ranking[score]) for score in (*_SCORES, "detection_f1")), style="bold")
    halves = Table("half of the circle", "variant\nrecognised", "topology\nmatches", **_LOOK)
    for half, words in zip(_HALVES, ("front", "back"), strict=True):
        halves.add_row(words, *(_text(ranking[f"{half}_{score}"]) for score in ("variant_accuracy", "topology_match")))
    return [means, halves]


def _letters(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _vessels_entry(scores: VesselScores, names: Mapping[CowVessel, str]) -> Json:
    vessels = {names[vessel]: score for vessel, score in scores.vessels.items()}
    return {"vessels": vessels, "mean": scores.mean, "merged": scores.merged}


def _region_entry(region: TopcowRegion) -> Json:
    return {
        "reference": list(region.reference),
        "prediction": list(region.prediction),
        "variant_matches": region.reference == region.prediction,
        "topology_matches": region.topology_matches,
    }


def _mean_of_vessel(patients: Sequence[TopcowScores], vessel: CowVessel) -> Json:
    having = [patient for patient in patients if vessel in patient.dice.vessels]
    means = {s: float(np.mean([getattr(p, s).vessels[vessel] for p in having])) if having else None for s in _SCORES}
    return {**means, "patients": len(having)}


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
