"""A small evaluated dataset: label maps and images on disk and the evaluation file that belongs to them."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_imbal.evaluation import evaluate_folders

SPACING = (3.0, 1.0, 1.5)  # mm per voxel in (Z, Y, X)


def ball(shape, centre, radius):
    grid = np.indices(shape)
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


class Dataset:
    """Writes cases to a folder in nnU-Net's layout and has them evaluated."""

    def __init__(self, root: Path, classes=None, ignore=None, direction=None) -> None:
        self.root, self.amount, self.direction = root, 0, direction or np.eye(3).ravel().tolist()
        labels = {"background": 0, **(classes or {"lesion": 1})} | ({"ignore": ignore} if ignore else {})
        root.mkdir(parents=True, exist_ok=True)
        (root / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    def write(self, path: Path, array) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING[::-1])
        image.SetDirection(self.direction)
        sitk.WriteImage(image, str(path))

    def add(self, truth, prediction, image=None):
        self.amount += 1
        name = f"case_{self.amount:03d}"
        self.write(self.root / "labelsTs" / f"{name}.nii.gz", truth.astype(np.uint8))
        self.write(self.root / "predictions" / f"{name}.nii.gz", prediction.astype(np.uint8))
        if image is not None:
            self.write(self.root / "imagesTs" / f"{name}_0000.nii.gz", image.astype(np.float32))
        return self

    def save(self) -> Path:
        if not self.evaluation.exists():
            evaluate_folders(self.root / "predictions", self.root / "labelsTs", self.evaluation)
        return self.evaluation

    def evaluate_again(self) -> Path:
        self.evaluation.unlink()
        return self.save()

    def change(self, alter) -> Path:
        """Evaluate, let ``alter`` change the content of the file, and write it back."""
        content = json.loads(self.save().read_text(encoding="utf-8"))
        alter(content)
        self.evaluation.write_text(json.dumps(content), encoding="utf-8")
        return self.evaluation


@pytest.fixture
def dataset(tmp_path):
    """Empty dataset to fill with `add`; `save` writes its evaluation file."""
    return Dataset(tmp_path)


@pytest.fixture
def dataset_in():
    """Function (folder, direction) -> empty dataset whose files lie that way in the patient."""
    return Dataset


@pytest.fixture
def ignoring(tmp_path):
    """Empty dataset whose label 9 means: nobody looked here."""
    return Dataset(tmp_path, ignore=9)


@pytest.fixture
def many_classes(tmp_path):
    """15 classes; the model finds every other one."""
    values = range(1, 16)
    truth = np.zeros((2, 8, 64), np.uint8)
    for value in values:
        truth[:, 2:5, 4 * value : 4 * value + 3] = value
    prediction = np.where(truth % 2, truth, 0)
    return Dataset(tmp_path, {f"class with a name of rather a great length {v}": v for v in values}).add(
        truth, prediction
    )


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


@pytest.fixture(scope="session")
def clinic(tmp_path_factory):
    """Six cases of soft tissue with many lesions of very different size, in two classes, as a clinician would see."""
    generator = np.random.default_rng(7)
    clinic = Dataset(tmp_path_factory.mktemp("clinic"), {"lesion": 1, "lesion with oedema": [1, 2]})
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
