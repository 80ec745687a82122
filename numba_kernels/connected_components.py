"""Connected components of label maps in 2-D and 3-D, all classes in one pass.

A *run* is a stretch of equal label along the last axis. Runs, not voxels, are united: there are far fewer of them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels._checks import as_label_map
from numba_kernels._jit import kernel

__all__ = ["connected_components"]

# How many coordinates may differ by one between two neighbours, per dimension and connectivity.
_RANK = {2: {4: 1, 8: 2}, 3: {6: 1, 18: 2, 26: 3}}

START, STOP, VALUE = 0, 1, 2  # columns of the run table


def connected_components(labels: NDArray[Any], connectivity: int | None = None) -> tuple[NDArray[np.int32], int]:
    """Number the separate pieces (lesions, organs, vessels) of a label map.

    Two voxels belong to one component if a chain of neighbouring voxels of the same non-zero label joins them, so
    touching lesions of different classes stay apart. Components are numbered 1..N in the order of their first voxel
    (last axis fastest); for a binary mask this is the numbering of ``scipy.ndimage.label``.

    Args:
        labels: Label map ``(Y, X)`` or ``(Z, Y, X)``, bool or any integer dtype, any memory order; 0 is background.
        connectivity: 4 or 8 neighbours in 2-D, 6, 18 or 26 in 3-D. Default: all neighbours (8 or 26).

    Returns:
        Component numbers, int32 of the same shape with 0 for background, and their count N. Without foreground
        the map is all zero and N is 0.

    Raises:
        TypeError: ``labels`` is neither bool nor integer.
        ValueError: ``labels`` is neither 2-D nor 3-D, or ``connectivity`` does not exist in that dimension.

    Example:
        >>> connected_components(np.array([[1, 0, 2], [0, 1, 2]]), connectivity=8)
        (array([[1, 0, 2],
               [0, 1, 2]], dtype=int32), 2)

    Source:
        Run-based union-find after He, Chao and Suzuki, "A run-based two-scan labeling algorithm", IEEE Trans. Image
        Process. 17 (2008), https://doi.org/10.1109/TIP.2008.919369.
    """
    labels = as_label_map(labels)
    rank = _neighbour_rank(labels, connectivity)
    components = np.zeros(labels.shape, np.int32)
    if labels.size == 0:
        return components, 0
    width = labels.shape[-1]
    rows = _as_signed(labels).reshape(-1, width)
    offsets = _count_runs(rows)
    runs = _list_runs(rows, offsets)
    parents = _unite(runs, offsets, labels.shape[-2], rank)
    count = _number(parents)
    _paint(runs, offsets, parents, components.reshape(-1, width))
    return components, int(count)


def _neighbour_rank(labels: NDArray[Any], connectivity: int | None) -> int:
    ranks = _RANK[labels.ndim]
    if connectivity is None:
        return labels.ndim
    if connectivity not in ranks:
        raise ValueError(f"connectivity in {labels.ndim}-D must be one of {sorted(ranks)}, got {connectivity}")
    return ranks[connectivity]


def _as_signed(labels: NDArray[Any]) -> NDArray[Any]:
    """Native, contiguous, writable and signed: few dtypes to compile for. Equality of labels is all that counts."""
    native = np.require(labels, labels.dtype.newbyteorder("="), ["C", "A", "W"])
    return native.view(f"i{native.itemsize}")


@kernel
def _count_runs(rows: NDArray[Any]) -> NDArray[np.int64]:
    """Offsets: the runs of row r are offsets[r]..offsets[r+1]-1."""
    offsets = np.zeros(rows.shape[0] + 1, np.int64)
    for r in range(rows.shape[0]):
        row = rows[r]
        count = np.int64(row[0] != 0)
        for x in range(1, row.size):
            count += (row[x] != 0) & (row[x] != row[x - 1])
        offsets[r + 1] = offsets[r] + count
    return offsets


@kernel
def _list_runs(rows: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Table (runs, 3): first column, column after the last one, label."""
    runs = np.empty((offsets[-1], 3), np.int64)
    for r in range(rows.shape[0]):
        if offsets[r] < offsets[r + 1]:
            _list_row(rows[r], runs, offsets[r])
    return runs


@kernel
def _list_row(row: NDArray[Any], runs: NDArray[np.int64], k: int) -> None:
    previous = np.int64(0)
    for x in range(row.size):
        value = np.int64(row[x])
        if value == previous:
            continue
        if previous != 0:
            runs[k, STOP] = x
            k += 1
        if value != 0:
            runs[k, START] = x
            runs[k, VALUE] = value
        previous = value
    if previous != 0:
        runs[k, STOP] = row.size


@kernel
def _unite(runs: NDArray[np.int64], offsets: NDArray[np.int64], height: int, rank: int) -> NDArray[np.int32]:
    """Union-find forest over the runs; a parent never comes after its child."""
    parents = np.arange(runs.shape[0]).astype(np.int32)
    for row in range(offsets.size - 1):
        z = row // height
        y = row - z * height
        for dz, dy in ((0, -1), (-1, -1), (-1, 0), (-1, 1)):  # rows before this one
            reach = rank - abs(dz) - abs(dy)  # steps left along the row
            if reach >= 0 and z + dz >= 0 and 0 <= y + dy < height:
                other = row + dz * height + dy
                _unite_rows(
                    runs, parents, offsets[row], offsets[row + 1], offsets[other], offsets[other + 1], min(reach, 1)
                )
    return parents


@kernel
def _unite_rows(
    runs: NDArray[np.int64], parents: NDArray[np.int32], i: int, i_end: int, first: int, j_end: int, reach: int
) -> None:
    """Unite runs i..i_end-1 of one row with the equal runs that they touch among first..j_end-1 of another row."""
    while i < i_end and first < j_end:
        start, stop = runs[i, START] - reach, runs[i, STOP] + reach
        while first < j_end and runs[first, STOP] <= start:
            first += 1
        j = first  # kept apart: a run may touch several of the other row, and the next run the last of them again
        while j < j_end and runs[j, START] < stop:
            if runs[j, VALUE] == runs[i, VALUE] and parents[i] != parents[j]:
                _join(parents, i, j)
            j += 1
        i += 1


@kernel
def _join(parents: NDArray[np.int32], i: int, j: int) -> None:
    a, b = _root(parents, i), _root(parents, j)
    root = min(a, b)
    parents[a] = parents[b] = parents[i] = parents[j] = root


@kernel
def _root(parents: NDArray[np.int32], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@kernel
def _number(parents: NDArray[np.int32]) -> int:
    """Replace each parent by the component number; parents come first, so theirs is known."""
    count = 0
    for i in range(parents.size):
        if parents[i] == i:
            count += 1
            parents[i] = count
        else:
            parents[i] = parents[parents[i]]
    return count


@kernel
def _paint(
    runs: NDArray[np.int64], offsets: NDArray[np.int64], numbers: NDArray[np.int32], out: NDArray[np.int32]
) -> None:
    for r in range(out.shape[0]):
        for k in range(offsets[r], offsets[r + 1]):
            out[r, runs[k, START] : runs[k, STOP]] = numbers[k]
