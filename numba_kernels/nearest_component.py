"""Which component is nearest to each voxel (Voronoi cells), and how far away it is in mm.

Nearness spreads along one axis after the other. What travels is a *key*: squared distance and, in the lowest bits, the
row it came from. Keys are whole numbers, so the smaller of two keys is the nearer voxel and, at equal distance, the
earlier one: one ``min`` decides both, for many voxels at once.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from numba_kernels._bits import add, trailing_zeros
from numba_kernels._checks import as_label_map
from numba_kernels._jit import inlined, kernel
from numba_kernels._vector import bits_of_others

__all__ = ["nearest_component"]

Cells = NDArray[np.int32]
Distance = NDArray[np.float32]
Index = NDArray[np.int64]

_LANES = 64  # lines that one search serves together
_BLOCKS = 4  # so many times _LANES voxels that are neighbours in memory are moved together
_PATIENCE = 64  # rounds of four rows each; see _sweep
_LARGEST_DENOMINATOR = 64


class _Scale(NamedTuple):
    """How distances are written as whole numbers: squared distance in mm² = unit * (key >> bits)."""

    weights: list[int]  # square of the voxel size along each axis, in units
    unit: float
    bits: int
    far: Any  # key of "nothing near yet"; its dtype is that of all keys


class _Ending(NamedTuple):
    """What the last sweep does besides: distances, and what becomes of voxels that are too far away."""

    distance: Distance  # (n, after) or, if nobody asked for it, (0, 0)
    unit: float
    too_far: Any  # first key that is farther than the limit
    nothing: int  # found there


@overload
def nearest_component(
    labels: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    return_distance: Literal[False] = False,
    return_index: Literal[False] = False,
    max_distance: float | None = None,
) -> Cells: ...


@overload
def nearest_component(
    labels: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    return_distance: Literal[True],
    return_index: Literal[False] = False,
    max_distance: float | None = None,
) -> tuple[Cells, Distance]: ...


@overload
def nearest_component(
    labels: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    return_distance: Literal[False] = False,
    return_index: Literal[True],
    max_distance: float | None = None,
) -> tuple[Cells, Index]: ...


@overload
def nearest_component(
    labels: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    return_distance: Literal[True],
    return_index: Literal[True],
    max_distance: float | None = None,
) -> tuple[Cells, Distance, Index]: ...


def nearest_component(
    labels: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    return_distance: bool = False,
    return_index: bool = False,
    max_distance: float | None = None,
) -> Any:
    """Give each voxel the label of the nearest labelled voxel: the territory ("cell") of each lesion.

    ``cells[v] = labels[argmin_{u: labels[u] != 0} ||spacing * (v - u)||``, exact Euclidean distance.
    If several labelled voxels are equally near, the first of them in memory order (lowest Z, then Y, then X) wins.
    Both hold to the letter where all spacings are whole multiples of one length (ratios such as 1:1, 3:0.8 or 5:0.75,
    with a denominator up to 64). Otherwise squared ratios of spacings are rounded once, in the ninth digit or later
    (voxels up to 20 times longer than wide, axes up to 512 voxels), and everything after that is exact again.

    Args:
        labels: Label map ``(Y, X)`` or ``(Z, Y, X)``, bool or integer within int32, any memory order; 0 = no label.
        spacing: Voxel size in mm along each axis of the array. Default: 1 mm.
        return_distance: Also return the distance to that labelled voxel.
        return_index: Also return the position of that labelled voxel.
        max_distance: Voxels farther than this many mm from every label belong to no cell. Saves time. Default: no
            limit.

    Returns:
        Cells, int32 of the same shape. With ``return_distance`` also the distance in mm, float32 in [0, inf). With
        ``return_index`` also the index of the nearest labelled voxel, int64, counted in C order
        (``numpy.unravel_index``). Where there is no cell - no label at all, or none within ``max_distance`` - these
        are 0, inf and -1.

    Raises:
        TypeError: ``labels`` is neither bool nor integer.
        ValueError: ``labels`` is neither 2-D nor 3-D or exceeds int32, ``spacing`` is not one positive finite number
            per axis, or ``max_distance`` is negative or NaN.

    Example:
        >>> nearest_component(np.array([[1, 0, 0, 0, 2]]), spacing=(1.0, 0.5), return_distance=True)
        (array([[1, 1, 1, 2, 2]], dtype=int32), array([[0. , 0.5, 1. , 0.5, 0. ]], dtype=float32))
        >>> nearest_component(np.array([[1, 0, 0, 0, 2]]), return_index=True, max_distance=1)
        (array([[1, 1, 0, 2, 2]], dtype=int32), array([[ 0,  0, -1,  4,  4]]))

    Source:
        Dimension by dimension as in Saito and Toriwaki, "New algorithms for Euclidean distance transformation of an
        n-dimensional digitized picture", Pattern Recognition 27 (1994), https://doi.org/10.1016/0031-3203(94)90133-3;
        long lines by the lower envelope of parabolas, Felzenszwalb and Huttenlocher, "Distance transforms of sampled
        functions", Theory of Computing 8 (2012), https://doi.org/10.4086/toc.2012.v008a019.
    """
    seeds = _as_int32(as_label_map(labels))
    steps = _check_spacing(spacing, seeds.ndim)
    limit = _check_max_distance(max_distance)
    volume = seeds.reshape((1,) * (3 - seeds.ndim) + seeds.shape)
    scale = _choose_scale(np.append(np.full(3 - seeds.ndim, steps.min()), steps), volume.shape)
    found, distance = _find_nearest(volume, scale, limit, _PATIENCE, return_distance, return_index)
    cells, index = _look_up(volume, found) if return_index else (found, found)
    wanted = [(cells, True), (distance, return_distance), (index, return_index)]
    results = tuple(array.reshape(seeds.shape) for array, want in wanted if want)
    return results if len(results) > 1 else results[0]


def _as_int32(labels: NDArray[Any]) -> NDArray[np.int32]:
    limits = np.iinfo(np.int32)
    wide = labels.size > 0 and not np.can_cast(labels.dtype, np.int32)
    if wide and (labels.max() > limits.max or labels.min() < limits.min):
        raise ValueError(f"labels must fit into int32, got values up to {labels.max()}; number them anew")
    # Writable, because numba compiles read-only arrays separately.
    return np.require(labels, np.int32, ["C", "A", "W"])


def _check_spacing(spacing: Sequence[float] | None, ndim: int) -> NDArray[np.float64]:
    steps = np.ones(ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if steps.shape != (ndim,) or not np.all(np.isfinite(steps) & (steps > 0)):
        raise ValueError(f"spacing must be {ndim} positive numbers (mm per voxel, in array order), got {spacing}")
    return steps


def _check_max_distance(max_distance: float | None) -> float:
    if max_distance is None:
        return float("inf")
    if not max_distance >= 0:
        raise ValueError(f"max_distance must be a number of mm >= 0, or None for no limit, got {max_distance}")
    return float(max_distance)


def _choose_scale(steps: NDArray[np.float64], shape: tuple[int, ...]) -> _Scale:
    """Short keys (int32) if they can be exact, else long ones (int64), which are twice as slow to compare."""
    bits = (max(*shape[:2], 1) - 1).bit_length()
    unit = float(steps.min())
    ratios = steps / unit
    denominators = np.arange(1, _LARGEST_DENOMINATOR + 1)
    parts = denominators[:, None] * ratios
    whole = np.all(np.abs(parts - np.rint(parts)) <= 1e-12 * parts, axis=1)
    if whole.any():
        denominator = int(denominators[whole][0])
        weights = [round(ratio * denominator) ** 2 for ratio in ratios]
        for far in (np.int32(1 << 30), np.int64(1 << 62)):
            if _fits(weights, shape, bits, far):
                return _Scale(weights, (unit / denominator) ** 2, bits, far)
    shift = 61 - bits - int(np.ceil(np.log2(np.sum((ratios * np.maximum(shape, 1)) ** 2) + 1)))
    return _Scale(
        [round(weight) for weight in np.ldexp(ratios**2, shift)],
        unit**2 / 2.0**shift,
        bits,
        np.int64(1 << 62),
    )


def _fits(weights: list[int], shape: tuple[int, ...], bits: int, far: Any) -> bool:
    """Whether the squared diagonal of the volume, with a row number behind it, stays below ``far``."""
    diagonal = sum(weight * n * n for weight, n in zip(weights, shape, strict=True))
    return (diagonal + 1) << bits <= int(far)


def _find_nearest(
    volume: NDArray[np.int32], scale: _Scale, limit: float, patience: int, measured: bool, numbered: bool
) -> tuple[NDArray[Any], Distance]:
    """Label (or number, -1 for none) of the nearest labelled voxel of each voxel, and the distance if ``measured``."""
    z, y, x = volume.shape
    lines = (1, z, y * x)
    many = numbered and volume.size > np.iinfo(np.int32).max
    far = _far_in_plane(scale, volume.shape)
    keys = np.empty(volume.shape, far.dtype)
    found = np.empty(volume.shape, np.int64 if many else np.int32)
    distance = _take_over(keys, np.float32).reshape(lines[1:]) if measured else np.empty((0, 0), np.float32)
    kinds = (scale.far.dtype, far.dtype, far.dtype)
    costs = [_tabulate_costs(*of, scale.bits) for of in zip(volume.shape, scale.weights, kinds, strict=True)]
    reach = [int(min(np.sqrt(_in_units(limit, scale) / weight), 1 << 30)) for weight in scale.weights]
    ending = _Ending(distance, scale.unit, _first_too_far(limit, scale), -1 if numbered else 0)
    steps = np.concatenate([costs[2][x:0:-1], costs[2][:x]])
    _start_rows(volume.reshape(-1), x, keys.reshape(-1), found.reshape(-1), steps, far, numbered)
    _sweep(keys, found, costs[1], scale.bits, (far, far), (reach[1], patience), ending, False)
    keys, found = keys.reshape(lines), found.reshape(lines)
    _sweep(keys, found, costs[0], scale.bits, (far, scale.far), (reach[0], patience), ending, True)
    return found, distance


def _look_up(volume: NDArray[np.int32], numbers: NDArray[Any]) -> tuple[Cells, Index]:
    cells = _take_over(numbers, np.int32)
    index = np.empty(numbers.size, np.int64)
    _name(volume.reshape(-1), numbers.reshape(-1), cells, index)
    return cells, index


def _take_over(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """Line of as many elements, in the same memory if they fit: touching new memory takes longer than writing."""
    line = array.reshape(-1)
    return line.view(dtype) if line.itemsize == np.dtype(dtype).itemsize else np.empty(line.size, dtype)


def _far_in_plane(scale: _Scale, shape: tuple[int, ...]) -> Any:
    """Before the last sweep distances lie within planes: short keys may do although the volume needs long ones."""
    short = np.int32(1 << 30)
    return short if _fits(scale.weights[1:], shape[1:], scale.bits, short) else scale.far


def _tabulate_costs(n: int, weight: int, dtype: np.dtype[Any], bits: int) -> NDArray[Any]:
    """What a step of 0, 1, 2, ... voxels adds to a key. Steps of n and more lead out of the volume."""
    steps = np.minimum(np.arange(2 * n + 1, dtype=np.int64), n)
    return ((weight * steps**2) << bits).astype(dtype)


def _in_units(limit: float, scale: _Scale) -> float:
    """Squared distance in units; a voxel at the limit up to the rounding of float32 is within."""
    return limit * limit * (1 + 1e-6) / scale.unit


def _first_too_far(limit: float, scale: _Scale) -> Any:
    """Lowest key of a voxel that belongs to no cell."""
    nowhere = int(scale.far) >> scale.bits
    farthest = _in_units(limit, scale)
    return scale.far.dtype.type(min(int(min(farthest, float(nowhere))) + 1, nowhere) << scale.bits)


@kernel
def _start_rows(
    labels: NDArray[np.int32],
    width: int,
    keys: NDArray[Any],
    found: NDArray[Any],
    costs: NDArray[Any],
    far: Any,
    numbered: bool,
) -> None:
    """Let nearness spread along the rows, where one label has no distance yet; the left one wins at equal distance.

    ``costs`` is what a step of -width, ..., -1, 0, 1, ... voxels adds, so that all voxels nearest to the same one are
    written in one go. What is found is the number of the nearest labelled voxel, or its label.
    """
    for row in range(0, labels.size, max(width, 1)):
        first, last = row, -1  # voxel whose nearest one is not known yet, labelled voxel before it
        for start in range(row, row + width, _LANES):
            some = bits_of_others(labels, start, min(_LANES, row + width - start), np.int32(0))
            while some != 0:
                seed = start + trailing_zeros(some)
                some &= some - np.uint64(1)
                if last >= 0:
                    stop = (last + seed) // 2 + 1
                    _claim(keys, found, costs, first, stop, last, last if numbered else labels[last])
                    first = stop
                last = seed
        if last >= 0:
            _claim(keys, found, costs, first, row + width, last, last if numbered else labels[last])
        else:
            keys[row : row + width] = far
            found[row : row + width] = 0


@inlined
def _claim(
    keys: NDArray[Any], found: NDArray[Any], costs: NDArray[Any], first: int, stop: int, seed: int, name: int
) -> None:
    """Write what the voxels first..stop-1 know about the labelled voxel that is nearest to all of them."""
    x, step = np.uint64(first), np.uint64(costs.size // 2 + first - seed)
    for t in range(np.uint64(stop - first)):
        keys[x + t] = costs[step + t]
        found[x + t] = name


@kernel
def _sweep(
    keys: NDArray[Any],
    found: NDArray[Any],
    costs: NDArray[Any],
    bits: int,
    fars: tuple[Any, Any],
    limits: tuple[int, int],
    ending: _Ending,
    last: bool,
) -> None:
    """Let nearness spread along the middle axis of (before, n, after), in place.

    ``fars`` are "nothing near yet" as read from ``keys`` and as used in the search, whose keys may be longer ones.
    The last sweep leaves results (see :class:`_Ending`) and no keys.

    Each voxel looks outwards along its line until no farther row can be nearer. That is quickest where labels are
    never far. Lines on which some voxel has not found its end after ``patience`` rounds are solved by the envelope
    instead, whose cost does not grow with the distance: so the whole stays linear in the number of voxels.
    """
    before, n, after = keys.shape
    heights = np.full((_BLOCKS, n + 1, _LANES), fars[1], costs.dtype)  # the last row stands for "outside"
    payload = np.empty((_BLOCKS, n, _LANES), found.dtype)
    best = np.empty((n, _LANES), costs.dtype)
    sites = np.empty((2, n + 4), np.int64)
    for b in range(before):
        for start in range(0, after, _BLOCKS * _LANES):
            count = _load(keys[b], found[b], start, heights, payload, bits, fars, sites[0, 2:])
            if count == 0 and not last:
                continue
            live = sites[:, : count + 4]
            _frame(live, n)
            for s in range(min(_BLOCKS, (after - start + _LANES - 1) // _LANES)):
                first = start + s * _LANES
                width = min(_LANES, after - first)
                if not _search(heights[s], best, width, costs, live, limits):
                    _follow_envelope(heights[s], best, width, live[0, 2 : count + 2], costs[1] >> bits, bits)
                if last:
                    _finish(best, payload[s], found[b], first, bits, ending)
                else:
                    _store(best, payload[s], keys[b], found[b], first, bits)


@kernel
def _load(
    keys: NDArray[Any],
    found: NDArray[Any],
    start: int,
    heights: NDArray[Any],
    payload: NDArray[Any],
    bits: int,
    fars: tuple[Any, Any],
    live: NDArray[np.int64],
) -> int:
    """Copy lines start... into the small blocks, with row numbers in the keys; list rows that hold a label."""
    n, after = keys.shape
    nowhere, far = fars
    count = 0
    for i in range(n):
        least = far
        for s in range(heights.shape[0]):
            first = np.uint64(start + s * _LANES)  # unsigned: no test for negative indices inside the loop
            for t in range(min(_LANES, after - start - s * _LANES)):
                key = keys[i, first + np.uint64(t)]
                key = key if key < nowhere else far
                least = min(least, key)
                heights[s, i, t] = ((key >> bits) << bits) | i
                payload[s, i, t] = found[i, first + np.uint64(t)]
        if least < far:
            live[count] = i
            count += 1
    return count


@kernel
def _frame(live: NDArray[np.int64], n: int) -> None:
    """Line 0: numbers of the rows that hold a label, line 1: where they are; two far rows on either side."""
    live[1] = live[0]
    live[0, :2] = live[0, -2:] = n
    live[1, :2] = -n
    live[1, -2:] = 2 * n


@kernel
def _search(
    heights: NDArray[Any],
    best: NDArray[Any],
    width: int,
    costs: NDArray[Any],
    live: NDArray[np.int64],
    limits: tuple[int, int],
) -> bool:
    """Find the best key for each row; False if that takes too long."""
    right = 2
    for i in range(best.shape[0]):
        while live[1, right] <= i:
            right += 1
        if not _search_row(heights, best[i], width, i, live, right, costs, limits):
            return False
    return True


@kernel
def _search_row(
    heights: NDArray[Any],
    best: NDArray[Any],
    width: int,
    i: int,
    live: NDArray[np.int64],
    right: int,
    costs: NDArray[Any],
    limits: tuple[int, int],
) -> bool:
    """Look outwards from row i, at two rows on either side a time, until all farther ones must be worse."""
    reach, patience = limits
    rows, places = live[0], live[1]
    left, last = right - 1, rows.size - 3
    worst = costs[0]
    for t in range(width):
        best[t] = heights[i, t]
        worst = max(worst, best[t])
    left -= places[left] == i
    while left > 1 or right <= last:
        distance = min(i - places[left], places[right] - i)
        if distance > reach or worst < costs[distance]:
            return True
        if patience == 0:
            return False
        a, b, c, d = rows[left], rows[left - 1], rows[right], rows[right + 1]
        cost_a, cost_b = costs[i - places[left]], costs[i - places[left - 1]]
        cost_c, cost_d = costs[places[right] - i], costs[places[right + 1] - i]
        worst = costs[0]
        for t in range(width):
            before = min(add(heights[a, t], cost_a), add(heights[b, t], cost_b))
            after = min(add(heights[c, t], cost_c), add(heights[d, t], cost_d))
            best[t] = min(best[t], min(before, after))
            worst = max(worst, best[t])
        left, right, patience = max(left - 2, 1), min(right + 2, last + 1), patience - 1
    return True


@kernel
def _follow_envelope(
    heights: NDArray[Any], best: NDArray[Any], width: int, rows: NDArray[np.int64], weight: int, bits: int
) -> None:
    """Find the same keys from the parabolas that are lowest somewhere on each line."""
    n = best.shape[0]
    sites = np.empty(rows.size, np.int64)
    firsts = np.empty(rows.size + 1, np.int64)
    for t in range(width):
        count = _build_envelope(heights[:, t], rows, weight, bits, sites, firsts)
        firsts[count] = n
        for k in range(count):
            for i in range(firsts[k], firsts[k + 1]):
                best[i, t] = heights[sites[k], t] + ((weight * (i - sites[k]) ** 2) << bits)


@kernel
def _build_envelope(
    line: NDArray[Any],
    rows: NDArray[np.int64],
    weight: int,
    bits: int,
    sites: NDArray[np.int64],
    firsts: NDArray[np.int64],
) -> int:
    """Find the parabolas ``line[q] + weight * (i - q)**2``, q in ``rows``, that are lowest somewhere.

    The k-th of them, at ``sites[k]``, is lowest at the voxels firsts[k]..firsts[k+1]-1.
    """
    n = line.size - 1
    count = 0
    for q in rows:
        first = 0
        while count > 0:
            first = _overtakes(line, weight, bits, sites[count - 1], q)
            if first > firsts[count - 1]:
                break
            count -= 1  # the last parabola is lowest nowhere any more
            first = 0
        if first < n:
            sites[count] = q
            firsts[count] = first
            count += 1
    return count


@kernel
def _overtakes(line: NDArray[Any], weight: int, bits: int, v: int, q: int) -> int:
    """First voxel where the parabola of q lies strictly below the one of v < q, so that v keeps the ties."""
    rise = int(line[q] >> bits) - int(line[v] >> bits)
    return (rise + weight * (q * q - v * v)) // (2 * weight * (q - v)) + 1


@kernel
def _store(
    best: NDArray[Any], payload: NDArray[Any], keys: NDArray[Any], found: NDArray[Any], start: int, bits: int
) -> None:
    """Write the block back, fetching from the row named in each key what lies there."""
    mask = (1 << bits) - 1
    first = np.uint64(start)
    for i in range(best.shape[0]):
        for t in range(min(_LANES, keys.shape[1] - start)):
            keys[i, first + np.uint64(t)] = best[i, t]
            found[i, first + np.uint64(t)] = payload[best[i, t] & mask, t]


@kernel
def _finish(
    best: NDArray[Any], payload: NDArray[Any], found: NDArray[Any], start: int, bits: int, ending: _Ending
) -> None:
    """Write the end results; distances may lie where the keys were, as nobody reads those of this block again."""
    distance, unit, too_far, nothing = ending
    mask = (1 << bits) - 1
    first = np.uint64(start)
    for i in range(best.shape[0]):
        for t in range(min(_LANES, found.shape[1] - start)):
            near = payload[best[i, t] & mask, t]
            found[i, first + np.uint64(t)] = near if best[i, t] < too_far else nothing
    for i in range(distance.shape[0]):
        for t in range(min(_LANES, found.shape[1] - start)):
            length = np.sqrt(np.float64(best[i, t] >> bits) * unit)
            distance[i, first + np.uint64(t)] = length if best[i, t] < too_far else np.inf


@kernel
def _name(labels: NDArray[np.int32], numbers: NDArray[Any], cells: NDArray[np.int32], index: NDArray[np.int64]) -> None:
    """Turn numbers of voxels into their labels, which may lie in the same memory, and into indices."""
    for i in range(index.size):
        number = numbers[i]
        index[i] = number
        cells[i] = labels[np.uint64(number)] if number >= 0 else 0
