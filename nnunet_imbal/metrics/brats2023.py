"""Lesion-wise Dice and HD95 by the rules of the BraTS challenges of 2023."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, find_objects, generate_binary_structure

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics._instances import Components, find_components, tabulate
from nnunet_imbal.metrics._masks import Box, Mask, bounding_box, check_pair, check_spacing, grow_box, join_boxes
from nnunet_imbal.metrics.surface_elements import surface_element_hd95
from numba_kernels import connected_components

__all__ = ["BRATS2023_RULES", "Brats2023Lesion", "Brats2023Rule", "LesionwiseBrats2023", "lesionwise_brats2023"]


@dataclass(frozen=True)
class Brats2023Rule:
    """What one task of 2023 counts as one lesion, and which lesions count.

    Attributes:
        dilation: Steps by which the truth grows (18 neighbours) before its lesions are told apart.
        volume_threshold: Lesions of at most so many mm³ leave the mean.
        penalty_mm: HD95 of a missed lesion and of a false positive.

    Raises:
        ConfigError: The dilation is below 1, or a number is negative or not finite.
    """

    dilation: int
    volume_threshold: float
    penalty_mm: float = 374.0

    def __post_init__(self) -> None:
        if self.dilation < 1:
            raise ConfigError(f"dilation {self.dilation}: expected 1 step or more")
        for name, value in (("volume_threshold", self.volume_threshold), ("penalty_mm", self.penalty_mm)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} {value}: expected a number, 0 or more")


BRATS2023_RULES: Mapping[str, Brats2023Rule] = MappingProxyType(
    {
        "GLI": Brats2023Rule(dilation=3, volume_threshold=50),
        "SSA": Brats2023Rule(dilation=3, volume_threshold=50),
        "PED": Brats2023Rule(dilation=3, volume_threshold=50),
        "MEN": Brats2023Rule(dilation=1, volume_threshold=50),
        "MET": Brats2023Rule(dilation=1, volume_threshold=2),
    }
)


@dataclass(frozen=True)
class Brats2023Lesion:
    """One lesion, perhaps of several components.

    Attributes:
        volume_mm3: Its volume before the dilation.
        dice: Dice with all predicted components that touch the dilated lesion; 0 if there is none.
        hd95_mm: HD95 with these components; infinite if there is none.
        predictions: Numbers of these components, from 1 in scan order.
    """

    volume_mm3: float
    dice: float
    hd95_mm: float
    predictions: tuple[int, ...]


@dataclass(frozen=True)
class LesionwiseBrats2023:
    """Result of `lesionwise_brats2023`.

    Attributes:
        lesions: All lesions, in scan order of the dilated truth.
        false_positives: Predicted components that touch no dilated lesion.
        rule: The rule that was applied.
    """

    lesions: tuple[Brats2023Lesion, ...]
    false_positives: int
    rule: Brats2023Rule

    @cached_property
    def counted(self) -> tuple[Brats2023Lesion, ...]:
        """The lesions above the volume threshold."""
        return tuple(lesion for lesion in self.lesions if lesion.volume_mm3 > self.rule.volume_threshold)

    @property
    def true_positives(self) -> int:
        """Counted lesions that some prediction touches."""
        return sum(bool(lesion.predictions) for lesion in self.counted)

    @property
    def false_negatives(self) -> int:
        """Counted lesions that no prediction touches."""
        return len(self.counted) - self.true_positives

    @property
    def dice(self) -> float:
        """``sum of the Dice of counted lesions / (counted lesions + false positives)``; 1 if nothing counts."""
        total = len(self.counted) + self.false_positives
        return sum(lesion.dice for lesion in self.counted) / total if total else 1.0

    @property
    def hd95_mm(self) -> float:
        """The same mean of the HD95, where misses and false positives cost the penalty; 0 if nothing counts."""
        penalty = self.rule.penalty_mm
        distances = [penalty if math.isinf(lesion.hd95_mm) else lesion.hd95_mm for lesion in self.counted]
        total = len(distances) + self.false_positives
        return (sum(distances) + penalty * self.false_positives) / total if total else 0.0


def lesionwise_brats2023(pred: Mask, ref: Mask, spacing: Sequence[float], rule: Brats2023Rule) -> LesionwiseBrats2023:
    """Score every lesion of a patient by itself, with a penalty for each false positive (BraTS 2023).

    The truth grows by ``rule.dilation`` steps; true components that then touch are one lesion. A lesion is compared,
    undilated, with all predicted components (26 neighbours, in 2-D 8) that touch it dilated, at their full extent.
    Predicted components that touch no dilated lesion are false positives, whatever their size. Small lesions leave
    the mean, but what touches them is no false positive.

    Args:
        pred: Predicted voxels, bool, ``(Y, X)`` or ``(Z, Y, X)``.
        ref: True voxels, bool, same shape.
        spacing: mm per voxel along each axis. The challenge's data have 1 mm; the dilation is in voxels.
        rule: ``BRATS2023_RULES["MET"]``, ``["GLI"]``, ``["SSA"]``, ``["PED"]``, ``["MEN"]``, or one of your own.

    Returns:
        The lesions, counts, and the lesion-wise Dice (0 to 1) and HD95 (mm). As in the challenge, Dice 1 and HD95 0
        if no lesion counts and there is no false positive - also if lesions below the threshold were missed.

    Raises:
        ValueError: The shapes differ, a mask is not bool, or there is not one positive spacing per axis.

    Example:
        >>> truth, found = np.zeros((2, 1, 1, 16), bool)
        >>> truth[..., [1, 2, 3, 4, 9, 12, 13]] = found[..., [1, 2, 3, 6, 13, 14]] = True
        >>> scores = lesionwise_brats2023(found, truth, (1, 1, 1), BRATS2023_RULES["MET"])
        >>> [lesion.predictions for lesion in scores.lesions], scores.false_positives, round(scores.dice, 6)
        ([(1,), (3,)], 1, 0.419048)

    Source:
        The challenges' evaluator rachitsaluja/BraTS-2023-Metrics (published code; described in Moawad et al., arXiv
        2306.00838), with the HD95 of `surface_element_hd95`.
    """
    check_pair(pred, ref)
    step = check_spacing(spacing, ref.shape)
    box = _box_with_margin(pred | ref, rule.dilation)
    found, grown = find_components(pred[box]), _grown_lesions(ref[box], rule.dilation)
    truth = _undilated(grown, ref[box])
    touching: dict[int, list[int]] = {number: [] for number in range(1, truth.count + 1)}
    for lesion, number in _count_pairs(grown, found.map):
        touching[lesion].append(number)
    common = _count_pairs(truth.map, found.map)
    lesions = []
    for lesion, numbers in touching.items():
        voxels = int(truth.sizes[lesion])
        overlap = sum(common.get((lesion, number), 0) for number in numbers)
        score = 2 * overlap / (voxels + int(found.sizes[numbers].sum()))
        distance = _hd95(found, numbers, truth, lesion, step.tolist())
        lesions.append(Brats2023Lesion(voxels * float(step.prod()), score, distance, tuple(numbers)))
    used = {number for numbers in touching.values() for number in numbers}
    return LesionwiseBrats2023(tuple(lesions), found.count - len(used), rule)


def _box_with_margin(mask: Mask, voxels: int) -> Box:
    """Growing needs room around the masks, as far as the image reaches."""
    box = bounding_box(mask)
    if not mask[box].size:
        return box
    return grow_box(np.array([[side.start, side.stop] for side in box]), voxels, mask.shape)


def _grown_lesions(ref: Mask, dilation: int) -> NDArray[np.int32]:
    """Number of the dilated lesion at each voxel. Components grow one by one, each in its own small box."""
    parts = find_components(ref)
    steps = generate_binary_structure(ref.ndim, min(2, ref.ndim))
    grown = np.zeros_like(ref)
    for number in range(1, parts.count + 1):
        box = parts.crop([number], dilation)
        grown[box] |= binary_dilation(parts.map[box] == number, steps, dilation)
    return connected_components(grown)[0]


def _undilated(grown: NDArray[np.int32], ref: Mask) -> Components:
    """The lesions without what the dilation added; component numbers stay those of the dilated ones."""
    lesions = np.where(ref, grown, 0)
    found = find_objects(lesions) if lesions.size else []
    boxes = [[[side.start, side.stop] for side in box] for box in found]
    sizes = np.bincount(lesions[ref], minlength=len(boxes) + 1)
    return Components(lesions, sizes, np.array([np.zeros((ref.ndim, 2)), *boxes], np.int64))


def _count_pairs(rows: NDArray[np.int32], columns: NDArray[np.int32]) -> dict[tuple[int, int], int]:
    """Common voxels of each component of one map with each of the other."""
    where = np.flatnonzero((rows > 0) & (columns > 0))
    row, column, voxels = tabulate(rows.ravel()[where], columns.ravel()[where], int(columns.max(initial=0)) + 1)
    return dict(zip(zip(row.tolist(), column.tolist(), strict=True), voxels.tolist(), strict=True))


def _hd95(found: Components, numbers: list[int], truth: Components, lesion: int, step: list[float]) -> float:
    if not numbers:
        return math.inf
    box = grow_box(join_boxes(np.concatenate([found.boxes[numbers], truth.boxes[[lesion]]])), 0, truth.map.shape)
    return surface_element_hd95(np.isin(found.map[box], numbers), truth.map[box] == lesion, step)
