"""Where vessels branch, and whether they branch at the same places in the prediction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from nnunet_imbal.metrics._masks import Mask, check_pair, check_spacing
from nnunet_imbal.metrics.detection import f1_score, share
from numba_kernels import component_stats, skeletonize

__all__ = ["JunctionMatch", "junctions", "match_junctions"]

Points = NDArray[np.float64]
_BRANCHES = 3


@dataclass(frozen=True, eq=False)
class JunctionMatch:
    """Result of `match_junctions`: voxel indices, float64 ``(n, axes)``.

    Attributes:
        found: True branchings with a predicted one of their own nearby.
        missed: True branchings without.
        invented: Predicted branchings that belong to no true one.
    """

    found: Points
    missed: Points
    invented: Points

    @property
    def recall(self) -> float:
        """Found / true branchings; ``nan`` without true ones."""
        return share(len(self.found), len(self.found) + len(self.missed))

    @property
    def precision(self) -> float:
        """Found / predicted branchings; ``nan`` without predicted ones."""
        return share(len(self.found), len(self.found) + len(self.invented))

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision: 0 to 1; ``nan`` without any branching."""
        return f1_score(self.recall, self.precision)


def junctions(mask: Mask) -> Points:
    """Find the branchings of a vessel tree.

    A branching is a group of touching voxels of the centre line that three or more ways leave. A diagonal way counts
    only where the line does not also lead round the corner. Bumps of a rough wall grow short side branches, hence
    branchings that no anatomist would draw: smooth such masks first.

    Args:
        mask: Voxels of the vessels, bool, ``(Y, X)`` or ``(Z, Y, X)``.

    Returns:
        Centre of each branching as a voxel index, float64 ``(n, axes)``, in scan order; ``n`` = 0 without any.

    Raises:
        ValueError: The mask is not bool, or there are not 2 or 3 axes.

    Example:
        >>> cross = np.zeros((9, 9), bool)
        >>> cross[4], cross[:, 4] = True, True
        >>> junctions(cross)
        array([[4., 4.]])
    """
    if mask.dtype != bool:
        raise ValueError(f"expected a bool mask, got {mask.dtype}; compare labels first: array == 1")
    line = skeletonize(mask)
    crossings = np.zeros_like(line)
    voxels = np.argwhere(line)
    crossings[tuple(voxels[_ways(line, voxels) >= _BRANCHES].T)] = True
    return component_stats(crossings).centroids


def match_junctions(pred: Mask, ref: Mask, spacing: Sequence[float], tolerance_mm: float) -> JunctionMatch:
    """Ask branching by branching whether the prediction branches there too.

    As many pairs as possible are formed of one true and one predicted branching at most ``tolerance_mm`` apart; each
    belongs to one pair at most.

    Args:
        pred: Predicted vessels, bool, ``(Y, X)`` or ``(Z, Y, X)``.
        ref: True vessels, bool, same shape.
        spacing: mm per voxel along each axis.
        tolerance_mm: Farthest that two branchings of a pair may lie apart, in mm; two voxels are a good start.

    Returns:
        Found, missed and invented branchings, with recall, precision and F1.

    Raises:
        ValueError: The shapes differ, a mask is not bool, there are not 2 or 3 axes, there is not one positive
            spacing per axis, or the tolerance is negative or not finite.

    Example:
        >>> cross = np.zeros((9, 9), bool)
        >>> cross[4], cross[:, 4] = True, True
        >>> line = cross & (np.arange(9) == 4)
        >>> match_junctions(line, cross, spacing=(1, 1), tolerance_mm=2).missed
        array([[4., 4.]])

    Source:
        Our reconstruction of what coronary and vessel studies count as bifurcation recall.
    """
    check_pair(pred, ref)
    step = check_spacing(spacing, ref.shape)
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"tolerance {tolerance_mm} mm: expected a number of mm, 0 or more")
    found, true = junctions(pred), junctions(ref)
    partner = _pair_up(true * step, found * step, tolerance_mm)
    invented = np.delete(found, partner[partner >= 0], axis=0)
    return JunctionMatch(true[partner >= 0], true[partner < 0], invented)


def _ways(line: Mask, voxels: NDArray[np.intp]) -> NDArray[np.intp]:
    """How many ways lead on from each voxel; two ways that meet again at once are one."""
    padded = np.pad(line, 1)

    def lies_at(step: tuple[int, ...]) -> Mask:
        return padded[tuple((voxels + 1 + step).T)]

    ways = np.zeros(len(voxels), np.intp)
    for step in product((-1, 0, 1), repeat=line.ndim):
        if any(step):
            corners = set(product(*({0, s} for s in step))) - {step, (0,) * line.ndim}
            around = np.logical_or.reduce([np.zeros(len(voxels), bool), *map(lies_at, corners)])
            ways += lies_at(step) & ~around
    return ways


def _pair_up(points: Points, others: Points, distance: float) -> NDArray[np.intp]:
    """Index of each point's partner, -1 for none."""
    if not len(points) or not len(others):
        return np.full(len(points), -1)
    near = KDTree(points).query_ball_tree(KDTree(others), distance * (1 + 1e-6))
    starts = np.cumsum([0, *map(len, near)])
    columns = np.concatenate([np.asarray(row, np.intp) for row in near])
    graph = csr_matrix((np.ones(len(columns), bool), columns, starts), shape=(len(points), len(others)))
    return np.asarray(maximum_bipartite_matching(graph, perm_type="column"))
