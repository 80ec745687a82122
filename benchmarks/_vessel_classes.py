"""Patches of artificial vessels, with exactly as many classes as asked for."""

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.phantoms import VesselPhantom

__all__ = ["vessel_patch", "with_classes"]

Labels = NDArray[np.uint8]


def vessel_patch(shape: tuple[int, int, int], index: int, classes: int | None = None) -> Labels:
    """Circle of Willis number ``index``, as much of it as fits around its middle, shape (Z, Y, X).

    ``classes`` None keeps the names of the phantom, some of which may be missing.
    """
    labels = VesselPhantom().training_case(0, index).label.T
    middle = np.argwhere(labels > 0).mean(0).round().astype(int)
    room = max(shape)
    box = tuple(slice(at + room - n // 2, at + room - n // 2 + n) for at, n in zip(middle, shape, strict=True))
    patch = np.pad(labels, room)[box]
    return patch if classes is None else with_classes(patch, classes)


def with_classes(labels: Labels, classes: int) -> Labels:
    """Give a label map classes 1 to ``classes``: too many share names in turn, too few are cut at their middle."""
    _, places = np.unique(labels, return_inverse=True)
    result = places.reshape(labels.shape).astype(np.uint8)
    while result.max() < classes:
        _cut_largest(result)
    return np.where(result > 0, (result - 1) % classes + 1, 0).astype(np.uint8)


def _cut_largest(labels: Labels) -> None:
    """Make the upper half of the largest class, along its longest axis, a new class."""
    largest = int(np.bincount(labels.ravel(), minlength=2)[1:].argmax()) + 1
    places = np.argwhere(labels == largest)
    if len(places) < 2:
        raise ValueError(f"the patch of {labels.shape} voxels holds too few vessels to cut them; use a larger one")
    axis = int(np.ptp(places, axis=0).argmax())
    upper = places[np.argsort(places[:, axis], kind="stable")][len(places) // 2 :]
    labels[tuple(upper.T)] = labels.max() + 1
