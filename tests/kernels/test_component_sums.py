import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels import cell_overlap, cell_overlap_backward


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    num_cells = draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    probs = rng.random(shape).astype(dtype)
    target = rng.random(shape) < 0.5
    if draw(st.booleans()):
        target = rng.random(shape).astype(dtype)
    cells = rng.integers(0, num_cells + 1, shape).astype(np.int32)
    grad = rng.standard_normal((3, num_cells + 1)).astype(dtype)
    return probs, target, cells, num_cells, grad


@given(cases())
@settings(max_examples=150, deadline=None)
def test_equals_naive_twin(naive, case):
    probs, target, cells, num_cells, grad = case
    sums = cell_overlap(probs, target, cells, num_cells)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, naive.cell_overlap(probs, target, cells, num_cells), rtol=1e-12)
    back = cell_overlap_backward(grad, target, cells)
    assert back.dtype == grad.dtype
    np.testing.assert_allclose(back, naive.cell_overlap_backward(grad, target, cells), rtol=1e-6, atol=1e-6)


def test_backward_is_the_adjoint_of_forward():
    rng = np.random.default_rng(0)
    probs, target = rng.random((4, 5, 6)), rng.random((4, 5, 6))
    cells = rng.integers(0, 4, (4, 5, 6)).astype(np.int32)
    grad = rng.standard_normal((3, 4))
    grad[2] = 0  # the third row does not depend on the probabilities
    forward = (grad * cell_overlap(probs, target, cells, 3)).sum()
    assert forward == pytest.approx((probs * cell_overlap_backward(grad, target, cells)).sum())


def test_dominant_background_keeps_its_precision():
    probs = np.full(3_000_000, 0.1, np.float32)
    sums = cell_overlap(probs, np.zeros(probs.shape, bool), np.zeros(probs.shape, np.int32), 0)
    assert sums[1, 0] == pytest.approx(3_000_000 * float(np.float32(0.1)), rel=1e-10)


@pytest.mark.parametrize("layout", ["F", "strided", "read-only"])
def test_memory_order_does_not_matter(layout):
    rng = np.random.default_rng(1)
    arrays = [rng.random((4, 6)).astype(np.float32), rng.random((4, 6)) < 0.5, rng.integers(0, 3, (4, 6), np.int32)]
    expected = cell_overlap(*arrays, 2)
    if layout == "F":
        others = [np.asfortranarray(array) for array in arrays]
    elif layout == "strided":
        others = [np.repeat(array, 2, axis=1)[:, ::2] for array in arrays]
    else:
        others = [array.copy() for array in arrays]
        for array in others:
            array.flags.writeable = False
    np.testing.assert_array_equal(cell_overlap(*others, 2), expected)
    np.testing.assert_array_equal(
        cell_overlap_backward(expected.astype(np.float32), *others[1:]),
        cell_overlap_backward(expected.astype(np.float32), *arrays[1:]),
    )


def test_long_runs_of_one_cell(naive):
    """Whole strips, strips with a seam and the end of the line all count every voxel once."""
    rng = np.random.default_rng(2)
    cells = np.repeat(rng.integers(0, 4, 40), rng.integers(1, 60, 40)).astype(np.int32)
    for probs in (rng.random(cells.size), rng.random(cells.size).astype(np.float32)):
        target = rng.random(cells.size) < 0.5
        sums = cell_overlap(probs, target, cells, 3)
        np.testing.assert_allclose(sums, naive.cell_overlap(probs, target, cells, 3), rtol=1e-12)
        grad = rng.standard_normal((3, 4)).astype(probs.dtype)
        expected = naive.cell_overlap_backward(grad, target, cells)
        np.testing.assert_allclose(cell_overlap_backward(grad, target, cells), expected, rtol=1e-6, atol=1e-6)


def test_gradient_goes_where_it_is_wanted():
    grad, target, cells = np.ones((3, 2), np.float32), np.ones(4, bool), np.array([0, 1, 1, 0], np.int32)
    out = np.zeros((2, 4), np.float32)
    cell_overlap_backward(grad, target, cells, out[1])
    np.testing.assert_array_equal(out, [[0, 0, 0, 0], [2, 2, 2, 2]])


@pytest.mark.parametrize("out", [np.zeros(3, np.float32), np.zeros(4), np.zeros((4, 2), np.float32)[:, 0]])
def test_unfit_place_for_the_gradient_is_refused(out):
    with pytest.raises(ValueError, match=r"contiguous float32 \(4,\)"):
        cell_overlap_backward(np.ones((3, 2), np.float32), np.ones(4, bool), np.zeros(4, np.int32), out)


@pytest.mark.parametrize("bad", [-1, 3])
def test_cells_out_of_range_are_refused_not_written(bad):
    probs, target = np.ones(4, np.float32), np.ones(4, bool)
    cells = np.array([0, 1, bad, 2], np.int32)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        cell_overlap(probs, target, cells, 2)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        cell_overlap_backward(np.ones((3, 3), np.float32), target, cells)


def test_different_shapes_are_refused():
    probs, target, cells = np.ones((2, 3), np.float32), np.ones((2, 3), bool), np.ones((3, 2), np.int32)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        cell_overlap(probs, target, cells, 1)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        cell_overlap_backward(np.ones((3, 2), np.float32), target, cells)


def test_not_a_number_stays_in_its_cell():
    probs = np.array([np.nan, 0.5], np.float32)
    sums = cell_overlap(probs, np.array([True, True]), np.array([1, 2], np.int32), 2)
    assert np.isnan(sums[1, 1])
    assert sums[1, 2] == 0.5
