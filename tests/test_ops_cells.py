"""`cell_error_overlap` and `cell_voxels` as operators: both ways of computing them, gradient, tracing, bad input."""

import pytest
import torch

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import cell_error_overlap, cell_overlap, cell_voxels, component_cells, voxels


def case(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, 6, 7, 8, generator=generator) < 0.02
    errors = torch.empty(target.shape, dtype=dtype).exponential_(generator=generator)
    return errors, target, component_cells(target)


def test_is_two_overlaps():
    errors, target, cells = case(torch.float64)
    probs = torch.where(target, torch.exp(-errors), 1 - torch.exp(-errors))
    sums = cell_error_overlap(errors, target, cells)
    torch.testing.assert_close(sums[0], cell_overlap(probs, target, cells))
    torch.testing.assert_close(sums[1], cell_overlap(errors, target, cells))


def test_kernel_equals_formula():
    errors, target, cells = case()
    results = []
    for leaf in (errors.clone().requires_grad_(), errors.double().requires_grad_()):
        sums = cell_error_overlap(leaf, target, cells)
        (sums * torch.arange(sums.numel()).view(sums.shape)).sum().backward()
        results.append((sums.detach().double(), leaf.grad.double()))
    (sums, grad), (exact, exact_grad) = results
    torch.testing.assert_close(sums, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad, exact_grad, rtol=1e-5, atol=1e-3)  # the levels go up to several hundred


def test_gradcheck():
    errors, target, cells = case(torch.float64)
    part = (slice(1), slice(1), slice(3), slice(3), slice(4))
    small, truth, ids = errors[part], target[part].clone(), cells[part]
    truth[..., 0, 0, 0] = True
    assert torch.autograd.gradcheck(lambda e: cell_error_overlap(e, truth, ids), (small.requires_grad_(),))


def test_half_precision_is_raised():
    errors, target, cells = case()
    half = errors.half()
    assert torch.equal(cell_error_overlap(half, target, cells), cell_error_overlap(half.float(), target, cells))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck looks at non-leaves
def test_opcheck():
    errors, target, cells = case()
    grad = torch.rand_like(cell_error_overlap(errors, target, cells))
    torch.library.opcheck(torch.ops.imbal.cell_error_overlap.default, (errors.requires_grad_(), target, cells))
    torch.library.opcheck(torch.ops.imbal.cell_error_overlap_backward.default, (grad, errors.detach(), target, cells))
    torch.library.opcheck(torch.ops.imbal.cell_voxels.default, (cells,))


def test_voxels_are_counted_in_both_ways():
    _, _, cells = case()
    counts = cell_voxels(cells)
    expected = torch.stack([(cells == k).flatten(2).sum(2) for k in range(int(cells.max()) + 1)], dim=2)
    assert torch.equal(counts, expected)
    assert torch.equal(voxels._voxels_by_index_add(cells, int(cells.max())), expected)


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (2, 1, 0, 4)])
def test_empty_tensors(shape):
    errors = torch.zeros(shape, requires_grad=True)
    cells = torch.zeros(shape, dtype=torch.int32)
    sums = cell_error_overlap(errors, cells > 0, cells)
    sums.sum().backward()
    assert sums.shape == (2, 3, *shape[:2], 1)
    assert errors.grad.shape == shape
    assert cell_voxels(cells).shape == (*shape[:2], 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.ones(1, 1, 3)}, r"share one shape.*\(1, 1, 3\), \(1, 1, 4\)"),
        ({1: torch.ones(1, 1, 4)}, "target bool"),
        ({2: torch.ones(1, 1, 4)}, "cells integer"),
    ],
)
def test_bad_input_is_refused(change, words):
    fit = {0: torch.ones(1, 1, 4), 1: torch.ones(1, 1, 4) > 0, 2: torch.ones(1, 1, 4, dtype=torch.int32)}
    with pytest.raises(ConfigError, match=words):
        cell_error_overlap(*(fit | change).values())


def test_voxels_of_no_ids_are_refused():
    with pytest.raises(ConfigError, match="float32"):
        cell_voxels(torch.ones(1, 1, 4))
