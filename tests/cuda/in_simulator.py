"""GPU kernels in numba's simulator against their CPU twins. Run by test_simulator.py in a process of its own."""

import importlib
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from numba import config, cuda

import numba_kernels as cpu
from nnunet_imbal import _cuda_backend, ops
from numba_kernels import cuda as gpu
from numba_kernels.contacts import class_contacts

pytestmark = pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="needs NUMBA_ENABLE_CUDASIM=1")

CONNECTIVITIES = [(2, 4), (2, 8), (3, 6), (3, 18), (3, 26)]
SHAPES = {2: [(9, 11), (1, 9), (9, 1), (2, 70)], 3: [(6, 7, 9), (1, 7, 9), (7, 1, 9), (7, 9, 1), (1, 1, 1)]}


class AnotherGrid(gpu.NumpyDevice):
    """Nothing may depend on how many blocks and threads there are."""

    blocks, threads = 3, 5


def volumes(shape, classes=1, seed=0):
    """Random maps of several densities; empty, full, checkerboard, one voxel."""
    rng = np.random.default_rng(seed)
    maps = [rng.integers(1, classes + 1, shape) * (rng.random(shape) < density) for density in (0.05, 0.3, 0.5, 0.7)]
    one = np.zeros(shape)
    one.flat[-1] = 1
    checkerboard = np.indices(shape).sum(axis=0) % 2
    return np.stack([*maps, np.zeros(shape), np.ones(shape), checkerboard, one]).astype(np.uint8)


def assert_components_equal(labels, connectivity, device):
    components, counts = gpu.connected_components(device, labels, connectivity)
    assert components.dtype == np.int32
    for item in range(len(labels)):
        expected, count = cpu.connected_components(labels[item], connectivity)
        np.testing.assert_array_equal(components[item], expected)
        assert counts[item] == count


@pytest.mark.parametrize(("ndim", "connectivity"), CONNECTIVITIES)
def test_components_equal_cpu(ndim, connectivity):
    for shape in SHAPES[ndim]:
        assert_components_equal(volumes(shape), connectivity, gpu.NumpyDevice())


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.int64])
def test_components_of_several_classes_and_dtypes(dtype):
    assert_components_equal(volumes((5, 6, 8), classes=3).astype(dtype), None, AnotherGrid())


def test_components_of_a_labyrinth():
    """One long winding path, met by all threads at once."""
    labels = np.zeros((1, 3, 11, 12), np.uint8)
    labels[:, 1, ::2] = 1
    labels[:, 1, 1::4, -1] = labels[:, 1, 3::4, 0] = 1
    assert gpu.connected_components(AnotherGrid(), labels, 6)[1] == 1
    assert_components_equal(labels, 6, AnotherGrid())


def test_unknown_connectivity_is_refused():
    with pytest.raises(ValueError, match="8"):
        gpu.connected_components(gpu.NumpyDevice(), np.ones((1, 2, 2, 2), np.uint8), 8)


@pytest.mark.parametrize("spacing", [None, (3.0, 0.5, 1.5), (2.7, 0.71, 3**0.5)])
@pytest.mark.parametrize("shape", [(6, 7, 9), (1, 7, 9), (7, 1, 9), (7, 9, 1)])
def test_nearest_component_equals_cpu(shape, spacing):
    labels = np.stack([cpu.connected_components(volume)[0] for volume in volumes(shape, seed=1)])
    cells, distance = gpu.nearest_component(gpu.NumpyDevice(), labels, spacing, return_distance=True)
    for item in range(len(labels)):
        expected, expected_distance = cpu.nearest_component(labels[item], spacing, return_distance=True)
        np.testing.assert_array_equal(cells[item], expected)
        np.testing.assert_array_equal(distance[item], expected_distance)


@pytest.mark.parametrize("shape", SHAPES[2])
def test_nearest_component_in_two_dimensions(shape):
    labels = volumes(shape, classes=4).astype(np.int32)
    cells = gpu.nearest_component(AnotherGrid(), labels, (2.0, 1.0))
    expected = [cpu.nearest_component(each, (2.0, 1.0)) for each in labels]
    np.testing.assert_array_equal(cells, expected)


def test_nearest_component_works_in_parts(monkeypatch):
    labels = volumes((3, 4, 5)).astype(np.int32)
    batches = importlib.import_module("numba_kernels.cuda._batches")
    expected = gpu.nearest_component(gpu.NumpyDevice(), labels, return_distance=True)
    monkeypatch.setattr(batches, "_SCRATCH", 3 * 60 * 32)
    assert len(list(batches.in_parts(labels.shape, 32))) == 3
    np.testing.assert_equal(gpu.nearest_component(gpu.NumpyDevice(), labels, return_distance=True), expected)


@pytest.mark.parametrize("spacing", [None, (2.7, 0.71, 3**0.5)], ids=["short keys", "long keys"])
@pytest.mark.parametrize("max_distance", [None, 0.0, 1.5])
def test_nearest_voxel_and_limit_equal_cpu(spacing, max_distance):
    labels = volumes((3, 4, 5), classes=3).astype(np.int32)
    wanted = {"return_distance": True, "return_index": True, "max_distance": max_distance}
    results = gpu.nearest_component(AnotherGrid(), labels, spacing, **wanted)
    for item in range(len(labels)):
        for found, expected in zip(results, cpu.nearest_component(labels[item], spacing, **wanted), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found[item], expected)
    cells = gpu.nearest_component(AnotherGrid(), labels, spacing, max_distance=max_distance)
    np.testing.assert_array_equal(cells, results[0])


@pytest.mark.parametrize("limit", [-1, float("nan")])
def test_bad_limit_is_refused(limit):
    with pytest.raises(ValueError, match="max_distance must be"):
        gpu.nearest_component(gpu.NumpyDevice(), np.ones((1, 2, 2), np.int32), max_distance=limit)


def test_bad_spacing_is_refused():
    with pytest.raises(ValueError, match="3 positive numbers"):
        gpu.nearest_component(gpu.NumpyDevice(), np.ones((1, 2, 2, 2), np.int32), (1.0, 1.0))


@pytest.fixture(params=["few cells", "more cells than a table holds"])
def cells(request):
    rng = np.random.default_rng(3)
    if request.param == "few cells":
        return rng.integers(0, 4, (3, 700), np.int32)
    return np.sort(rng.integers(0, 900, (3, 1500), np.int32), axis=1)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("device", [gpu.NumpyDevice(), AnotherGrid()], ids=["2x16", "3x5"])
def test_overlap_equals_cpu(cells, soft, dtype, device):
    rng = np.random.default_rng(4)
    probs = rng.random(cells.shape).astype(dtype)
    target = rng.random(cells.shape).astype(dtype) if soft else rng.integers(0, 2, cells.shape, np.uint8)
    num_cells = int(cells.max()) + 2
    sums = gpu.cell_overlap(device, probs, target, cells, num_cells)
    grad = rng.random(sums.shape).astype(dtype)
    gradient = gpu.cell_overlap_backward(device, grad, target, cells)
    assert sums.dtype == np.float64
    assert gradient.dtype == dtype
    for item in range(len(cells)):
        expected = cpu.cell_overlap(probs[item], target[item], cells[item], num_cells)
        np.testing.assert_allclose(sums[:, item], expected, rtol=1e-12)
        expected = cpu.cell_overlap_backward(grad[:, item], target[item], cells[item])
        np.testing.assert_allclose(gradient[item], expected, rtol=1e-6)


def test_a_block_has_work_of_several_items_and_stretches(monkeypatch):
    """Tables are cleared between items, and no voxel is counted twice at the seams of stretches."""
    monkeypatch.setattr(importlib.import_module("numba_kernels.cuda.component_sums"), "_STRETCH", 7)
    cells = np.random.default_rng(5).integers(0, 3, (7, 61), np.int32)
    ones = np.ones(cells.shape, np.float32)
    sums = gpu.cell_overlap(AnotherGrid(), ones, ones, cells, 2)
    expected = np.stack([np.bincount(each, minlength=3) for each in cells])
    np.testing.assert_array_equal(sums, np.stack([expected] * 3))


@pytest.mark.parametrize(("ndim", "connectivity"), CONNECTIVITIES)
def test_contacts_equal_cpu(ndim, connectivity):
    for shape in SHAPES[ndim]:
        labels = volumes(shape, classes=3)
        contacts = gpu.class_contacts(AnotherGrid(), labels, 5, connectivity)
        assert contacts.dtype == np.int64
        np.testing.assert_array_equal(contacts, [class_contacts(each, 5, connectivity) for each in labels])


def test_contacts_of_more_classes_than_a_table_holds(monkeypatch):
    monkeypatch.setattr(importlib.import_module("numba_kernels.cuda.contacts"), "_TABLE", 24)
    labels = volumes((3, 4, 5), classes=4).astype(np.int32)
    contacts = gpu.class_contacts(gpu.NumpyDevice(), labels, 5)
    np.testing.assert_array_equal(contacts, [class_contacts(each, 5) for each in labels])


def test_contacts_ignore_values_that_are_no_class():
    labels = np.array([[[1, 7, 2], [0, -1, 2]]])
    expected = class_contacts(np.array([[1, 0, 2], [0, 0, 2]]), 3, 4)
    contacts = gpu.class_contacts(gpu.NumpyDevice(), labels, 3, 4)
    assert contacts[0, 0, 1] == contacts[0, 1, 0] == 1
    assert contacts.sum() == 2 < expected.sum()


def test_this_is_the_simulator():
    assert "simulator" in cuda.detect.__module__


class SimulatedDevice(_cuda_backend.TorchDevice):
    """Torch tensors on the CPU in place of the GPU's."""

    def __init__(self):
        self.device = torch.device("cpu")

    def launch(self, kernel, blocks, *arguments, threads=4):
        arrays = [each.numpy() if isinstance(each, torch.Tensor) else each for each in arguments]
        gpu.NumpyDevice().launch(kernel, blocks, *arrays, threads=min(threads, 4))


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setattr(_cuda_backend, "_device_of", lambda tensor: nullcontext(SimulatedDevice()))
    return _cuda_backend


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 3, 4, 5, 6, generator=generator) < 0.1
    mask[1, 1] = False
    return torch.rand(mask.shape, generator=generator), mask


def test_backend_equals_operators(backend, batch):
    probs, mask = batch
    cells = backend.component_cells(mask, [3.0, 1.0, 1.0], 6)
    assert torch.equal(cells, ops.component_cells(mask, [3.0, 1.0, 1.0], 6))
    for target in (mask, torch.rand_like(probs)):
        sums = backend.cell_overlap(probs.requires_grad_(), target, cells)
        assert sums.dtype == probs.dtype
        torch.testing.assert_close(sums, ops.cell_overlap(probs, target, cells).detach())
        gradient = backend.cell_overlap_backward(sums, target, cells)
        torch.testing.assert_close(gradient, torch.ops.imbal.cell_overlap_backward(sums, target, cells))


def test_backend_takes_tensors_of_any_order_and_dimension(backend, batch):
    probs, mask = (tensor[:, :, 2].transpose(2, 3) for tensor in batch)
    cells = backend.component_cells(mask, [1.0, 1.0], 8)
    assert torch.equal(cells, ops.component_cells(mask))
    target = mask.double().transpose(0, 1).contiguous().transpose(0, 1)
    sums = backend.cell_overlap(probs.double(), target, cells)
    torch.testing.assert_close(sums, ops.cell_overlap(probs.double(), target, cells))


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (2, 0, 4, 4), (1, 1, 0, 4), (1, 2, 1, 1)])
def test_backend_takes_empty_and_tiny_tensors(backend, shape):
    mask = torch.ones(shape, dtype=torch.bool)
    cells = backend.component_cells(mask, [1.0, 1.0], 8)
    sums = backend.cell_overlap(mask.float(), mask, cells)
    expected = ops.cell_overlap(mask.float(), mask, ops.component_cells(mask))
    assert torch.equal(sums, expected)
    assert backend.cell_overlap_backward(sums, mask, cells).shape == shape


def test_backend_refuses_negative_cells(backend):
    ones = torch.ones(1, 1, 4)
    with pytest.raises(ValueError, match=r"0\.\.1, got -1\.\.1"):
        backend.cell_overlap(ones, ones, torch.tensor([[[0, -1, 1, 1]]], dtype=torch.int32))


OPERATORS = sorted(set(_cuda_backend.__all__) - {"TorchDevice", "find_obstacle"})


@pytest.mark.parametrize("operator", OPERATORS)
def test_trial_succeeds(backend, operator):
    assert backend.find_obstacle(operator, "cpu") == ""


@pytest.mark.parametrize("operator", OPERATORS)
def test_trial_finds_wrong_answers(backend, monkeypatch, operator):
    monkeypatch.setattr(backend, operator, lambda *arguments: getattr(torch.ops.imbal, operator)(*arguments) + 1)
    assert backend.find_obstacle(operator, "cpu").startswith(f"{operator} runs, but its answers differ")


@pytest.mark.parametrize("operator", OPERATORS)
def test_trial_tells_what_went_wrong(operator):
    """Nothing stands in for the GPU here."""
    assert "Error" in _cuda_backend.find_obstacle(operator, "cpu")


def test_backend_follows_vessels_as_the_operators_do(backend, batch):
    probs, mask = (tensor[:, :2, :, 1:].transpose(2, 4) for tensor in batch)
    mask = mask | mask.roll(1, 2)
    labels = mask.long() * torch.tensor([3, 5]).view(1, 2, 1, 1, 1)
    for tensor in (mask, labels):
        skeletons = backend.skeletonize(tensor)
        assert skeletons.dtype == tensor.dtype
        assert torch.equal(skeletons, ops.skeletonize(tensor.contiguous()))
    assert torch.equal(backend.tube(mask, 1), ops.tube(mask.contiguous(), 1))
    assert torch.equal(backend.local_thickness(mask, [3.0, 1.0, 1.0]), ops.local_thickness(mask, (3.0, 1.0, 1.0)))
    iterations = torch.tensor([[0, 2], [1, 0]])
    skeletons = backend.soft_skeleton(probs, iterations)
    torch.testing.assert_close(skeletons, ops.soft_skeleton(probs.contiguous(), iterations))


def test_backend_refuses_what_the_operators_refuse(backend):
    labels = torch.tensor([[[[0, 1, 7]]]])
    with pytest.raises(ValueError, match=r"0\.\.2, got 0\.\.7"):
        backend.class_contacts(labels, 3, 8)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        backend.soft_skeleton(labels.float(), torch.tensor([[-1]]))


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 1, 0, 4)])
def test_backend_follows_no_vessels(backend, shape):
    mask = torch.ones(shape, dtype=torch.bool)
    counts = torch.zeros(shape[:2], dtype=torch.int64)
    assert backend.skeletonize(mask).dtype == backend.tube(mask, 1).dtype == torch.bool
    assert backend.distance(mask, [1.0, 1.0]).dtype == torch.float32
    assert backend.local_thickness(mask, [1.0, 1.0]).shape == shape
    assert backend.soft_skeleton(mask.float(), counts).shape == shape
    assert backend.soft_skeleton_backward(mask.float(), mask.float(), counts).shape == shape
    assert backend.class_contacts(mask.int(), 3, 8).tolist() == torch.zeros(shape[0], 3, 3).tolist()
