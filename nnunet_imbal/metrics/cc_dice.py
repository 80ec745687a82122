"""CC-Dice: every lesion counts the same, however small."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.metrics._masks import Mask, bounding_box, check_pair
from numba_kernels import connected_components, nearest_component

__all__ = ["CCDice", "cc_dice"]


@dataclass(frozen=True, eq=False)
class CCDice:
    """Result of `cc_dice`.

    Attributes:
        components: Dice of each lesion inside its own cell, 0 to 1, float64 ``(K,)``, lesions in scan order.
        predicted: Whether anything was predicted.
    """

    components: NDArray[np.float64]
    predicted: bool

    def mean(self, *, ignore_empty: bool = True) -> float:
        """Mean over the lesions of the patient.

        Args:
            ignore_empty: Without a lesion the mean is not defined, ``nan``. False: then 1 if nothing was predicted,
                else 0, the rule of the package CCMetrics.
        """
        if len(self.components):
            return float(self.components.mean())
        return math.nan if ignore_empty else float(not self.predicted)


def cc_dice(pred: Mask, ref: Mask, spacing: Sequence[float] | None = None, connectivity: int | None = None) -> CCDice:
    """Measure the Dice of each lesion among the voxels that are nearer to it than to any other lesion.

    ``CC-Dice_i = 2 |P∩R∩V_i| / (|P∩V_i| + |R∩V_i|)`` with the cell ``V_i`` of lesion i. A missed lesion scores 0; a
    false positive lowers the score of the nearest lesion.

    Args:
        pred: Predicted voxels, bool, ``(Y, X)`` or ``(Z, Y, X)``.
        ref: True voxels, bool, same shape.
        spacing: mm per voxel along each axis. Default: 1 mm, as in CCMetrics, whatever the true spacing is.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D make one lesion. Default: all neighbours.

    Returns:
        The Dice of each lesion; no entry without lesions.

    Raises:
        ValueError: The shapes differ, a mask is not bool, the connectivity does not exist, or there is not one
            positive spacing per axis.

    Example:
        >>> truth, found = np.zeros((2, 1, 16), bool)
        >>> truth[:, [1, 2, 3, 4, 9, 12, 13]] = found[:, [1, 2, 3, 6, 13, 14]] = True
        >>> cc_dice(found, truth).components
        array([0.75, 0.  , 0.5 ])

    Source:
        Jaus et al., AAAI 2025, arXiv 2410.18684, published. A voxel that is equally near to several lesions belongs
        to the one with the first nearest voxel in scan order; CCMetrics leaves this to scipy.
    """
    check_pair(pred, ref)
    box = bounding_box(pred | ref)
    pred, ref = pred[box], ref[box]
    lesions, count = connected_components(ref, connectivity)
    cells = nearest_component(lesions, spacing)
    return CCDice(dice_in_cells(pred, ref, cells, count), bool(pred.any()))


def dice_in_cells(pred: Mask, ref: Mask, cells: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """Dice in each of the cells 1..count."""
    found, truth, both = (np.bincount(cells[mask], minlength=count + 1)[1:] for mask in (pred, ref, pred & ref))
    return np.asarray(2 * both / (found + truth))
