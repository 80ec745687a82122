"""One contingency table of predicted and true components: everything that matching needs, and no masks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.metrics._masks import Box, Mask, bounding_box, check_pair, grow_box, join_boxes
from numba_kernels import component_stats, connected_components

__all__ = ["Components", "Overlaps", "count_overlaps", "find_components", "tabulate", "union_score"]

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Components:
    """The components of a mask, numbered from 1 in scan order.

    Attributes:
        map: Number of the component of each voxel, int32; 0 = background.
        sizes: Voxels of each, ``(K + 1,)``; entry 0 is 0.
        boxes: First index and index after the last along each axis, ``(K + 1, ndim, 2)``; entry 0 is empty.
    """

    map: NDArray[np.int32]
    sizes: Counts
    boxes: Counts

    @property
    def count(self) -> int:
        """Number of components K."""
        return len(self.sizes) - 1

    def crop(self, numbers: NDArray[np.int64] | list[int], voxels: int = 0) -> Box:
        """Box around some of them, ``voxels`` wider on all sides."""
        return grow_box(join_boxes(self.boxes[numbers]), voxels, self.map.shape)


def find_components(mask: Mask, connectivity: int | None = None) -> Components:
    """Number and measure the components of a mask."""
    stats = component_stats(mask, connectivity)
    sizes = np.concatenate([np.zeros(1, np.int64), stats.sizes])
    boxes = np.concatenate([np.zeros((1, mask.ndim, 2), np.int64), stats.boxes])
    return Components(connected_components(mask, connectivity)[0], sizes, boxes)


@dataclass(frozen=True, eq=False)
class Overlaps:
    """How many voxels each predicted component shares with each true one.

    Attributes:
        pred: Components of the prediction, in the box around both masks.
        ref: Components of the truth, in the same box.
        pred_ids: Predicted component of each pair that shares a voxel, ascending.
        ref_ids: True component of each pair, ascending for each predicted one.
        voxels: Common voxels of each pair.
    """

    pred: Components
    ref: Components
    pred_ids: Counts
    ref_ids: Counts
    voxels: Counts

    def scores(self, metric: str) -> NDArray[np.float64]:
        """Score of each pair, "iou" or "dsc"."""
        return union_score(self.voxels, self.pred.sizes[self.pred_ids], self.ref.sizes[self.ref_ids], metric)

    def common(self) -> dict[tuple[int, int], int]:
        """Common voxels of each predicted and true component that share any."""
        pairs = zip(self.pred_ids.tolist(), self.ref_ids.tolist(), strict=True)
        return dict(zip(pairs, self.voxels.tolist(), strict=True))


def count_overlaps(pred: Mask, ref: Mask, connectivity: int | None = None) -> Overlaps:
    """Tabulate the components of two masks.

    Raises:
        ValueError: The shapes differ, a mask is not bool, or the connectivity does not exist.
    """
    check_pair(pred, ref)
    box = bounding_box(pred | ref)
    pred, ref = np.ascontiguousarray(pred[box]), np.ascontiguousarray(ref[box])
    found, truth = find_components(pred, connectivity), find_components(ref, connectivity)
    where = np.flatnonzero(pred & ref)
    pred_ids, ref_ids, voxels = tabulate(found.map.ravel()[where], truth.map.ravel()[where], truth.count + 1)
    return Overlaps(found, truth, pred_ids, ref_ids, voxels)


def tabulate(rows: NDArray[np.int32], columns: NDArray[np.int32], width: int) -> tuple[Counts, Counts, Counts]:
    """Rows, columns and numbers of the cells that occur, in scan order; ``width`` exceeds all columns."""
    cells, voxels = np.unique(rows.astype(np.int64) * width + columns, return_counts=True)
    return cells // width, cells % width, voxels


def union_score(voxels: Any, pred_size: Any, ref_size: Any, metric: str) -> Any:
    """IoU or Dice from the common voxels and the sizes, numbers or arrays."""
    return voxels / (pred_size + ref_size - voxels) if metric == "iou" else 2 * voxels / (pred_size + ref_size)
