"""What people do without a kernel: published algorithms restated as plain loops over well-known libraries."""

from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

__all__ = [
    "blob_dice_blob_by_blob",
    "blob_dice_by_index_add",
    "cells_component_by_component",
    "contacts_by_shifts",
    "skeleton_recall_target",
    "soft_dice",
]


def cells_component_by_component(labels: NDArray[np.int32], components: range) -> NDArray[np.int32]:
    """CC-Metrics (Jaus et al. 2024): one distance transform for each component, the smallest distance wins."""
    smallest = np.full(labels.shape, np.inf)
    cells = np.zeros(labels.shape, np.int32)
    for component in components:
        distance = ndimage.distance_transform_edt(labels != component)
        nearer = distance < smallest
        smallest[nearer], cells[nearer] = distance[nearer], component
    return cells


def soft_dice(overlap: Tensor, probs: Tensor, target: Tensor) -> Tensor:
    return (2 * overlap + 1e-5) / (probs + target + 1e-5)


def blob_dice_blob_by_blob(probs: Tensor, labels: Tensor, components: range) -> Tensor:
    """Blob loss (Kofler et al. 2022) with soft Dice: each component against the background, all others masked out."""
    losses = []
    for component in components:
        own = labels == component
        masked = probs * (own | (labels == 0))
        losses.append(1 - soft_dice((masked * own).sum(), masked.sum(), own.sum()))
    return torch.stack(losses).mean()


def blob_dice_by_index_add(probs: Tensor, labels: Tensor, count: int) -> Tensor:
    """The same loss from sums for all components at once, with torch's own operators; labels are int64."""
    bins = labels.reshape(-1)
    masses = torch.zeros(count + 1).index_add(0, bins, probs.reshape(-1))
    sizes = torch.bincount(bins, minlength=count + 1)
    return (1 - soft_dice(masses[1:], masses[0] + masses[1:], sizes[1:])).mean()


def contacts_by_shifts(labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Compare the volume with itself, shifted to each of 13 neighbours."""
    pairs = np.zeros(classes**2, np.int64)
    wide = labels.astype(np.int32) * classes
    for step in product((-1, 0, 1), repeat=3):
        if step > (0, 0, 0):
            here = tuple(slice(max(-s, 0), n - max(s, 0)) for s, n in zip(step, labels.shape, strict=True))
            there = tuple(slice(max(s, 0), n - max(-s, 0)) for s, n in zip(step, labels.shape, strict=True))
            pairs += np.bincount((wide[here] + labels[there]).ravel(), minlength=classes**2)
    contacts = pairs.reshape(classes, classes)
    np.fill_diagonal(contacts, 0)
    return contacts + contacts.T


def skeleton_recall_target(labels: NDArray[Any]) -> NDArray[np.int16]:
    """Target of the Skeleton Recall loss (Kirchhoff et al. 2024): skeleton, two dilations, cut to the labels."""
    from skimage import morphology

    skeleton = morphology.skeletonize(labels > 0).astype(np.int16)
    return morphology.dilation(morphology.dilation(skeleton)) * labels.astype(np.int16)
