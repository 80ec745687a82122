"""clDice: is the centre line of each vessel covered, whatever its calibre."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nnunet_imbal.metrics._masks import Mask, check_pair
from nnunet_imbal.metrics.detection import f1_score, share
from numba_kernels import skeletonize

__all__ = ["ClDice", "cldice"]


@dataclass(frozen=True)
class ClDice:
    """Result of `cldice`.

    Attributes:
        precision: Share of the predicted centre line that lies inside the true vessel, 0 to 1; ``nan`` without one.
        sensitivity: Share of the true centre line that lies inside the predicted vessel, 0 to 1; ``nan`` without one.
    """

    precision: float
    sensitivity: float

    @property
    def score(self) -> float:
        """Harmonic mean of the two: 0 to 1; 0 if one mask is empty, ``nan`` if both are."""
        return f1_score(self.sensitivity, self.precision)


def cldice(pred: Mask, ref: Mask, *, compat: Literal["skimage-0.26"] | None = None) -> ClDice:
    """Ask how much of the vessels' centre lines was found, so that a thin branch counts as much as a thick trunk.

    ``precision = |S(P)∩R| / |S(P)|``, ``sensitivity = |S(R)∩P| / |S(R)|``, ``clDice = 2 precision sensitivity /
    (precision + sensitivity)``, where S is the centre line, one voxel thin. A gap of one voxel costs as much in a
    capillary as in an aorta; a wall that is one voxel off costs nothing. Skeletons of hard masks, not the soft ones
    of the loss.

    Args:
        pred: Predicted voxels of one class, or of all vessels together (``labels > 0``), bool, ``(Y, X)`` or
            ``(Z, Y, X)``.
        ref: True voxels, bool, same shape.
        compat: "skimage-0.26" for the centre lines of scikit-image (``method="lee"``), which lose objects of even
            thickness: for comparisons only.

    Returns:
        Precision, sensitivity and their harmonic mean ``score``; voxels are counted, spacing does not matter.

    Raises:
        ValueError: The shapes differ, a mask is not bool, or there are not 2 or 3 axes.

    Example:
        >>> truth = np.zeros((5, 9), bool)
        >>> truth[1:4, 1:8] = True
        >>> found = truth.copy()
        >>> found[:, 4] = False
        >>> cldice(found, truth)
        ClDice(precision=1.0, sensitivity=0.8333333333333334)

    Source:
        Shit et al., CVPR 2021, arXiv 2003.07311, published. The centre line is that of
        `numba_kernels.skeletonize`; another thinning moves it by a voxel and the score by some hundredths, and so
        does cutting both masks at an odd index, as even and odd voxels are thinned in turn.
    """
    check_pair(pred, ref)
    return ClDice(_covered(pred, ref, compat), _covered(ref, pred, compat))


def _covered(vessel: Mask, other: Mask, compat: Literal["skimage-0.26"] | None) -> float:
    """Share of the centre line of one mask that lies inside the other."""
    line = skeletonize(vessel, compat=compat)
    return share(int(np.count_nonzero(line & other)), int(np.count_nonzero(line)))
