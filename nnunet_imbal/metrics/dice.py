"""Dice: how much prediction and truth overlap."""

import math

from nnunet_imbal.metrics._masks import Mask, check_pair

__all__ = ["dice"]


def dice(pred: Mask, ref: Mask) -> float:
    """Overlap of prediction and truth: ``2 |P∩R| / (|P| + |R|)``.

    Args:
        pred: Predicted voxels, bool.
        ref: True voxels, bool, same shape.

    Returns:
        0 (no common voxel) to 1 (identical); 0 if one of them is empty, ``nan`` if both are.

    Raises:
        ValueError: The shapes differ or a mask is not bool.

    Example:
        >>> import numpy as np
        >>> dice(np.array([[True, True]]), np.array([[True, False]]))
        0.6666666666666666
    """
    check_pair(pred, ref)
    total = int(pred.sum()) + int(ref.sum())
    return 2 * int((pred & ref).sum()) / total if total else math.nan
