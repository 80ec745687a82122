"""The kernels on a real GPU against the CPU, at sizes where threads truly meet."""

import numpy as np
import pytest
import torch

from nnunet_imbal import _cuda_backend, ops
from numba_kernels import connected_components
from numba_kernels import cuda as kernels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

SHAPE = (96, 96, 96)


@pytest.fixture(scope="module", autouse=True)
def trial():
    """Without numba-cuda there is nothing to test; with it, an obstacle is a fault."""
    if obstacle := _cuda_backend.find_obstacle("component_cells"):
        pytest.skip(obstacle) if "Support" in obstacle else pytest.fail(obstacle)


@pytest.fixture(scope="module")
def mask():
    """(2, 3, *S): scattered voxels, small blobs, large winding structures; one class absent, one everywhere."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6, 1, *SHAPE, generator=generator)
    smooth = torch.nn.functional.avg_pool3d(noise, 7, 1, 3, count_include_pad=False).squeeze(1)
    noise = noise.squeeze(1)
    parts = (noise[0] > 3.5, smooth[1] > 0.17, smooth[2] > 0, noise[3] > 0.6, noise[4] > 99, noise[5] < 99)
    return torch.stack(parts).reshape(2, 3, *SHAPE)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_components(mask, connectivity):
    labels = mask.flatten(0, 1)
    device = _cuda_backend.TorchDevice(torch.device("cuda", torch.cuda.current_device()))
    for _ in range(5):  # whichever thread is quicker
        components, counts = kernels.connected_components(device, labels.to(torch.uint8).cuda(), connectivity)
        for item in range(len(labels)):
            expected, count = connected_components(labels[item].numpy(), connectivity)
            assert counts[item] == count
            np.testing.assert_array_equal(components[item].cpu().numpy(), expected)


@pytest.mark.parametrize("spacing", [[1.0, 1.0, 1.0], [3.0, 0.5, 1.5]])
def test_cells(mask, spacing):
    expected = ops.component_cells(mask, spacing)
    assert torch.equal(_cuda_backend.component_cells(mask.cuda(), spacing, 26).cpu(), expected)


def test_cells_in_two_dimensions(mask):
    planes = mask[:, :, 40]
    expected = ops.component_cells(planes, [0.8, 0.8], 4)
    assert torch.equal(_cuda_backend.component_cells(planes.cuda(), [0.8, 0.8], 4).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("soft", [False, True])
def test_overlap_and_its_gradient(mask, dtype, soft):
    generator = torch.Generator().manual_seed(1)
    probs = torch.rand(mask.shape, generator=generator, dtype=dtype)
    target = torch.rand(mask.shape, generator=generator, dtype=dtype) if soft else mask
    cells = ops.component_cells(mask)
    results = []
    for device in ("cpu", "cuda"):
        leaf = probs.to(device, copy=True).requires_grad_()
        sums = ops.cell_overlap(leaf, target.to(device), cells.to(device))
        sums.square().mean().backward()
        results.append((sums.detach().cpu(), leaf.grad.cpu()))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("operator", sorted(set(_cuda_backend.__all__) - {"TorchDevice", "find_obstacle"}))
def test_trial(operator):
    assert _cuda_backend.find_obstacle(operator) == ""


@pytest.mark.parametrize("crop", [slice(None), slice(40, 41)], ids=["3-D", "one plane"])
def test_skeletons_and_tubes(mask, crop):
    volumes = mask[:, :, crop]
    for _ in range(3):  # whichever thread is quicker
        skeletons = ops.skeletonize(volumes.cuda())
        assert torch.equal(skeletons.cpu(), ops.skeletonize(volumes))
    assert torch.equal(ops.tube(skeletons).cpu(), ops.tube(skeletons.cpu()))


def test_skeletons_of_classes_that_touch(mask):
    labels = (mask * torch.tensor([1, 2, 3]).view(1, 3, 1, 1, 1)).amax(1, keepdim=True)
    assert torch.equal(ops.skeletonize(labels.cuda()).cpu(), ops.skeletonize(labels))
    assert torch.equal(ops.class_contacts(labels.cuda(), 4).cpu(), ops.class_contacts(labels, 4))


@pytest.mark.parametrize("spacing", [[1.0, 1.0, 1.0], [3.0, 0.5, 1.5]])
def test_depth_and_thickness(mask, spacing):
    assert torch.equal(ops.distance(mask.cuda(), spacing).cpu(), ops.distance(mask, spacing))
    assert torch.equal(ops.local_thickness(mask.cuda(), spacing).cpu(), ops.local_thickness(mask, spacing))


@pytest.mark.parametrize("iterations", [0, 3, torch.tensor([[0, 1, 2], [3, 4, 5]])])
def test_soft_skeleton_and_its_gradient(mask, iterations):
    probs = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2))
    results = []
    for device in ("cpu", "cuda"):
        leaf = probs.to(device, copy=True).requires_grad_()
        counts = iterations if isinstance(iterations, int) else iterations.to(device)
        skeletons = ops.soft_skeleton(leaf, counts)
        skeletons.square().sum().backward()
        results.append((skeletons.detach().cpu(), leaf.grad.cpu()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_erosion_depth(mask):
    assert torch.equal(ops.erosion_depth(mask.cuda()).cpu(), ops.erosion_depth(mask))


def test_kernels_wait_for_the_stream_in_which_torch_works(mask):
    expected = ops.component_cells(mask)
    side = torch.cuda.Stream()
    here = mask.cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        busy = torch.rand(4096, 4096, device="cuda")
        for _ in range(20):
            busy = busy @ busy / 4096
        late = here & (busy.sum() > -1)  # known only when the multiplications are done
        cells = ops.component_cells(late)
    side.synchronize()
    assert torch.equal(cells.cpu(), expected)


def test_scratch_memory_is_bounded(mask):
    many = mask.repeat(4, 2, 1, 1, 1).cuda()
    ops.component_cells(many)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.component_cells(many)
    assert torch.cuda.max_memory_allocated() - before < 4 * 4 * many.numel() + 2**28 + 2**24


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_second_gpu(mask):
    assert torch.equal(ops.component_cells(mask.to("cuda:1")).cpu(), ops.component_cells(mask))
