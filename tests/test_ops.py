import os
import threading

import numba
import numpy as np
import pytest
import torch

import numba_kernels
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import _run, cell_overlap, component_cells, component_labels, overlap


@pytest.fixture
def batch():
    """Two samples, three classes; one class of one sample is absent."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 3, 6, 7, 8, generator=generator) < 0.04
    mask[1, 1] = False
    probs = torch.rand(mask.shape, generator=generator)
    return probs, mask, component_cells(mask, [3.0, 1.0, 1.0], 26)


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", request.param)
    return request.param


def test_cells_equal_the_kernels(batch, threads):
    _, mask, _ = batch
    cells = component_cells(mask, [3.0, 1.0, 1.0], 6)
    assert cells.dtype == torch.int32
    assert cells.shape == mask.shape
    for b, c in np.ndindex(2, 3):
        labels, count = numba_kernels.connected_components(mask[b, c].numpy(), 6)
        expected = numba_kernels.nearest_component(labels, (3.0, 1.0, 1.0))
        np.testing.assert_array_equal(cells[b, c].numpy(), expected)
        assert cells[b, c].max() == count
    assert not cells[1, 1].any()


def test_labels_equal_the_kernels(batch, threads):
    _, mask, _ = batch
    labels = component_labels(mask, 6)
    assert labels.dtype == torch.int32
    for b, c in np.ndindex(2, 3):
        expected, _ = numba_kernels.connected_components(mask[b, c].numpy(), 6)
        np.testing.assert_array_equal(labels[b, c].numpy(), expected)
    assert torch.equal(component_labels(mask), component_labels(mask, 26))
    assert component_labels(torch.eye(5, dtype=torch.bool).expand(1, 1, 5, 5), 4).max() == 5


@pytest.mark.parametrize(("shape", "connectivity"), [((2, 3, 4), None), ((1, 1, 4, 4), 26), ((1, 1, 4, 4, 4), 8)])
def test_labels_refuse_other_dimensions(shape, connectivity):
    with pytest.raises(ConfigError, match="got"):
        component_labels(torch.zeros(shape, dtype=torch.bool), connectivity)


def test_cells_in_two_dimensions_with_defaults():
    mask = torch.eye(5, dtype=torch.bool).reshape(1, 1, 5, 5)
    assert component_cells(mask).eq(1).all()
    assert component_cells(mask, connectivity=4).max() == 5


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (2, 0, 4, 4), (1, 1, 0, 4), (1, 2, 1, 1), (1, 1, 1, 1, 1)])
def test_empty_and_tiny_tensors(shape):
    mask = torch.ones(shape, dtype=torch.bool)
    cells = component_cells(mask)
    assert cells.shape == shape
    probs = torch.ones(shape, requires_grad=True)
    sums = cell_overlap(probs, mask, cells)
    assert sums.shape[:3] == (3, *shape[:2])
    sums.sum().backward()
    assert probs.grad.shape == shape


def test_non_contiguous_tensors(batch):
    probs, mask, cells = batch
    flipped = [tensor.transpose(2, 4).contiguous().transpose(2, 4) for tensor in (probs, mask, cells)]
    assert not flipped[0].is_contiguous()
    assert torch.equal(component_cells(flipped[1], [3.0, 1.0, 1.0], 26), cells)
    assert torch.equal(cell_overlap(*flipped), cell_overlap(probs, mask, cells))


@pytest.mark.parametrize("soft", [False, True])
def test_overlap_equals_masked_sums(batch, threads, soft):
    probs, mask, cells = batch
    target = torch.rand_like(probs) if soft else mask
    sums = cell_overlap(probs, target, cells)
    assert sums.shape == (3, 2, 3, int(cells.max()) + 1)
    assert sums.dtype == torch.float32
    for k in range(sums.shape[-1]):
        inside = cells == k
        expected = [(value * inside).sum((2, 3, 4)) for value in (probs * target, probs, target)]
        torch.testing.assert_close(sums[..., k], torch.stack(expected).float(), rtol=1e-5, atol=1e-5)


def test_sums_are_added_in_float64():
    probs = torch.full((1, 1, 3_000_000), 0.1)
    sums = cell_overlap(probs, probs > 1, torch.zeros(probs.shape, dtype=torch.int32))
    exact = 3_000_000 * np.float64(np.float32(0.1))
    assert sums[1].item() == np.float32(exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(batch, dtype):
    probs, mask, cells = batch
    half = probs.to(dtype).requires_grad_()
    sums = cell_overlap(half, mask, cells)
    assert torch.equal(sums, cell_overlap(half.float(), mask, cells))
    sums.sum().backward()
    assert half.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64])
def test_target_may_have_any_dtype(batch, dtype):
    probs, mask, cells = batch
    assert torch.equal(cell_overlap(probs, mask.to(dtype), cells.long()), cell_overlap(probs, mask, cells))


@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck(batch, soft):
    probs, mask, cells = batch
    probs = probs.double().requires_grad_()
    target = torch.rand_like(probs) if soft else mask
    assert torch.autograd.gradcheck(lambda p: cell_overlap(p, target, cells), (probs,))


def test_no_gradient_for_the_target(batch):
    probs, _, cells = batch
    soft = torch.rand_like(probs).requires_grad_()
    sums = cell_overlap(probs.requires_grad_(), soft, cells)
    sums.sum().backward()
    assert soft.grad is None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck looks at non-leaves
def test_opcheck(batch):
    probs, mask, cells = batch
    torch.library.opcheck(torch.ops.imbal.component_cells.default, (mask, [3.0, 1.0, 1.0], 26))
    torch.library.opcheck(torch.ops.imbal.component_labels.default, (mask, 26))
    for values in (probs.requires_grad_(), probs.detach().double().requires_grad_()):
        truth = (mask, torch.rand_like(values).detach())
        for target in truth:
            torch.library.opcheck(torch.ops.imbal.cell_overlap.default, (values, target, cells))
    grad = torch.rand(3, 2, 3, int(cells.max()) + 1)
    torch.library.opcheck(torch.ops.imbal.cell_overlap_backward.default, (grad, mask, cells))


def lesion_dice_loss(logits, mask):
    """What a loss does with the operators: K is known only when the data are."""
    cells = component_cells(mask, [3.0, 1.0, 1.0], 26)
    overlap, probs, truth = cell_overlap(logits.sigmoid(), mask, cells)[..., 1:].unbind(0)
    dice = (2 * overlap + 1e-5) / (probs + truth + 1e-5)
    present = truth > 0
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def assert_compiled_equals_eager(backend):
    torch._dynamo.reset()
    compiled = torch.compile(lesion_dice_loss, fullgraph=True, backend=backend)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(2, 3, 6, 7, 8, generator=generator) < 0.02 * seed  # none at first, then ever more
        logits = torch.randn(mask.shape, generator=generator, requires_grad=True)
        twin = logits.detach().clone().requires_grad_()
        expected, loss = lesion_dice_loss(logits, mask), compiled(twin, mask)
        torch.testing.assert_close(loss, expected)
        expected.backward()
        loss.backward()
        torch.testing.assert_close(twin.grad, logits.grad)


def test_compile_without_graph_break():
    assert_compiled_equals_eager("aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # inductor's own
def test_compile_with_inductor():
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:
        pytest.skip("no C++ compiler")
    assert_compiled_equals_eager("inductor")


def test_device_formulas_equal_the_kernels(batch):
    """The torch formulas that serve CUDA, on CPU tensors."""
    probs, mask, cells = batch
    torch.testing.assert_close(overlap._overlap_by_index_add(probs, mask, cells), cell_overlap(probs, mask, cells))
    grad = torch.rand(3, 2, 3, int(cells.max()) + 1)
    expected = torch.ops.imbal.cell_overlap_backward(grad, mask, cells)
    torch.testing.assert_close(overlap._overlap_backward_by_gather(grad, mask, cells), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu(batch):
    probs, mask, cells = batch
    on_gpu = component_cells(mask.cuda(), [3.0, 1.0, 1.0], 26)
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), cells)
    results = []
    for device in ("cpu", "cuda"):
        leaf = probs.to(device, copy=True).requires_grad_()
        sums = cell_overlap(leaf, mask.to(device), cells.to(device))
        sums.square().sum().backward()
        results.append((sums.detach().cpu(), leaf.grad.cpu()))
    torch.testing.assert_close(*results)


def test_threads_of_the_pool_do_the_work(threads):
    seen = set()
    _run.for_each(lambda _: seen.add(threading.current_thread().name), range(8))
    assert any(name.startswith("imbal") for name in seen) == (threads > 1)


def test_an_error_in_a_thread_reaches_the_caller(threads):
    with pytest.raises(ZeroDivisionError):
        _run.for_each(lambda number: 1 // number, range(3))


def test_each_process_has_its_own_pool():
    here = _run.thread_pool(os.getpid(), 2)
    assert _run.thread_pool(os.getpid(), 2) is here
    assert _run.thread_pool(os.getpid() + 1, 2) is not here


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(1, 1, 4), None, None), r"\(1, 1, 4\)"),
        ((torch.ones(1, 1, 4, 4), (1.0, 1.0, 1.0), None), "2 positive numbers"),
        ((torch.ones(1, 1, 4, 4), (1.0, 0.0), None), r"\(1.0, 0.0\)"),
        ((torch.ones(1, 1, 4, 4), (1.0, float("nan")), None), "nan"),
        ((torch.ones(1, 1, 4, 4), None, 26), r"\(8, 4\), got 26"),
        ((torch.ones(1, 1, 4, 4, 4), None, 8), r"\(26, 18, 6\), got 8"),
    ],
)
def test_bad_input_of_cells_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        component_cells(*arguments)


@pytest.mark.parametrize(
    ("probs", "target", "cells", "words"),
    [
        (torch.ones(1, 1, 4), torch.ones(1, 1, 5), torch.ones(1, 1, 4).int(), r"\(1, 1, 4\), \(1, 1, 5\)"),
        (torch.ones(4), torch.ones(4), torch.ones(4).int(), r"\(B, C, \.\.\.\)"),
        (torch.ones(1, 1, 4).int(), torch.ones(1, 1, 4), torch.ones(1, 1, 4).int(), "int32"),
        (torch.ones(1, 1, 4), torch.ones(1, 1, 4), torch.ones(1, 1, 4), "cells integer"),
    ],
)
def test_bad_input_of_overlap_is_refused(probs, target, cells, words):
    with pytest.raises(ConfigError, match=words):
        cell_overlap(probs, target, cells)


def test_negative_cells_are_refused():
    ones = torch.ones(1, 1, 4)
    with pytest.raises(ValueError, match="cells must lie in"):
        cell_overlap(ones, ones, torch.tensor([[[0, -1, 1, 1]]]))
