"""What is measured of one run: per test case Dice, lesions, panoptic quality and topology; counts for FROC curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _short_nnunet import Workspace
from numpy.typing import NDArray

from nnunet_imbal.evaluation import EvaluationSettings, evaluate_folders
from nnunet_imbal.io import read_label
from nnunet_imbal.metrics import froc_counts
from numba_kernels import connected_components

__all__ = ["THRESHOLDS", "VOLUMES_MM3", "case_counts", "case_scores", "score_run", "size_edges"]

THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
VOLUMES_MM3 = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def score_run(workspace: Workspace, prediction: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the predicted cases of one run.

    Returns:
        ``cases``: name -> class -> numbers, see `case_scores`. With probabilities also ``froc``: name -> counts, see
        `case_counts`, with ``thresholds``, ``volumes_mm3`` and ``size_edges_mm3``.
    """
    reference, topology = workspace.raw / "labelsTs", EvaluationSettings(topology=settings["topology"])
    path = workspace.folder / "evaluations" / f"{prediction.name}.json"
    result = evaluate_folders(prediction, reference, path, settings=topology)
    scores = {case["case"]: {name: case_scores(entry) for name, entry in case["classes"].items()}
              for case in result["cases"]}  # fmt: skip
    if not settings["probabilities"]:
        return {"cases": scores}
    edges = size_edges(reference)
    counts = {}
    for probabilities in sorted(prediction.glob("*.npz")):
        label = read_label(reference / f"{probabilities.stem}.nii.gz")
        with np.load(probabilities) as stored:
            counts[probabilities.stem] = case_counts(stored["probabilities"][1], label.array == 1, label.spacing, edges)
    grid = {"thresholds": THRESHOLDS, "volumes_mm3": VOLUMES_MM3, "size_edges_mm3": edges}
    return {"cases": scores, "froc": counts, **grid}


def case_scores(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one class in one case that the pages use."""
    lesions = entry["lesions"]
    return {
        "dice": entry["dice"],
        "pq": entry["panoptic"]["pq"],
        "lesions": len(lesions),
        "found": sum(lesion["detected"] for lesion in lesions),
        "false_positives": entry["false_positive_count"],
        **({key: entry["topology"][key] for key in ("cldice", "b0_error")} if entry["topology"] else {}),
    }


def size_edges(reference: Path) -> tuple[float, float]:
    """Volumes in mm³ that part the lesions of the test cases into thirds of equal number; calibration cases aside."""
    volumes: list[float] = []
    for path in sorted(reference.glob("test*.nii.gz")):
        label = read_label(path)
        sizes = np.bincount(connected_components(label.array == 1)[0].ravel())[1:]
        volumes += (sizes * np.prod(label.spacing)).tolist()
    low, high = np.quantile(volumes, [1 / 3, 2 / 3])
    return float(low), float(high)


def case_counts(
    probs: NDArray[Any], truth: NDArray[np.bool_], spacing: tuple[float, ...], edges: tuple[float, float]
) -> dict[str, Any]:
    """Counts of one case at every threshold and smallest volume.

    Returns:
        ``lesions`` of each third, ``found`` (third, threshold, volume), ``false_positives`` and ``dice`` (threshold,
        volume).
    """
    numbers, count = connected_components(truth)
    volumes = np.bincount(numbers.ravel(), minlength=count + 1) * float(np.prod(spacing))
    third = np.searchsorted(edges, volumes, side="right")
    third[0] = -1
    parts = [third[numbers] == part for part in range(3)]
    grid = {"thresholds": THRESHOLDS, "volumes_mm3": VOLUMES_MM3}
    whole = froc_counts(probs, truth, spacing, **grid)
    found = [froc_counts(probs, part, spacing, **grid).detected.tolist() for part in parts]
    return {
        "lesions": [int((third == part).sum()) for part in range(3)],
        "found": found,
        "false_positives": whole.false_positives.tolist(),
        "dice": [[None if np.isnan(value) else round(value, 4) for value in row] for row in whole.dice.tolist()],
    }
