"""Which predicted components stand for which true one."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as connected_blocks

from nnunet_imbal.metrics._instances import Overlaps, union_score

__all__ = ["MATCHERS", "Matches", "match_greedily", "match_optimally", "match_with_merging"]

Matches = dict[int, list[int]]
Scores = NDArray[np.float64]
# among assignments of equal score the one with more pairs is better
_PER_PAIR = 1e-6


def match_greedily(table: Overlaps, metric: str, threshold: float) -> Matches:
    """One to one, best score first; of equal scores the pair with the lowest predicted, then true number."""
    matches: Matches = {}
    taken: set[int] = set()
    scores = table.scores(metric)
    for pair in np.argsort(-scores, kind="stable"):
        found, truth = int(table.pred_ids[pair]), int(table.ref_ids[pair])
        if scores[pair] >= threshold and found not in taken and truth not in matches:
            matches[truth] = [found]
            taken.add(found)
    return matches


def match_optimally(table: Overlaps, metric: str, threshold: float) -> Matches:
    """One to one, largest sum of scores (Hungarian method), for each group of touching components by itself."""
    scores = table.scores(metric)
    good = np.flatnonzero(scores >= threshold)
    size = table.pred.count + table.ref.count + 2
    nodes = table.pred_ids[good], table.pred.count + 1 + table.ref_ids[good]
    block = connected_blocks(coo_array((np.ones(len(good)), nodes), (size, size)), directed=False)[1][nodes[0]]
    matches: Matches = {}
    for pairs in np.split(good[np.argsort(block, kind="stable")], np.cumsum(np.bincount(block))[:-1]):
        matches.update(_assign(table.pred_ids[pairs], table.ref_ids[pairs], scores[pairs]))
    return matches


def match_with_merging(table: Overlaps, metric: str, threshold: float) -> Matches:
    """Greedy, but a further prediction joins a matched lesion if that raises the score of their union."""
    matches: Matches = {}
    taken: set[int] = set()
    scores, common = table.scores(metric), table.common()
    best: dict[int, float] = {}
    for pair in np.argsort(-scores, kind="stable"):
        found, truth = int(table.pred_ids[pair]), int(table.ref_ids[pair])
        if found in taken or (truth not in matches and scores[pair] < threshold):
            continue
        merged = [*matches.get(truth, []), found]
        score = float(scores[pair])
        if truth in matches:
            overlap = sum(common[each, truth] for each in merged)
            score = float(union_score(overlap, table.pred.sizes[merged].sum(), table.ref.sizes[truth], metric))
        if score > best.get(truth, -1.0):
            matches[truth], best[truth] = merged, score
            taken.add(found)
    return matches


def _assign(found: NDArray[np.int64], truth: NDArray[np.int64], scores: Scores) -> Matches:
    rows, row = np.unique(truth, return_inverse=True)
    columns, column = np.unique(found, return_inverse=True)
    gain = np.zeros((len(rows), len(columns)))
    gain[row, column] = scores + _PER_PAIR
    chosen = zip(*linear_sum_assignment(gain, maximize=True), strict=True)
    return {int(rows[i]): [int(columns[j])] for i, j in chosen if gain[i, j] > 0}


MATCHERS: dict[str, Callable[[Overlaps, str, float], Matches]] = {
    "greedy": match_greedily,
    "hungarian": match_optimally,
    "merge": match_with_merging,
}
