"""From probabilities to a label map: what the channels mean, and where the decision is made."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.errors import ConfigError, DataError, LabelError
from nnunet_imbal.evaluation import DatasetLabels, read_dataset_labels
from nnunet_imbal.metrics._masks import Mask, voxels_for
from numba_kernels import remove_small_components

__all__ = ["Channels", "ClassPoint", "decide", "read_channels", "reference_mask", "score_maps"]


@dataclass(frozen=True)
class ClassPoint:
    """Where the decision for one class is made; the defaults are those of stock nnU-Net.

    Attributes:
        threshold: Above it a voxel belongs to the class, between 0 and 1. Below 0.5 finds more, above 0.5 less.
        min_volume_mm3: Components smaller than this are removed.

    Raises:
        ConfigError: A number is out of range.
    """

    threshold: float = 0.5
    min_volume_mm3: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold {self.threshold}: expected a number between 0 and 1, neither included")
        if not (math.isfinite(self.min_volume_mm3) and self.min_volume_mm3 >= 0):
            raise ConfigError(f"smallest volume {self.min_volume_mm3} mm³: expected a number, 0 or more")


@dataclass(frozen=True)
class Channels:
    """What the channels of nnU-Net's probabilities mean.

    Attributes:
        members: Name of a class or region -> the label values it unites, in the order of the channels.
        painted: Label value that each of them paints; with regions the later ones paint over the earlier ones.
        regions: Overlapping regions, one channel each, instead of exclusive classes behind a channel of background.
        ignore: Label of the voxels that nobody annotated, or None.
    """

    members: Mapping[str, tuple[int, ...]]
    painted: tuple[int, ...]
    regions: bool = False
    ignore: int | None = None

    @property
    def count(self) -> int:
        """Number of channels."""
        return len(self.members) + (not self.regions)


def read_channels(dataset_json: str | Path) -> Channels:
    """Read from ``dataset.json`` what the channels mean, as nnU-Net does.

    Raises:
        DataError: The file is missing or is not JSON.
        LabelError: Labels are not 1, 2, 3, ..., or regions come without ``regions_class_order``.
    """
    labels = read_dataset_labels(dataset_json)
    if any(len(values) > 1 for values in labels.classes.values()):
        return Channels(labels.classes, _regions_class_order(labels), regions=True, ignore=labels.ignore)
    members = dict(sorted(labels.classes.items(), key=lambda item: item[1]))
    painted = tuple(values[0] for values in members.values())
    if painted != tuple(range(1, len(painted) + 1)):
        raise LabelError(f"{dataset_json} declares the labels {painted}; nnU-Net expects 1, 2, 3 and so on")
    return Channels(members, painted, ignore=labels.ignore)


def decide(
    probs: NDArray[Any], channels: Channels, points: Mapping[str, ClassPoint], spacing: Sequence[float]
) -> NDArray[Any]:
    """Turn probabilities into a label map at an operating point.

    Classes: each voxel takes the class with the highest ``p_c w_c``, where ``w_c = (1 - t_c) / t_c`` and the
    background has weight 1; with one class ``t`` is thus the plain threshold. Regions: those above their thresholds
    are painted in nnU-Net's order. Components (all neighbours) that are too small become background, of regions:
    before they are painted. With all thresholds 0.5 and volumes 0 this is nnU-Net's own decision, voxel by voxel.

    Args:
        probs: Probabilities ``(C, Z, Y, X)``, float, on the grid of the image.
        channels: What the channels mean.
        points: Name -> where to decide; classes that are not named are decided as nnU-Net does.
        spacing: mm per voxel along Z, Y, X.

    Returns:
        Label map ``(Z, Y, X)``, uint8, or uint16 if a label exceeds 255.

    Raises:
        ConfigError: A name is unknown.
        DataError: The number of channels is wrong.

    Example:
        >>> one_class = Channels({"lesion": (1,)}, (1,))
        >>> lesion = np.array([[[0.1, 0.4, 0.1, 0.4, 0.7]]])
        >>> decide(np.stack([1 - lesion, lesion]), one_class, {"lesion": ClassPoint(0.3, 2.0)}, (1, 1, 1))
        array([[[0, 0, 0, 1, 1]]], dtype=uint8)
    """
    if unknown := set(points) - set(channels.members):
        raise ConfigError(f"no class {', '.join(sorted(unknown))}; expected {', '.join(channels.members)}")
    if len(probs) != channels.count:
        raise DataError(f"probabilities have {len(probs)} channels, the dataset needs {channels.count}")
    where = [points.get(name, ClassPoint()) for name in channels.members]
    least = [voxels_for(point.min_volume_mm3, spacing, probs.shape[1:]) for point in where]
    labels = np.zeros(probs.shape[1:], np.uint8 if max(channels.painted) < 256 else np.uint16)
    winner = None if channels.regions else _weighted_argmax(probs, [point.threshold for point in where])
    for i, value in enumerate(channels.painted):
        mask = probs[i] > where[i].threshold if winner is None else winner == value
        labels[remove_small_components(mask, least[i]) if least[i] > 1 else mask] = value
    return labels


def score_maps(probs: NDArray[Any], channels: Channels) -> list[NDArray[Any]]:
    """One map per class whose values above t are the class, as long as the other classes are decided at 0.5.

    Regions: the probability itself. Classes: ``p_c / (p_c + max of the others)``, which exceeds t exactly where
    ``p_c (1 - t) / t`` exceeds all others. With one class this is its probability.
    """
    if channels.regions:
        return list(probs)
    winner, best, second = probs.argmax(axis=0), probs.max(axis=0), np.partition(probs, -2, axis=0)[-2]
    scores = []
    for value in channels.painted:
        others = np.where(winner == value, second, best)
        scores.append(probs[value] / (probs[value] + others))
    return scores


def _weighted_argmax(probs: NDArray[Any], thresholds: Sequence[float]) -> NDArray[np.intp]:
    weights = np.array([1, *((1 - t) / t for t in thresholds)], probs.dtype)
    weighted = probs if (weights == 1).all() else probs * weights[:, None, None, None]
    return weighted.argmax(axis=0)


def reference_mask(labels: NDArray[Any], values: Sequence[int]) -> Mask:
    """Voxels that belong to a class or region."""
    return labels == values[0] if len(values) == 1 else np.isin(labels, values)


def _regions_class_order(labels: DatasetLabels) -> tuple[int, ...]:
    try:
        order = json.loads(labels.source.read_text(encoding="utf-8"))["regions_class_order"]
        order = tuple(int(value) for value in order)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelError(f"{labels.source} has regions, but no list of labels regions_class_order") from error
    if len(order) != len(labels.classes):
        raise LabelError(f"{labels.source}: {len(labels.classes)} regions need as many labels, got {list(order)}")
    return order
