"""Operators on skeletons, thickness and contacts: tensors in, the kernels' answers out, under autograd and compile."""

import numba
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import numba_kernels
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import (
    calibre_sums,
    class_contacts,
    distance,
    erosion_depth,
    local_thickness,
    skeletonize,
    soft_skeleton,
    tube,
)
from nnunet_imbal.ops.soft_skeleton import _by_pooling

SPACING = (3.0, 1.0, 1.0)


@pytest.fixture
def probs():
    return torch.rand(2, 3, 6, 7, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask(probs):
    """Blobs with an empty and a full channel."""
    blobs = torch.nn.functional.avg_pool3d(probs, 3, 1, 1) > 0.45
    blobs[1, 1], blobs[1, 2] = False, True
    return blobs


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", request.param)
    return request.param


def each_channel(function, tensor):
    return np.stack([[function(channel.numpy()) for channel in sample] for sample in tensor])


class TestSoftSkeleton:
    def test_equals_the_kernel(self, probs, threads):
        found = soft_skeleton(probs, 2)
        np.testing.assert_array_equal(found, each_channel(lambda p: numba_kernels.soft_skeleton(p, 2), probs))

    def test_each_channel_has_its_own_iterations(self, probs):
        counts = torch.tensor([[0, 1, 2], [3, 2, 1]])
        found = soft_skeleton(probs, counts)
        for b, c in np.ndindex(2, 3):
            assert torch.equal(found[b, c], soft_skeleton(probs, int(counts[b, c]))[b, c])

    @pytest.mark.parametrize("shape", [(6, 7, 8), (1, 7, 8), (9, 10)])
    def test_double_precision_gives_the_same_values_and_gradients(self, shape):
        probs = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(1))
        weights = torch.rand(probs.shape, generator=torch.Generator().manual_seed(2))
        results = []
        for dtype in (torch.float32, torch.float64):
            leaf = probs.to(dtype, copy=True).requires_grad_()
            skeleton = soft_skeleton(leaf, 3)
            (skeleton * weights).sum().backward()
            results.append((skeleton.detach().float(), leaf.grad.float()))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)

    def test_gradcheck(self):
        probs = torch.rand(1, 2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        assert gradcheck(lambda p: soft_skeleton(p, 1), (probs.requires_grad_(),))

    def test_gradient_in_single_precision_equals_differences(self, probs):
        weights = torch.rand(probs.shape, generator=torch.Generator().manual_seed(4))
        leaf = probs.clone().requires_grad_()
        (soft_skeleton(leaf, 2) * weights).sum().backward()
        step = torch.rand(probs.shape, generator=torch.Generator().manual_seed(5)).double() * 1e-6
        ahead, behind = ((_by_pooling(p, torch.full((2, 3), 2)) * weights).sum() for p in (probs + step, probs - step))
        assert (leaf.grad * step).sum().item() == pytest.approx((ahead - behind).item() / 2, rel=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_raised(self, probs, dtype):
        half = probs.to(dtype)
        assert torch.equal(soft_skeleton(half, 1), soft_skeleton(half.float(), 1))

    def test_only_the_input_is_kept_for_the_way_back(self, probs):
        """Chained poolings keep 64 + 128 k bytes per voxel."""
        saved = []

        def note(tensor):
            saved.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            soft_skeleton(probs.requires_grad_(), 10)
        assert sum(saved) <= probs.numel() * 4 + 8 * 6

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((torch.ones(1, 1, 4, 4).int(), 1), "int32"),
            ((torch.ones(1, 1, 4), 1), r"\(1, 1, 4\)"),
            ((torch.ones(1, 1, 4, 4), -1), "0 or more, got -1"),
            ((torch.ones(2, 3, 4, 4), torch.ones(2).int()), r"shape \(2, 3\), got torch.int32 of shape \(2,\)"),
            ((torch.ones(1, 1, 4, 4), torch.ones(1, 1)), "integers"),
        ],
    )
    def test_bad_input_is_refused(self, arguments, words):
        with pytest.raises(ConfigError, match=words):
            soft_skeleton(*arguments)


class TestErosionDepth:
    def test_is_the_number_of_erosions(self, mask):
        depth = erosion_depth(mask)
        for b, c in np.ndindex(2, 2):
            left, count = mask[b, c].numpy().astype(np.float32), 0
            while left.any():
                left = np.minimum.reduce([self._lowest(left, axis) for axis in range(3)])
                count += 1
            assert depth[b, c] == count
        assert depth[1].tolist()[1:] == [0, 0]  # empty, and without any outside

    @staticmethod
    def _lowest(volume, axis):
        padded = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        parts = [np.take(padded, range(k, k + volume.shape[axis]), axis) for k in range(3)]
        return np.minimum.reduce(parts)

    def test_a_thick_tube_never_loses_its_skeleton(self):
        y, x = torch.meshgrid(torch.arange(21), torch.arange(21), indexing="ij")
        for radius in range(1, 9):
            disc = ((y - 10) ** 2 + (x - 10) ** 2 <= radius**2).view(1, 1, 1, 21, 21).expand(1, 1, 5, 21, 21)
            assert soft_skeleton(disc.float(), erosion_depth(disc)).sum() > 0
        assert soft_skeleton(disc.float(), 3).sum() == 0  # a fixed number that is too small: nothing left to lose

    def test_in_two_dimensions_away_from_the_edge(self):
        mask = torch.zeros(1, 1, 9, 12, dtype=torch.bool)
        mask[..., 2:7, 4:9] = True
        assert erosion_depth(mask).item() == 3


class TestSkeleton:
    def test_equals_the_kernel(self, mask, threads):
        found = skeletonize(mask)
        assert found.dtype == torch.bool
        np.testing.assert_array_equal(found, each_channel(numba_kernels.skeletonize, mask))
        np.testing.assert_array_equal(tube(found, 1), each_channel(lambda s: numba_kernels.tube(s, 1), found))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
    def test_label_maps_keep_their_labels(self, mask, dtype):
        labels = (mask[:, :1] + 2 * (mask[:, 1:2] & ~mask[:, :1])).to(dtype)
        found = skeletonize(labels)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[0, 0], numba_kernels.skeletonize(labels[0, 0].numpy()))

    def test_no_component_is_lost(self):
        boxes = torch.zeros(1, 1, 20, 20, 20, dtype=torch.bool)
        boxes[..., 1:3, 1:3, 1:3] = boxes[..., 6:10, 6:10, 6:14] = boxes[..., 15, 15, 15] = True
        _, count = numba_kernels.connected_components(skeletonize(boxes)[0, 0].numpy(), 26)
        assert count == 3

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda: skeletonize(torch.ones(1, 1, 4, 4)), "float32"),
            (lambda: skeletonize(torch.ones(4, 4).bool()), r"\(4, 4\)"),
            (lambda: tube(torch.ones(1, 1, 4, 4), -1), "got -1"),
        ],
    )
    def test_bad_input_is_refused(self, call, words):
        with pytest.raises(ConfigError, match=words):
            call()


class TestThickness:
    @pytest.mark.parametrize(
        ("operator", "kernel"),
        [(distance, numba_kernels.distance), (local_thickness, numba_kernels.local_thickness)],
    )
    def test_equals_the_kernel(self, mask, threads, operator, kernel):
        found = operator(mask, SPACING)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found, each_channel(lambda m: kernel(m, SPACING), mask))
        assert not found[1, 1].any()
        assert found[1, 2].isinf().all()

    @pytest.mark.parametrize("operator", [distance, local_thickness])
    @pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0)])
    def test_bad_spacing_is_refused(self, mask, operator, spacing):
        with pytest.raises(ConfigError, match="3 positive numbers"):
            operator(mask, spacing)


class TestContacts:
    def test_equals_the_kernel(self, threads):
        labels = torch.randint(0, 4, (2, 1, 5, 6, 7), generator=torch.Generator().manual_seed(0))
        found = class_contacts(labels, 4, 6)
        for b in range(2):
            np.testing.assert_array_equal(found[b], numba_kernels.class_contacts(labels[b, 0].numpy(), 4, 6))
        assert torch.equal(class_contacts(labels, 4), class_contacts(labels, 4, 26))

    def test_bad_input_is_refused(self):
        with pytest.raises(ConfigError, match=r"\(B, 1, \.\.\.\), got torch.int64 of shape \(1, 2, 4, 4\)"):
            class_contacts(torch.zeros(1, 2, 4, 4, dtype=torch.int64), 2)
        with pytest.raises(ConfigError, match="float32"):
            class_contacts(torch.zeros(1, 1, 4, 4), 2)
        with pytest.raises(ValueError, match=r"0\.\.1"):
            class_contacts(torch.full((1, 1, 4, 4), 3), 2)


class TestCalibre:
    """The values are compared with obvious loops where the cbDice loss is tested."""

    @pytest.mark.parametrize("shape", [(6, 7, 8), (8, 9)])
    def test_gradcheck(self, shape):
        generator = torch.Generator().manual_seed(0)
        target = torch.zeros(1, 2, *shape, dtype=torch.bool)
        target[0, 0, 1:5, 1:6], target[0, 1, 2] = True, True
        probs = (target * 0.4 + 0.55 * torch.rand(target.shape, generator=generator)).double()
        assert gradcheck(lambda p: calibre_sums(p, target), (probs.requires_grad_(),))

    def test_different_shapes_are_refused(self, probs, mask):
        with pytest.raises(ConfigError, match=r"\(2, 3, 6, 7, 8\) and \(2, 2, 6, 7, 8\)"):
            calibre_sums(probs, mask[:, :2])


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (2, 0, 4, 4), (1, 1, 0, 4), (1, 2, 1, 1), (1, 1, 1, 1, 1)])
def test_empty_and_tiny_tensors(shape):
    mask = torch.ones(shape, dtype=torch.bool)
    for found in (skeletonize(mask), tube(mask), distance(mask), local_thickness(mask)):
        assert found.shape == shape
    assert erosion_depth(mask).shape == shape[:2]
    assert calibre_sums(mask.float(), mask).shape == (4, *shape[:2])
    for dtype in (torch.float32, torch.float64):
        probs = mask.to(dtype).requires_grad_()
        soft_skeleton(probs, 1).sum().backward()
        assert probs.grad.shape == shape


def test_non_contiguous_tensors(probs, mask):
    for tensor, operator in [
        (probs, lambda p: soft_skeleton(p, 2)),
        *((mask, f) for f in (skeletonize, distance, tube)),
    ]:
        turned = tensor.transpose(2, 4).contiguous().transpose(2, 4)
        assert not turned.is_contiguous()
        assert torch.equal(operator(turned), operator(tensor))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck looks at non-leaves
def test_opcheck(probs, mask):
    counts = torch.tensor([[0, 1, 2], [3, 2, 1]])
    labels = mask[:, :1].long()
    for operator, arguments in {
        torch.ops.imbal.soft_skeleton: (probs.requires_grad_(), counts),
        torch.ops.imbal.soft_skeleton_backward: (torch.rand_like(probs), probs.detach(), counts),
        torch.ops.imbal.erosion_depth: (mask,),
        torch.ops.imbal.skeletonize: (labels,),
        torch.ops.imbal.tube: (mask, 2),
        torch.ops.imbal.distance: (mask, list(SPACING)),
        torch.ops.imbal.local_thickness: (mask, list(SPACING)),
        torch.ops.imbal.class_contacts: (labels, 2, 26),
        torch.ops.imbal.calibre_sums: (probs, mask, list(SPACING)),
        torch.ops.imbal.calibre_sums_backward: (torch.rand(4, 2, 3), probs.detach(), mask, list(SPACING)),
    }.items():
        torch.library.opcheck(operator.default, arguments)


def everything(probs, mask):
    """A function of all operators that a compiler must not break into pieces."""
    skeleton = soft_skeleton(probs, erosion_depth(mask))
    line = skeletonize(mask)
    weights = distance(mask).clamp(max=9) + local_thickness(mask).clamp(max=9) + tube(line)
    contacts = class_contacts(mask[:, :1].long(), 2)
    return (skeleton * weights).sum() + contacts.sum() + calibre_sums(probs, mask).sum()


def test_compile_without_graph_break(probs, mask):
    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    leaf, twin = (probs.clone().requires_grad_() for _ in range(2))
    found, expected = compiled(leaf, mask), everything(twin, mask)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(leaf.grad, twin.grad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu(probs, mask):
    results = []
    for device in ("cpu", "cuda"):
        leaf = probs.to(device, copy=True).requires_grad_()
        value = everything(leaf, mask.to(device))
        value.backward()
        results.append((value.detach().cpu(), leaf.grad.cpu()))
    torch.testing.assert_close(*results)
