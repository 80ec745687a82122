"""Recall from the smallest to the largest lesions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["SizeBin", "recall_by_size"]

LESIONS_PER_BIN = 4


@dataclass(frozen=True)
class SizeBin:
    """How many lesions of one size range were found; ``low`` is included, ``high`` only in the last bin."""

    low: float
    high: float
    lesions: int
    detected: int

    @property
    def recall(self) -> float:
        """Detected lesions / lesions."""
        return self.detected / self.lesions


def recall_by_size(volumes: ArrayLike, detected: ArrayLike) -> list[SizeBin]:
    """Recall from the smallest to the largest lesions, in groups of about equal number.

    The groups are deciles of the volumes; with fewer than 40 lesions there are fewer groups, of at least about
    four lesions each. Equal volumes never fall into different groups.

    Args:
        volumes: Volume of each lesion, in any one unit.
        detected: Whether it was found, bool, same length.

    Returns:
        At most ten bins, ascending; every lesion lies in exactly one. Empty without lesions.

    Raises:
        ValueError: The lengths differ or a volume is not finite.
    """
    sizes, found = np.asarray(volumes, np.float64), np.asarray(detected, bool)
    if sizes.ndim != 1 or sizes.shape != found.shape or not np.isfinite(sizes).all():
        raise ValueError(f"expected finite volumes and flags of one length, got {sizes.shape} and {found.shape}")
    if not sizes.size:
        return []
    groups = min(10, max(1, sizes.size // LESIONS_PER_BIN))
    edges = np.unique(np.quantile(sizes, np.linspace(0, 1, groups + 1)))
    which = np.searchsorted(edges[1:-1], sizes, side="right")
    counts = np.bincount(which, minlength=max(1, edges.size - 1))
    hits = np.bincount(which, found, counts.size)
    bins = zip(edges, [*edges[1:], edges[-1]], counts, hits, strict=False)
    return [SizeBin(float(low), float(high), int(n), int(k)) for low, high, n, k in bins if n]
