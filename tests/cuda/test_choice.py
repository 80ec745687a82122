"""Which code serves tensors on a GPU. The tensors here lie on the CPU: the choice does not look at them."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from nnunet_imbal import _cuda_backend, ops
from nnunet_imbal.ops import _run, overlap
from nnunet_imbal.ops import cells as cells_op
from nnunet_imbal.ops import labels as labels_op

SPACING = [3.0, 1.0, 1.0]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 2, 5, 6, 7, generator=generator) < 0.05
    probs = torch.rand(mask.shape, generator=generator)
    return probs, mask, ops.component_cells(mask, SPACING, 26)


@pytest.fixture
def choose(monkeypatch):
    """Function (obstacle) -> the kernels chosen where a trial gives this result."""
    _run.gpu_kernels.cache_clear()

    def choose(obstacle):
        monkeypatch.setattr(_cuda_backend, "find_obstacle", lambda: obstacle)
        return _run.gpu_kernels()

    yield choose
    _run.gpu_kernels.cache_clear()


def test_kernels_that_pass_the_trial_are_used(choose, caplog):
    assert choose("") is _cuda_backend
    assert not caplog.records


def test_without_kernels_the_cpu_does_the_work_and_says_so_once(choose, batch, caplog):
    probs, mask, cells = batch
    with caplog.at_level(logging.WARNING, logger="nnunet_imbal.ops._run"):
        assert choose("CudaSupportError: no libnvvm") is None
        for _ in range(2):
            assert torch.equal(labels_op._labels_on_gpu(mask, 26), ops.component_labels(mask, 26))
            assert torch.equal(cells_op._cells_on_gpu(mask, SPACING, 26), cells)
            sums = overlap._overlap_on_gpu(probs, mask, cells)
            torch.testing.assert_close(sums, ops.cell_overlap(probs, mask, cells))
            gradient = overlap._overlap_backward_on_gpu(sums, mask, cells)
            torch.testing.assert_close(gradient, torch.ops.imbal.cell_overlap_backward(sums, mask, cells))
    assert [record.getMessage().endswith("no libnvvm") for record in caplog.records] == [True]


def test_without_cuda_in_numba_the_cpu_does_the_work(choose, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "nnunet_imbal._cuda_backend", None)
    monkeypatch.delattr("nnunet_imbal._cuda_backend")
    assert _run.gpu_kernels() is None
    assert "_cuda_backend" in caplog.text


def test_operators_call_the_kernels(monkeypatch, batch):
    names = ("component_labels", "component_cells", "cell_overlap", "cell_overlap_backward")
    kernels = SimpleNamespace(**{name: lambda *arguments, name=name: (name, *arguments) for name in names})
    monkeypatch.setattr(_run, "gpu_kernels", lambda: kernels)
    assert labels_op._labels_on_gpu(1, 2) == ("component_labels", 1, 2)
    assert cells_op._cells_on_gpu(1, 2, 3) == ("component_cells", 1, 2, 3)
    assert overlap._overlap_on_gpu(1, 2, 3) == ("cell_overlap", 1, 2, 3)
    assert overlap._overlap_backward_on_gpu(1, 2, 3) == ("cell_overlap_backward", 1, 2, 3)


def test_deterministic_algorithms_are_respected(monkeypatch, batch):
    monkeypatch.setattr(_run, "gpu_kernels", lambda: SimpleNamespace())
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    torch.testing.assert_close(overlap._overlap_on_gpu(*batch), ops.cell_overlap(*batch))
