"""Topology of a graph of vessels, known without looking at a single voxel."""

from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nnunet_imbal.metrics.betti import BettiNumbers

__all__ = ["betti_of_graph"]


def betti_of_graph(edges: Iterable[tuple[str, str]]) -> BettiNumbers:
    """Count the pieces and loops of a graph: b1 = edges - nodes + b0. A graph has no cavities.

    Args:
        edges: First and last node of each edge.

    Returns:
        Three counts; (0, 0, 0) if there are no edges.

    Example:
        >>> betti_of_graph([("a", "b"), ("b", "c"), ("c", "a"), ("d", "e")])
        BettiNumbers(b0=2, b1=1, b2=0)
    """
    pairs = np.array(list(edges)).reshape(-1, 2)
    names, ends = np.unique(pairs, return_inverse=True)
    rows, columns = ends.reshape(-1, 2).T
    matrix = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(names), len(names)))
    pieces = int(connected_components(matrix, directed=False, return_labels=False)) if len(names) else 0
    return BettiNumbers(pieces, len(pairs) - len(names) + pieces, 0)
