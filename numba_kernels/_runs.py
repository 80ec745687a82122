"""Components of a label map as *runs*: stretches of equal label along the last axis.

Runs, not voxels, are united: there are far fewer of them. Where they begin, end and touch is found for 64 voxels at a
time, in one word. Words of all rows lie one after the other; an empty word on either side of each row and an empty row
behind the last one stand for "outside", so that neighbours need no test for the border.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bits import count_ones, trailing_zeros
from numba_kernels._checks import as_label_map, neighbour_rank
from numba_kernels._jit import inlined, kernel
from numba_kernels._vector import bits_of_others, equal_bits

__all__ = ["Runs", "find_runs", "paint"]

_NONE, _ONE, _LAST, _ALL = np.uint64(0), np.uint64(1), np.uint64(63), np.uint64(2**64 - 1)

_STRIP = 8  # voxels: a vector register of int32

Words = NDArray[np.uint64]


class Runs(NamedTuple):
    """All runs of a label map in memory order."""

    spans: NDArray[np.int64]  # (runs, 2): first voxel, voxel after the last one, both counted in C order
    numbers: NDArray[np.int32]  # (runs,): component 1..total, numbered by their first voxels
    total: int


def find_runs(labels: NDArray[Any], connectivity: int | None, *, as_mask: bool = False) -> Runs:
    """List the runs of a label map, or of the mask of all its labels, and the component that each belongs to."""
    labels = as_label_map(labels)
    rank = neighbour_rank(labels.ndim, connectivity)
    if labels.size == 0:
        return Runs(np.empty((0, 2), np.int64), np.empty(0, np.int32), 0)
    shape = (1,) * (3 - labels.ndim) + labels.shape
    rows = _as_rows(labels)
    stride = (shape[2] + 63) // 64 + 1
    bits = np.zeros((len(rows) + 1) * stride + 1, np.uint64)
    one_class = _pack(rows.reshape(-1), shape[2], stride, bits) or as_mask
    values = np.empty(0, np.uint8) if one_class else _pad(rows, bits.size, stride)
    starts, ends, ids, busy = _index_runs(bits, values)
    numbers = np.arange(ids[-1], dtype=np.int32)
    _unite(busy, (bits, values, starts, ends, ids), numbers, (shape[0], shape[1], stride), rank)
    count = _number(numbers)
    return Runs(_list_spans(busy, starts, ends, numbers.size, stride, shape[2]), numbers, int(count))


def _as_rows(labels: NDArray[Any]) -> NDArray[Any]:
    """Rows of uint8 or int32. Whether labels are equal, and whether they are 0, is all that counts."""
    native = np.require(labels, labels.dtype.newbyteorder("="), ["C", "A", "W"])
    rows = native.reshape(-1, labels.shape[-1])
    if rows.itemsize == 1:
        return rows.view(np.uint8)
    limits = np.iinfo(np.int32)
    if rows.itemsize == 8 and (rows.max() > limits.max or rows.min() < limits.min):
        _, ranks = np.unique(rows, return_inverse=True)
        return np.where(rows == 0, 0, ranks.reshape(rows.shape) + 1).astype(np.int32)
    return rows.view(np.int32) if rows.itemsize == 4 else rows.astype(np.int32)


@kernel
def _pack(line: NDArray[Any], width: int, stride: int, bits: Words) -> bool:
    """Set one bit for each voxel that is not 0; tell whether all of them have the same label."""
    label = line[0] ^ line[0]
    others = _NONE
    for row in range(line.size // width):
        for w in range(stride - 1):
            first = row * width + 64 * w
            word = bits_of_others(line, first, min(64, width - 64 * w), label ^ label)
            bits[1 + row * stride + w] = word
            if word != _NONE:
                label = line[first + trailing_zeros(word)] if label == 0 else label
                others |= word & bits_of_others(line, first, 64, label)
    return others == _NONE


def _pad(rows: NDArray[Any], words: int, stride: int) -> NDArray[Any]:
    """Labels laid out as the bits are, 64 to a word."""
    values = np.zeros(64 * words, rows.dtype)
    values[64:].reshape(-1, 64 * stride)[:-1, : rows.shape[1]] = rows
    return values


@inlined
def _touch(bits: Words, values: NDArray[Any], here: int, there: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Which voxels of a word have their own label in the other word: at the same place, one before, one after."""
    own = bits[here]
    if values.size == 0:
        straight = bits[there]
        back = (straight << _ONE) | (bits[there - 1] >> _LAST)
        fore = (straight >> _ONE) | (bits[there + 1] << _LAST)
    else:
        straight = equal_bits(values, 64 * here, 64 * there)
        back = equal_bits(values, 64 * here, 64 * there - 1)
        fore = equal_bits(values, 64 * here, 64 * there + 1)
    return own & straight, own & back, own & fore


@kernel
def _index_runs(bits: Words, values: NDArray[Any]) -> tuple[Words, Words, NDArray[np.int64], NDArray[np.int64]]:
    """Where runs begin and end, how many began before each word, and which words are not empty."""
    starts = np.zeros_like(bits)
    ends = np.zeros_like(bits)
    ids = np.zeros(bits.size, np.int64)
    busy = np.empty(bits.size, np.int64)
    count = words = 0
    for here in range(1, bits.size - 1):
        ids[here] = count
        if bits[here] != _NONE:
            _, back, fore = _touch(bits, values, here, here)
            starts[here] = bits[here] & ~back
            ends[here] = bits[here] & ~fore
            count += count_ones(starts[here])
            busy[words] = here
            words += 1
    ids[-1] = count
    return starts, ends, ids, busy[:words]


@kernel
def _unite(
    busy: NDArray[np.int64],
    table: tuple[Words, NDArray[Any], Words, Words, NDArray[np.int64]],
    parents: NDArray[np.int32],
    shape: tuple[int, int, int],
    rank: int,
) -> None:
    """Join each run with those that it touches in rows before its own; a parent never comes after its child."""
    bits, values, starts, ends, ids = table
    depth, height, stride = shape
    nowhere = depth * height * stride + 1  # the empty row behind the last one
    for here in busy:
        row, w = (here - 1) // stride, (here - 1) % stride
        z, y = row // height, row % height
        above = here - height * stride if z > 0 else nowhere + w
        before = here - stride if y > 0 else nowhere + w
        if rank == 1:
            for there in (above, before):
                faces = _touch(bits, values, here, there)[0]
                _link(starts, ids, parents, here, there, faces, _NONE, _NONE)
        else:
            after_above = above + stride if z > 0 and y + 1 < height else nowhere + w
            before_above = above - stride if z > 0 and y > 0 else nowhere + w
            others = (above, before, after_above, before_above)
            _unite_word(bits, values, starts, ends, ids, parents, (here, rank), others)


@inlined
def _unite_word(
    bits: Words,
    values: NDArray[Any],
    starts: Words,
    ends: Words,
    ids: NDArray[np.int64],
    parents: NDArray[np.int32],
    word: tuple[int, int],
    others: tuple[int, int, int, int],
) -> None:
    """Join the runs of one word with rows above, before and diagonal, leaving out what is joined already.

    Both voxels of a contact may touch a third one, in the row above or before: then they are one component anyway.
    ``known``, ``known_back`` and ``known_fore`` mark such voxels, for contacts straight on, backward and forward.
    """
    here, rank = word
    above, before, after_above, before_above = others
    start, end = starts[here], ends[here]
    level, back, fore = _touch(bits, values, here, above)
    _link(starts, ids, parents, here, above, level, start & back & ~level, end & fore & ~level)
    known, known_back, known_fore = level | back | fore, level | back, level | fore
    if rank == 3:
        skip, skip_back, skip_fore = known, known_back, known_fore
    else:
        skip, skip_back, skip_fore = level, back, fore
    if (bits[here] & ~skip) | (start & ~skip_back) | (end & ~skip_fore) != _NONE:
        corners = _ALL if rank == 3 else _NONE
        level, back, fore = _touch(bits, values, here, before)
        backs, fores = start & back & ~level & ~skip_back, end & fore & ~level & ~skip_fore
        _link(starts, ids, parents, here, before, level & ~skip, backs, fores)
        far, far_back, far_fore = _touch(bits, values, here, after_above)
        backs, fores = corners & start & far_back & ~far & ~known_back, corners & end & far_fore & ~far & ~known_fore
        _link(starts, ids, parents, here, after_above, far & ~known, backs, fores)
        known, known_back, known_fore = (
            known | level | back | fore,
            known_back | level | back,
            known_fore | level | fore,
        )
        far, far_back, far_fore = _touch(bits, values, here, before_above)
        backs, fores = corners & start & far_back & ~far & ~known_back, corners & end & far_fore & ~far & ~known_fore
        _link(starts, ids, parents, here, before_above, far & ~known, backs, fores)


@inlined
def _link(
    starts: Words,
    ids: NDArray[np.int64],
    parents: NDArray[np.int32],
    here: int,
    there: int,
    straight: Any,
    back: Any,
    fore: Any,
) -> None:
    """Join runs of one word with runs of another where bits are set; run number = runs that began so far."""
    own, other = starts[here], starts[there]
    own_id, other_id = ids[here] - 1, ids[there] - 1
    straight &= ~(straight << _ONE) | own  # once for each stretch
    while straight != _NONE:
        so_far = _ALL >> (_LAST - np.uint64(trailing_zeros(straight)))
        straight &= straight - _ONE
        _join(parents, own_id + count_ones(own & so_far), other_id + count_ones(other & so_far))
    while back != _NONE:
        so_far = _ALL >> (_LAST - np.uint64(trailing_zeros(back)))
        back &= back - _ONE
        _join(parents, own_id + count_ones(own & so_far), other_id + count_ones(other & (so_far >> _ONE)))
    while fore != _NONE:
        so_far = _ALL >> (_LAST - np.uint64(trailing_zeros(fore)))
        fore &= fore - _ONE
        _join(parents, own_id + count_ones(own & so_far), other_id + count_ones(other & so_far) + 1)


@inlined
def _join(parents: NDArray[np.int32], i: int, j: int) -> None:
    a, b = parents[i], parents[j]
    if a != b:
        while parents[a] != a:
            parents[a] = parents[parents[a]]
            a = parents[a]
        while parents[b] != b:
            parents[b] = parents[parents[b]]
            b = parents[b]
        parents[a] = parents[b] = parents[i] = parents[j] = min(a, b)


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
def _list_spans(
    busy: NDArray[np.int64], starts: Words, ends: Words, count: int, stride: int, width: int
) -> NDArray[np.int64]:
    """Table of runs; within a row the n-th start belongs to the n-th end."""
    spans = np.empty((count, 2), np.int64)
    first = last = 0
    for here in busy:
        origin = (here - 1) // stride * width + (here - 1) % stride * 64
        start, end = starts[here], ends[here]
        while start != _NONE:
            spans[first, 0] = origin + trailing_zeros(start)
            start &= start - _ONE
            first += 1
        while end != _NONE:
            spans[last, 1] = origin + trailing_zeros(end) + 1
            end &= end - _ONE
            last += 1
    return spans


@kernel
def paint(spans: NDArray[np.int64], values: NDArray[Any], line: NDArray[Any]) -> None:
    """Write the value of each run to its voxels; the runs in memory order, the line all 0 before.

    Most runs are short, and a loop of unknown length costs more than what it writes. So whole strips are written, and
    where the last one went too far, a strip of 0 follows. Runs to come are not there yet.
    """
    for k in range(values.size):
        start, stop = np.uint64(spans[k, 0]), np.uint64(spans[k, 1])
        if spans[k, 1] + 2 * _STRIP > line.size:
            line[start:stop] = values[k]
            continue
        while start < stop:
            for t in range(np.uint64(_STRIP)):
                line[start + t] = values[k]
            start += np.uint64(_STRIP)
        for t in range(np.uint64(_STRIP)):
            line[stop + t] = 0
