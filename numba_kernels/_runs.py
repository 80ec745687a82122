"""Components of a label map as *runs*: stretches of equal label along the last axis.

Runs, not voxels, are united: there are far fewer of them. Where they begin, end and touch is found for 64 voxels at a
time, in one word. An empty word follows each row, an empty row each plane, and an empty plane comes first: they stand
for "outside", so that neighbours need no test for the border. Only words that hold voxels are visited.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bits import count_ones, trailing_zeros
from numba_kernels._checks import as_label_map, neighbour_rank
from numba_kernels._jit import inlined, kernel
from numba_kernels._vector import bits_of_others, equal_bits

__all__ = ["Runs", "Words", "find_runs", "list_spans", "paint"]

_NONE, _ONE, _LAST, _ALL = np.uint64(0), np.uint64(1), np.uint64(63), np.uint64(2**64 - 1)
_TOP = np.uint64(2**63)

_MARGIN = 64  # voxels before and behind the labels, so that all words and what lies beside them can be read
_STRIP = 8  # voxels: a vector register of int32

Bits = NDArray[np.uint64]
Pair = tuple[int, int]  # counted in words and in voxels: where a word is, or how far away


class Words(NamedTuple):
    """A label map, 64 voxels to a word."""

    busy: NDArray[np.int64]  # (words, 2): where the words that hold voxels are, and their first voxels
    bits: Bits  # voxels that are not background
    starts: Bits  # first voxels of runs; as all below, only known in busy words and beside them
    ends: Bits  # last voxels of runs
    ids: NDArray[np.int32]  # how many runs began before


class Runs(NamedTuple):
    """All runs of a label map in memory order."""

    words: Words
    numbers: NDArray[np.int32]  # (runs,): component 1..total, numbered by their first voxels
    total: int


def find_runs(labels: NDArray[Any], connectivity: int | None, *, as_mask: bool = False) -> Runs:
    """List the runs of a label map, or of the mask of all its labels, and the component that each belongs to."""
    labels = as_label_map(labels)
    rank = neighbour_rank(labels.ndim, connectivity)
    depth, height, width = (1,) * (3 - labels.ndim) + labels.shape
    shape = depth, height, width
    line = _as_line(labels)
    bits = np.zeros((depth + 1) * _strides(shape)[1] + 1, np.uint64)
    busy = np.empty((bits.size, 2), np.int64)
    count, one_class = _pack(line, shape, bits, busy) if line.size else (0, True)
    classes = None if one_class or as_mask else np.pad(line, _MARGIN)
    words = Words(busy[:count], bits, np.empty_like(bits), np.empty_like(bits), np.empty(bits.size, np.int32))
    numbers = np.arange(_index_runs(classes, words), dtype=np.int32)
    _unite(classes, words, numbers.view(np.uint32), shape, rank)
    return Runs(words, numbers, int(_number(numbers)))


def _as_line(labels: NDArray[Any]) -> NDArray[Any]:
    """Voxels as uint8 or int32. Whether labels are equal, and whether they are 0, is all that counts."""
    line = np.require(labels, labels.dtype.newbyteorder("="), ["C", "A", "W"]).reshape(-1)
    if line.itemsize == 1:
        return line.view(np.uint8)
    limits = np.iinfo(np.int32)
    if line.itemsize == 8 and line.size and (line.max() > limits.max or line.min() < limits.min):
        _, ranks = np.unique(line, return_inverse=True)
        return np.where(line == 0, 0, ranks + 1).astype(np.int32)
    return line.view(np.int32) if line.itemsize == 4 else line.astype(np.int32)


@kernel
def _strides(shape: tuple[int, int, int]) -> tuple[int, int]:
    """How many words lie between rows and between planes."""
    row = (shape[2] + 63) // 64 + 1
    return row, (shape[1] + 1) * row


@kernel
def _pack(line: NDArray[Any], shape: tuple[int, int, int], bits: Bits, busy: NDArray[np.int64]) -> tuple[int, bool]:
    """Set one bit for each voxel that is not 0; count busy words, and tell whether all voxels have the same label."""
    depth, height, width = shape
    row, plane = _strides(shape)
    background = label = line[0] ^ line[0]
    others = _NONE
    count = voxel = 0
    for z in range(depth):
        for y in range(height):
            here = 1 + (z + 1) * plane + (y + 1) * row
            for w in range(row - 1):
                first = voxel + 64 * w
                word = bits_of_others(line, first, min(64, width - 64 * w), background)
                if word != _NONE:
                    bits[here + w] = word
                    busy[count] = here + w, first
                    count += 1
                    label = line[first + trailing_zeros(word)] if label == background else label
                    others |= word & bits_of_others(line, first, 64, label)
            voxel += width
    return count, others == _NONE


@inlined
def _touch(line: NDArray[Any] | None, bits: Bits, place: Pair, step: Pair) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Which voxels of a word have their label also a step before, there and one voxel to the left or right."""
    here, there = place[0], place[0] - step[0]
    straight = bits[here] & bits[there]
    back = bits[here] & ((bits[there] << _ONE) | (bits[there - 1] >> _LAST))
    fore = bits[here] & ((bits[there] >> _ONE) | (bits[there + 1] << _LAST))
    if line is not None:
        i, j = _MARGIN + place[1], _MARGIN + max(place[1] - step[1], 0)  # what lies before all rows is no voxel
        straight &= equal_bits(line, i, j)
        back &= equal_bits(line, i, j - 1)
        fore &= equal_bits(line, i, j + 1)
    return straight, back, fore


@kernel
def _index_runs(line: NDArray[Any] | None, words: Words) -> int:
    """Find where runs begin and end, and count them."""
    busy, bits, starts, ends, ids = words
    count = 0
    for k in range(len(busy)):
        here = busy[k, 0]
        _, back, fore = _touch(line, bits, (here, busy[k, 1]), (0, 0))
        if bits[here - 1] == _NONE:
            starts[here - 1], ids[here - 1] = _NONE, count
        starts[here], ends[here], ids[here] = bits[here] & ~back, bits[here] & ~fore, count
        count += count_ones(starts[here])
        if bits[here + 1] == _NONE:
            starts[here + 1], ids[here + 1] = _NONE, count
    return count


@kernel
def _unite(
    line: NDArray[Any] | None, words: Words, parents: NDArray[np.uint32], shape: tuple[int, int, int], rank: int
) -> None:
    """Join each run with those that it touches in rows before its own; a parent never comes after its child."""
    busy, bits, starts, ends, ids = words
    row, plane = _strides(shape)
    width = shape[2]
    area = width * shape[1]
    steps = np.array([[plane, area], [plane - row, area - width], [row, width], [plane + row, area + width]])
    for k in range(len(busy)):
        _unite_word(line, bits, (starts, ends), ids, parents, (busy[k, 0], busy[k, 1]), steps, rank)


@inlined
def _unite_word(
    line: NDArray[Any] | None,
    bits: Bits,
    limits: tuple[Bits, Bits],
    ids: NDArray[np.int32],
    parents: NDArray[np.uint32],
    place: Pair,
    steps: NDArray[np.int64],
    rank: int,
) -> None:
    """Join the runs of one word with the rows above, after above, before and before above.

    A contact is left out if a third voxel, in the row above or before, touches both: then they are joined already.
    """
    starts, ends = limits
    here = place[0]
    start, end = starts[here], ends[here]
    corners = _ALL if rank == 3 else _NONE
    level = back = fore = _NONE  # which voxels have a neighbour in the rows above and before
    for side in range(0, 4, 2 if rank == 1 else 1):
        diagonal = _ALL if side & 1 else _NONE
        new = ~(level | (back | fore) & (corners | diagonal))
        new_start, new_end = start & ~(back | level & corners), end & ~(fore | level & corners)
        if bits[here] & new | new_start | new_end == _NONE:
            continue
        step = steps[side, 0], steps[side, 1]
        straight, left, right = _touch(line, bits, place, step)
        if straight | left | right == _NONE:
            continue
        slanted = corners | ~diagonal if rank > 1 else _NONE
        backs, fores = slanted & left & ~straight & new_start, slanted & right & ~straight & new_end
        _link(starts, ids, parents, here, here - step[0], straight & new, backs, fores)
        if rank > 1 and side & 1 == 0:
            level, back, fore = level | straight, back | left, fore | right


@inlined
def _link(
    starts: Bits,
    ids: NDArray[np.int32],
    parents: NDArray[np.uint32],
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
def _join(parents: NDArray[np.uint32], i: int, j: int) -> None:
    own, other = np.uint64(i), np.uint64(j)  # unsigned: the compiler need not look for negative indices
    a, b = parents[own], parents[other]
    if a != b:
        while parents[a] != a:
            parents[a] = parents[parents[a]]
            a = parents[a]
        while parents[b] != b:
            parents[b] = parents[parents[b]]
            b = parents[b]
        parents[a] = parents[b] = parents[own] = parents[other] = min(a, b)


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
def list_spans(runs: Runs) -> NDArray[np.int64]:
    """Give each run's first voxel and the voxel after its last one, both counted in C order, ``(runs, 2)``.

    Within a row the n-th start belongs to the n-th end.
    """
    busy, _, starts, ends, _ = runs.words
    spans = np.empty((runs.numbers.size, 2), np.int64)
    first = last = 0
    for k in range(len(busy)):
        here, origin = busy[k, 0], busy[k, 1]
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
def paint(words: Words, values: NDArray[Any], line: NDArray[Any]) -> None:
    """Write the value of each run to its voxels; the line is all 0 before.

    Most stretches are short, and a loop of unknown length costs more than what it writes. So whole strips are written,
    and where the last one went too far, a strip of 0 follows. Stretches to come are not there yet.
    """
    busy, bits, starts, ends, ids = words
    for k in range(len(busy)):
        here, origin = busy[k, 0], busy[k, 1]
        goes_on = bits[here] & ~starts[here] & _ONE
        start, end = starts[here] | goes_on, ends[here] | bits[here] & _TOP
        run = ids[here] - int(goes_on)
        while start != _NONE:
            first, stop = np.uint64(origin + trailing_zeros(start)), np.uint64(origin + trailing_zeros(end) + 1)
            value = values[run]
            if origin + 64 + 2 * _STRIP > line.size:
                line[first:stop] = value
            else:
                while first < stop:
                    for t in range(np.uint64(_STRIP)):
                        line[first + t] = value
                    first += np.uint64(_STRIP)
                for t in range(np.uint64(_STRIP)):
                    line[stop + t] = 0
            start &= start - _ONE
            end &= end - _ONE
            run += 1
