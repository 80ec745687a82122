"""A small evaluated dataset: label maps and images on disk and the JSON that `nnunet-imbal evaluate` would write."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

SPACING = (3.0, 1.0, 1.5)  # mm per voxel in (Z, Y, X)
VOXEL_MM3 = float(np.prod(SPACING))


def write_volume(path: Path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(path))


def ball(shape, centre, radius):
    grid = np.indices(shape)
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


def describe(components, number, other):
    chosen = components == number
    voxels = int(chosen.sum())
    return {
        "id": number,
        "volume_mm3": voxels * VOXEL_MM3,
        "voxels": voxels,
        "centroid": [float(axis.mean()) for axis in np.nonzero(chosen)],
        "overlap_voxels": int((chosen & other).sum()),
        "detected": bool((chosen & other).any()),
    }


def measure(truth, prediction):
    lesions, n_lesions = ndimage.label(truth, np.ones((3, 3, 3)))
    pieces, n_pieces = ndimage.label(prediction, np.ones((3, 3, 3)))
    found = [describe(lesions, i + 1, prediction) for i in range(n_lesions)]
    predicted = [describe(pieces, i + 1, truth) for i in range(n_pieces)]
    wrong = [piece for piece in predicted if not piece["detected"]]
    total = int(truth.sum() + prediction.sum())
    return {
        "dice": 2 * int((truth & prediction).sum()) / total if total else None,
        "surface_dice": 0.9 if total else None,
        "hd95_mm": 2.0 if total else None,
        "volume_reference_mm3": float(truth.sum() * VOXEL_MM3),
        "volume_prediction_mm3": float(prediction.sum() * VOXEL_MM3),
        "lesions": found,
        "false_positives": wrong,
        "recall": sum(lesion["detected"] for lesion in found) / n_lesions if n_lesions else None,
        "precision": 1 - len(wrong) / n_pieces if n_pieces else None,
        "f1": None,
        "false_positive_count": len(wrong),
    }


def _statistics(values):
    values = [value for value in values if value is not None]
    if not values:
        return {"mean": None, "median": None, "std": None, "n": 0}
    return {
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "std": float(np.std(values)),
        "n": len(values),
    }


def summarise(name, cases):
    measured = [case["classes"][name] for case in cases]
    lesions = sorted((x for entry in measured for x in entry["lesions"]), key=lambda x: x["volume_mm3"])
    detected = sum(lesion["detected"] for lesion in lesions)
    bins = [list(part) for part in np.array_split(np.array(lesions, dtype=object), 10) if len(part)]
    return {
        **{key: _statistics([entry[key] for entry in measured]) for key in ("dice", "surface_dice", "hd95_mm")},
        "lesions": len(lesions),
        "detected": detected,
        "recall": detected / len(lesions) if lesions else None,
        "precision": 0.8,
        "f1": 0.77,
        "false_positives_per_case": float(np.mean([entry["false_positive_count"] for entry in measured])),
        "recall_by_size": [
            {
                "low_mm3": part[0]["volume_mm3"],
                "high_mm3": part[-1]["volume_mm3"],
                "lesions": len(part),
                "detected": sum(lesion["detected"] for lesion in part),
                "recall": sum(lesion["detected"] for lesion in part) / len(part),
            }
            for part in bins
        ],
    }


class EvaluatedDataset:
    """Writes cases to a folder and the evaluation file that belongs to them."""

    def __init__(self, root: Path, classes=None) -> None:
        self.root = root
        self.classes = classes or {"lesion": [1]}
        self.cases: list[dict] = []

    def add(self, truth, prediction, image=None, name=None, file=None):
        name = name or f"case_{len(self.cases) + 1:03d}"
        file = file or name
        paths = {"prediction": self.root / "predictions", "reference": self.root / "labelsTs"}
        paths = {role: folder / f"{file}.nii.gz" for role, folder in paths.items()}
        for role, labels in (("reference", truth), ("prediction", prediction)):
            write_volume(paths[role], labels.astype(np.uint8))
        if image is not None:
            write_volume(self.root / "imagesTs" / f"{file}_0000.nii.gz", image.astype(np.float32))
        self.cases.append(
            {
                "case": name,
                **{role: str(path) for role, path in paths.items()},
                "shape": list(truth.shape),
                "spacing_mm": list(SPACING),
                "classes": {
                    label: measure(np.isin(truth, values), np.isin(prediction, values))
                    for label, values in self.classes.items()
                },
            }
        )
        return self

    def as_dict(self) -> dict:
        return {
            "schema": "nnunet-imbal/evaluation/1",
            "version": "0.1.0",
            "settings": {"tolerance_mm": 1.0, "connectivity": 26},
            "prediction_folder": str(self.root / "predictions"),
            "reference_folder": str(self.root / "labelsTs"),
            "classes": self.classes,
            "cases": self.cases,
            "summary": {name: summarise(name, self.cases) for name in self.classes},
            "mean_foreground_dice": 0.7,
        }

    def save(self) -> Path:
        path = self.root / "evaluation.json"
        path.write_text(json.dumps(self.as_dict()), encoding="utf-8")
        return path


@pytest.fixture
def dataset(tmp_path):
    """Empty dataset to fill with `add`; `save` writes its evaluation file."""
    return EvaluatedDataset(tmp_path)


@pytest.fixture
def two_lesions(dataset):
    """A lesion in slices 2-6 (from 0) is found, a small one in slice 9 is missed, slice 1 has a false alarm."""
    shape = (12, 20, 24)
    truth, prediction = np.zeros(shape, bool), np.zeros(shape, bool)
    truth[2:7, 4:10, 4:10] = True
    prediction[2:7, 5:10, 4:11] = True
    truth[9, 15:17, 18:20] = True
    prediction[1, 2, 20] = True
    image = np.random.default_rng(0).normal(100, 20, shape) + 80 * truth
    return dataset.add(truth, prediction, image)


@pytest.fixture
def clinic(tmp_path):
    """Six cases of soft tissue with many lesions of very different size, in two classes, as a clinician would see."""
    generator = np.random.default_rng(7)
    clinic = EvaluatedDataset(tmp_path, {"lesion": [1], "lesion with oedema": [1, 2]})
    for _ in range(6):
        clinic.add(*_synthetic_case(generator))
    return clinic


def _synthetic_case(generator):
    shape = (40, 128, 128)
    head = ball(shape, (20, 64, 64), 1) | (
        sum(((axis - c) / r) ** 2 for axis, c, r in zip(np.indices(shape), (20, 64, 64), (22, 58, 50), strict=True))
        <= 1
    )
    truth, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for radius in generator.lognormal(0.9, 0.55, 9):
        centre = [generator.integers(low, high) for low, high in ((8, 32), (34, 94), (36, 92))]
        truth[ball(shape, centre, radius + 2)] = 2
        truth[ball(shape, centre, radius)] = 1
        if generator.random() < radius / 3:
            shifted = [c + generator.integers(-1, 2) for c in centre]
            prediction[ball(shape, shifted, radius + 1.6)] = 2
            prediction[ball(shape, shifted, radius * 0.95)] = 1
    prediction[ball(shape, (12, 50, 80), 1.5)] = 1
    tissue = ndimage.gaussian_filter(generator.normal(0, 1, shape), 3) * 60
    image = head * (90 + tissue + 45 * (truth == 2) + 90 * (truth == 1)) + generator.normal(0, 5, shape)
    return truth, prediction, ndimage.gaussian_filter(image, 0.7)
