from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_imbal.metrics import BettiNumbers, betti_errors, betti_numbers
from numba_kernels import euler_number


def closed_cells(mask):
    """Cells of the union of closed voxels by doubled coordinates: odd coordinates are the directions they span."""
    cells = set()
    for voxel in np.argwhere(mask).tolist():
        cells |= {tuple(2 * v + 1 + s for v, s in zip(voxel, step, strict=True)) for step in steps(mask.ndim)}
    return cells


def block_cells(mask):
    """Cells of the dual complex: blocks of 1, 2, 4 and 8 voxels that are all foreground."""
    cells = set()
    for cell in np.ndindex(*(2 * n for n in mask.shape)):
        corners = product(*([c // 2, c // 2 + 1] if c % 2 else [c // 2] for c in cell))
        if all(all(v < n for v, n in zip(voxel, mask.shape, strict=True)) and mask[voxel] for voxel in corners):
            cells.add(cell)
    return cells


def steps(ndim):
    return product((-1, 0, 1), repeat=ndim)


def faces(cell):
    for axis, coordinate in enumerate(cell):
        if coordinate % 2:
            for side in (-1, 1):
                yield (*cell[:axis], coordinate + side, *cell[axis + 1 :])


def rank(rows):
    """Rank over the field of two elements; a row is a number whose bits are its entries."""
    pivots = {}
    for row in rows:
        while row:
            top = row.bit_length()
            if top not in pivots:
                pivots[top] = row
                break
            row ^= pivots[top]
    return len(pivots)


def naive_betti(mask, cells_of):
    """Homology by linear algebra: cells of each dimension minus the ranks of the two boundary matrices."""
    cells = cells_of(mask)
    by_dimension = [[c for c in cells if sum(v % 2 for v in c) == k] for k in range(mask.ndim + 1)]
    ranks = [0]
    for k in range(1, mask.ndim + 1):
        number = {cell: 1 << i for i, cell in enumerate(by_dimension[k - 1])}
        ranks.append(rank(sum(number[face] for face in faces(cell)) for cell in by_dimension[k]))
    ranks.append(0)
    return [len(by_dimension[k]) - ranks[k] - ranks[k + 1] for k in range(mask.ndim)] + [0] * (3 - mask.ndim)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=3), st.floats(0.2, 0.95), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_equals_homology(shape, density, seed):
    mask = np.random.default_rng(seed).random(shape) < density
    few, many = (4, 8) if mask.ndim == 2 else (6, 26)
    assert betti_numbers(mask) == betti_numbers(mask, many) == tuple(naive_betti(mask, closed_cells))
    assert betti_numbers(mask, few) == tuple(naive_betti(mask, block_cells))


@given(st.integers(0, 2**32), st.sampled_from([6, 26]))
@settings(max_examples=30, deadline=None)
def test_euler_number_is_their_alternating_sum(seed, connectivity):
    mask = np.random.default_rng(seed).random((9, 10, 70)) < 0.5
    b0, b1, b2 = betti_numbers(mask, connectivity)
    assert min(b0, b1, b2) >= 0
    assert euler_number(mask, connectivity) == b0 - b1 + b2


def test_known_shapes():
    ball = np.ones((5, 5, 5), bool)
    shell, ring, frame = ball.copy(), ball.copy(), np.zeros((5, 5, 5), bool)
    shell[1:4, 1:4, 1:4] = False
    ring[:, 2, 2] = False
    frame[[0, 0, -1, -1], [0, -1, 0, -1]] = frame[[0, 0, -1, -1], :, [0, -1, 0, -1]] = True
    frame[:, [0, 0, -1, -1], [0, -1, 0, -1]] = True
    shapes = (ball, shell, ring, frame, ball & False)
    assert [betti_numbers(shape) for shape in shapes] == [(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 5, 0), (0, 0, 0)]


def test_full_image_has_no_cavity_at_its_border():
    cup = np.ones((4, 4, 4), bool)
    cup[:3, 1:3, 1:3] = False
    assert betti_numbers(cup) == (1, 0, 0)
    cup[0] = True
    assert betti_numbers(cup) == (1, 0, 1)


def test_neighbourhoods():
    diagonal = np.eye(2, dtype=bool)
    assert (betti_numbers(diagonal).b0, betti_numbers(diagonal, 4).b0) == (1, 2)
    lines = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)  # a ring for 8 neighbours, four points for 4
    assert (betti_numbers(lines), betti_numbers(lines, 4)) == ((1, 1, 0), (4, 0, 0))


def test_what_projections_hide_is_seen():
    """Betti numbers of the three maximum projections miss a piece behind others, and a cut."""
    shell = np.ones((9, 9, 9), bool)
    shell[1:-1, 1:-1, 1:-1] = False
    line = shell.copy()
    line[4, 4] = True
    cut = line.copy()
    cut[4, 4, 4] = False
    for axis in range(3):
        assert (shell.max(axis) == line.max(axis)).all()
        assert (shell.max(axis) == cut.max(axis)).all()
    assert betti_errors(cut, line).b1 == 1
    assert betti_errors(shell, line).b1 == 1
    alone = shell.copy()
    alone[4, 4, 4] = True
    assert betti_errors(alone, shell).b0 == 1


def test_errors_are_differences():
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    pieces = np.eye(3, dtype=bool)
    pieces[1, 1] = False
    empty = np.zeros((3, 3), bool)
    assert betti_errors(pieces, ring) == betti_errors(ring, pieces) == BettiNumbers(1, 1, 0)
    assert betti_errors(empty, ring) == betti_numbers(ring)
    assert betti_errors(empty, empty) == (0, 0, 0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: betti_numbers(np.zeros((3, 3, 3), bool), 18), ValueError, "6 or 26, got 18"),
        (lambda: betti_numbers(np.zeros((3, 3))), TypeError, "float64"),
        (lambda: betti_numbers(np.zeros(3, bool)), ValueError, "2-D or 3-D"),
        (lambda: betti_errors(np.zeros((3, 3), bool), np.zeros((3, 4), bool)), ValueError, "same grid"),
        (lambda: betti_errors(np.zeros((3, 3), int), np.zeros((3, 3), bool)), ValueError, "int64"),
    ],
)
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
