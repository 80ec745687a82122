"""Brains with synthesised contrast, and the patches that a training draws from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _synthetic_contrast import STRUCTURES, draw_contrast, merged, read_labels, synthesise
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CLASSES", "TEST", "TRAINING", "Case", "Patches", "dice_per_class", "load_cases", "split"]

CLASSES = ("background", *STRUCTURES)
TRAINING, TEST = tuple(range(1, 11)), tuple(range(11, 15))
_FOREGROUND_SHARE = 2 / 3  # so many patches have a voxel of a class, drawn uniformly, in their middle


@dataclass(frozen=True)
class Case:
    """One brain at 2 mm.

    Attributes:
        number: Number of the label map, 1 to 14.
        image: Grey values and three channels of position, float32, shape (4, Z, Y, X).
        label: Class of each voxel, int64, shape (Z, Y, X).
    """

    number: int
    image: Tensor
    label: Tensor


def load_cases(data: Path, cache: Path, seed: int) -> dict[int, Case]:
    """Return all 14 brains in the contrast of ``seed``; they are made once and kept in ``cache``."""
    cache.mkdir(parents=True, exist_ok=True)
    return {number: _load(data, cache, seed, number) for number in (*TRAINING, *TEST)}


def split(seed: int, labelled: int) -> tuple[list[int], list[int]]:
    """Return which training cases keep their labels, and which do not."""
    order = np.random.default_rng([seed, 1]).permutation(TRAINING).tolist()
    return sorted(order[:labelled]), sorted(order[labelled:])


class Patches:
    """Patches of some cases, in an order that depends on nothing but ``seed`` and ``stream``.

    Args:
        cases: From which to draw, each as often as the others.
        patch: Voxels along each axis.
        seed: Seed of the run.
        stream: Tells two sources of the same run apart.
        foreground: Whether two patches of three are centred on a class, drawn uniformly; needs labels.
    """

    def __init__(self, cases: Sequence[Case], patch: int, seed: int, stream: int, *, foreground: bool) -> None:
        self.cases, self.patch, self.foreground = cases, patch, foreground
        self.rng = np.random.default_rng([seed, 2, stream])
        self.places = [_places(case) for case in cases] if foreground else []

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return image (1, 4, P, P, P) and label (1, 1, P, P, P) of the next patch, mirrored at random."""
        index = int(self.rng.integers(len(self.cases)))
        case = self.cases[index]
        size = np.array(case.label.shape)
        middle = self.rng.integers(size)
        if self.foreground and self.rng.random() < _FOREGROUND_SHARE:
            choices = self.places[index]
            places = choices[int(self.rng.integers(len(choices)))]
            middle = places[int(self.rng.integers(len(places)))]
        start = np.clip(middle - self.patch // 2, 0, size - self.patch)
        box = tuple(slice(first, first + self.patch) for first in start.tolist())
        image, label = case.image[(slice(None), *box)], case.label[box]
        if self.rng.random() < 0.5:  # both sides share a class, and the position is measured from the middle
            image, label = image.flip(-1), label.flip(-1)
        return image[None], label[None, None]


def dice_per_class(prediction: Tensor, label: Tensor) -> dict[str, float | None]:
    """Return Dice of each structure; None where neither side has it."""
    classes = len(CLASSES)
    table = torch.bincount((label * classes + prediction).flatten(), minlength=classes**2).view(classes, classes)
    overlap, total = table.diagonal(), table.sum(0) + table.sum(1)
    dice = (2 * overlap / total).tolist()
    return {name: dice[n] if total[n] else None for n, name in enumerate(CLASSES) if n}


def _load(data: Path, cache: Path, seed: int, number: int) -> Case:
    path = cache / f"seed{seed}_{number:02d}.npz"
    if not path.is_file():
        labels = read_labels(data / f"training_seg_{number:02d}.nii.gz")
        rng = np.random.default_rng([seed, 0, number])
        image = synthesise(rng, labels, draw_contrast(np.random.default_rng([seed, 0])))
        partial = path.with_suffix(".part.npz")
        np.savez_compressed(partial, image=image, label=merged(labels))
        partial.rename(path)
    with np.load(path) as stored:
        image, label = stored["image"], stored["label"]
    channels = np.stack([image, *_position(image.shape)])
    return Case(number, torch.from_numpy(channels), torch.from_numpy(label.astype(np.int64)))


def _position(shape: tuple[int, ...]) -> list[NDArray[np.float32]]:
    """Height, depth and distance from the middle, so that a patch knows where it lies; each from -1 to 1."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    return [z, y, 2 * np.abs(x) - 1]


def _places(case: Case) -> list[NDArray[np.int64]]:
    """Voxels of each structure that the case has."""
    label = case.label.numpy()
    return [np.argwhere(label == number) for number in np.unique(label) if number]
