"""`cell_error_overlap` and `cell_voxels`: sums per cell that need no probabilities, or no values at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels import cell_error_overlap, cell_error_overlap_backward, cell_voxels


def case(shape, num_cells, seed=0):
    rng = np.random.default_rng(seed)
    errors = rng.exponential(rng.choice([0.001, 1, 30]), shape).astype(np.float32)
    target, cells = rng.random(shape) < 0.5, rng.integers(0, num_cells + 1, shape).astype(np.int32)
    return errors, target, cells, rng.standard_normal((2, 3, num_cells + 1)).astype(np.float32)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(0, 5), st.integers(0, 999))
@settings(max_examples=100, deadline=None)
def test_equals_naive_twin(naive, shape, num_cells, seed):
    errors, target, cells, grad = case(shape, num_cells, seed)
    sums = cell_error_overlap(errors, target, cells, num_cells)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, naive.cell_error_overlap(errors, target, cells, num_cells), rtol=1e-6, atol=1e-30)
    back = cell_error_overlap_backward(grad, errors, target, cells)
    assert back.dtype == np.float32
    expected = naive.cell_error_overlap_backward(grad, errors, target, cells)
    np.testing.assert_allclose(back, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(cell_voxels(cells, num_cells), naive.cell_voxels(cells, num_cells))


def test_blocks_do_not_show(naive):
    """A run of one cell that is longer than a block, and blocks of many runs."""
    errors, target, cells, _ = case((5000,), 3)
    for maps in (cells, np.sort(cells)):
        expected = naive.cell_error_overlap(errors, target, maps, 3)
        np.testing.assert_allclose(cell_error_overlap(errors, target, maps, 3), expected, rtol=1e-6)


def test_small_probabilities_keep_their_digits():
    errors, cells = np.full(1000, 1e-8, np.float32), np.ones(1000, np.int32)
    sums = cell_error_overlap(errors, np.zeros(1000, bool), cells, 1)
    assert sums[0, 1, 1] == pytest.approx(1e-5, rel=1e-6)


def test_gradient_goes_where_it_is_wanted():
    errors, target, cells, grad = case((6,), 2)
    out = np.empty(6, np.float32)
    assert cell_error_overlap_backward(grad, errors, target, cells, out) is out
    np.testing.assert_array_equal(out, cell_error_overlap_backward(grad, errors, target, cells))
    with pytest.raises(ValueError, match=r"contiguous float32 \(6,\)"):
        cell_error_overlap_backward(grad, errors, target, cells, np.empty(6))


def test_not_a_number_stays_in_its_cell():
    errors, target = np.array([np.nan, 0.5], np.float32), np.array([True, True])
    sums = cell_error_overlap(errors, target, np.array([1, 2], np.int32), 2)
    assert np.isnan(sums[:, :2, 1]).all()
    np.testing.assert_allclose(sums[:, 1, 2], [np.exp(-0.5), 0.5], rtol=1e-6)


@pytest.mark.parametrize("bad", [-1, 3])
def test_cells_out_of_range_are_refused_not_written(bad):
    errors, target, _, grad = case((4,), 2)
    cells = np.array([0, 1, bad, 2], np.int32)
    for call in (
        lambda: cell_error_overlap(errors, target, cells, 2),
        lambda: cell_error_overlap_backward(grad, errors, target, cells),
        lambda: cell_voxels(cells, 2),
    ):
        with pytest.raises(ValueError, match=r"0\.\.2"):
            call()


def test_other_shapes_and_dtypes_are_refused():
    errors, target, cells, grad = case((4,), 2)
    with pytest.raises(ValueError, match=r"\(4,\).*\(2,\)"):
        cell_error_overlap(errors, target, cells[:2], 2)
    with pytest.raises(TypeError, match="float32 and target bool, got float64"):
        cell_error_overlap(errors.astype(float), target, cells, 2)
    with pytest.raises(TypeError, match="got float32 and uint8"):
        cell_error_overlap_backward(grad, errors, target.astype(np.uint8), cells)
