"""Which code serves tensors on a GPU. The tensors here lie on the CPU: the choice does not look at them."""

import importlib
import inspect
import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from nnunet_imbal import _cuda_backend, ops
from nnunet_imbal.ops import _run, contacts, overlap, skeleton, thickness
from nnunet_imbal.ops import cells as cells_op
from nnunet_imbal.ops import labels as labels_op

soft_skeleton_op = importlib.import_module("nnunet_imbal.ops.soft_skeleton")  # its function has the same name

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
    _run._warn.cache_clear()

    def choose(obstacle):
        monkeypatch.setattr(_cuda_backend, "find_obstacle", lambda operator: obstacle)
        return _run.gpu_kernels("component_cells")

    yield choose
    _run.gpu_kernels.cache_clear()
    _run._warn.cache_clear()


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
    assert _run.gpu_kernels("component_cells") is None
    assert "_cuda_backend" in caplog.text


def test_vessels_take_the_way_through_the_cpu(choose, batch):
    choose("CudaSupportError: no libnvvm")
    probs, mask, cells = batch
    labels, counts = cells[:, :1], torch.tensor([[1, 2], [0, 1]])
    assert torch.equal(skeleton._skeletonize_on_gpu(mask), ops.skeletonize(mask))
    assert torch.equal(skeleton._tube_on_gpu(mask, 1), ops.tube(mask, 1))
    assert torch.equal(thickness._distance_on_gpu(mask, SPACING), ops.distance(mask, SPACING))
    assert torch.equal(thickness._local_thickness_on_gpu(mask, SPACING), ops.local_thickness(mask, SPACING))
    assert torch.equal(contacts._contacts_on_gpu(labels, 99, 26), ops.class_contacts(labels, 99))
    assert torch.equal(soft_skeleton_op._soft_skeleton_on_gpu(probs, counts), ops.soft_skeleton(probs, counts))
    gradient = soft_skeleton_op._soft_skeleton_backward_on_gpu(probs, probs, counts)
    assert torch.equal(gradient, torch.ops.imbal.soft_skeleton_backward(probs, probs, counts))


@pytest.mark.parametrize("shape", [(2, 2, 5, 6, 7), (2, 2, 1, 9, 8), (3, 1, 9, 11), (0, 1, 4, 4), (1, 1, 0, 3)])
def test_depth_by_running_minima_is_the_same(shape):
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    for share in (-1, 0.5, 0.97, 2):
        depth = soft_skeleton_op._erosion_depth_on_gpu(noise < share)
        assert depth.dtype == torch.int64
        assert torch.equal(depth, ops.erosion_depth(noise < share))


CALLS = {
    "cell_overlap": overlap._overlap_on_gpu,
    "cell_overlap_backward": overlap._overlap_backward_on_gpu,
    "class_contacts": contacts._contacts_on_gpu,
    "component_cells": cells_op._cells_on_gpu,
    "component_labels": labels_op._labels_on_gpu,
    "distance": thickness._distance_on_gpu,
    "local_thickness": thickness._local_thickness_on_gpu,
    "skeletonize": skeleton._skeletonize_on_gpu,
    "soft_skeleton": soft_skeleton_op._soft_skeleton_on_gpu,
    "soft_skeleton_backward": soft_skeleton_op._soft_skeleton_backward_on_gpu,
    "tube": skeleton._tube_on_gpu,
}


def test_every_kernel_is_called():
    assert {"TorchDevice", "find_obstacle", *CALLS} == set(_cuda_backend.__all__)


@pytest.mark.parametrize("operator", CALLS)
def test_operators_call_the_kernels_that_were_tried(monkeypatch, operator):
    tried = []
    kernels = SimpleNamespace(**{operator: lambda *arguments: arguments})
    monkeypatch.setattr(_run, "gpu_kernels", lambda name: tried.append(name) or kernels)
    arguments = tuple(range(len(inspect.signature(CALLS[operator]).parameters)))
    assert CALLS[operator](*arguments) == arguments
    assert tried == [operator]


def test_deterministic_algorithms_are_respected(monkeypatch, batch):
    monkeypatch.setattr(_run, "gpu_kernels", lambda name: SimpleNamespace())
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    torch.testing.assert_close(overlap._overlap_on_gpu(*batch), ops.cell_overlap(*batch))
