"""GPU kernels for depth, thickness and centre lines in numba's simulator. Run by test_simulator.py."""

import importlib

import numpy as np
import pytest
from numba import config

import numba_kernels as cpu
from numba_kernels import cuda as gpu

pytestmark = pytest.mark.skipif(not config.ENABLE_CUDASIM, reason="needs NUMBA_ENABLE_CUDASIM=1")

SHAPES = [(3, 4, 5), (1, 4, 5), (4, 1, 4), (4, 3, 1), (5, 6), (1, 6), (1, 1)]


class FewThreads(gpu.NumpyDevice):
    """Threads of the simulator are costly where they wait for each other."""

    threads = 4


def masks(shape, seed=0):
    """Random masks of three densities, empty, full."""
    rng = np.random.default_rng(seed)
    densities = np.array([0.3, 0.6, 0.95, -1, 2]).reshape(-1, *(1,) * len(shape))
    return rng.random((5, *shape)) < densities


def assert_equal_cpu(found, function, batch):
    for item in range(len(batch)):
        expected = function(batch[item])
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found[item], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_skeletons_of_masks(shape):
    assert_equal_cpu(gpu.skeletonize(FewThreads(), masks(shape)), cpu.skeletonize, masks(shape))


@pytest.mark.parametrize(("dtype", "classes"), [(np.uint8, (1, 2)), (np.int64, (-5, 11))])
def test_skeletons_of_classes_that_touch(dtype, classes):
    """-5 and 11 are equal modulo 16: one block thins both."""
    rng = np.random.default_rng(1)
    blocks = rng.choice(classes, (2, 2, 2, 2)).repeat(2, 1).repeat(2, 2).repeat(3, 3)
    labels = (blocks * (rng.random(blocks.shape) < 0.95)).astype(dtype)
    assert_equal_cpu(gpu.skeletonize(FewThreads(), labels), cpu.skeletonize, labels)


def test_skeletons_of_more_maps_than_blocks(monkeypatch):
    """A block goes on with another map, and another launch with the rest of them."""
    batch = np.concatenate([masks((4, 4), seed) for seed in range(2)])
    monkeypatch.setattr(importlib.import_module("numba_kernels.cuda._batches"), "_SCRATCH", 6 * 16 * 20)
    assert_equal_cpu(gpu.skeletonize(FewThreads(), batch), cpu.skeletonize, batch)


def test_skeleton_does_not_depend_on_threads():
    batch = masks((3, 4, 4), seed=2)[1:3]
    alone = FewThreads()
    alone.blocks = alone.threads = 1
    np.testing.assert_array_equal(gpu.skeletonize(gpu.NumpyDevice(), batch), gpu.skeletonize(alone, batch))


def test_every_neighbourhood_is_judged_as_on_the_cpu():
    """The CPU looks its answers up in tables, the GPU counts: 4000 random neighbourhoods and the extreme ones."""
    module = importlib.import_module("numba_kernels.cuda.skeleton")
    thinning = importlib.import_module("numba_kernels._thinning")
    half, whole = thinning.half_table(), thinning.whole_table()
    rng = np.random.default_rng(3)
    bits = rng.random((4000, 27)) < rng.random((4000, 1))
    codes = [*(bits @ (1 << np.arange(27))).tolist(), 0, (1 << 27) - 1]
    for code in codes:
        others = code & ~(1 << 13)
        one_piece, same_euler = thinning._topology(np.uint64(others), half, whole)
        expected = one_piece and same_euler and others.bit_count() > 1
        assert module._is_deletable(code) == expected, bin(code)


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("shape", [(3, 4, 5), (5, 6), (1, 6)])
def test_tubes(shape, radius):
    batch = masks(shape) & masks(shape, seed=4)
    assert_equal_cpu(gpu.tube(FewThreads(), batch, radius), lambda mask: cpu.tube(mask, radius), batch)


def test_negative_radius_is_refused():
    with pytest.raises(ValueError, match="0 voxels or more, got -1"):
        gpu.tube(FewThreads(), masks((2, 2)), -1)


@pytest.mark.parametrize("spacing", [None, (3.0, 0.5, 1.5), (2.7, 0.71, 3**0.5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_distance_and_thickness(shape, spacing):
    steps = None if spacing is None else spacing[-len(shape) :]
    batch = masks(shape, seed=5).astype(np.uint8) * 7
    for signed in (False, True):
        found = gpu.distance(FewThreads(), batch, steps, signed=signed)
        assert_equal_cpu(found, lambda mask, signed=signed: cpu.distance(mask, steps, signed=signed), batch)
    found = gpu.local_thickness(FewThreads(), batch, steps)
    assert_equal_cpu(found, lambda mask: cpu.local_thickness(mask, steps), batch)


def test_thickness_of_a_ball_and_a_rod():
    z, y, x = np.indices((7, 7, 12)) - 3
    batch = ((z**2 + y**2 + x**2 <= 8) | ((z == 0) & (y == 0)))[None]
    assert_equal_cpu(gpu.local_thickness(FewThreads(), batch), cpu.local_thickness, batch)


def probabilities(shape, seed=0):
    """Random numbers, numbers with many ties, and a mask."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.random(shape), rng.integers(0, 4, shape) / 4, rng.random(shape) < 0.8]).astype(np.float32)


@pytest.mark.parametrize("iterations", [(0, 0, 0), (1, 0, 1), (2, 5, 0)])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5), (4, 1, 3), (5, 4, 1), (4, 5), (1, 6)])
def test_soft_skeleton_and_its_gradient(shape, iterations):
    probs = probabilities(shape)
    grad = np.random.default_rng(1).normal(size=probs.shape).astype(np.float32)
    counts, most = np.array(iterations), max(iterations)
    skeletons = gpu.soft_skeleton(FewThreads(), probs, counts, most)
    gradient = gpu.soft_skeleton_backward(FewThreads(), grad, probs, counts, most)
    assert skeletons.dtype == gradient.dtype == np.float32
    for item, count in enumerate(iterations):
        np.testing.assert_array_equal(skeletons[item], cpu.soft_skeleton(probs[item], count))
        expected = cpu.soft_skeleton_backward(grad[item], probs[item], count)
        np.testing.assert_allclose(gradient[item], expected, rtol=1e-5, atol=1e-6)


def test_soft_skeleton_works_in_parts(monkeypatch):
    probs, counts = probabilities((3, 4)), np.array([3, 1, 2])
    expected = gpu.soft_skeleton(FewThreads(), probs, counts, 3)
    gradient = gpu.soft_skeleton_backward(FewThreads(), probs, probs, counts, 3)
    monkeypatch.setattr(importlib.import_module("numba_kernels.cuda._batches"), "_SCRATCH", 1)
    np.testing.assert_array_equal(gpu.soft_skeleton(FewThreads(), probs, counts, 3), expected)
    np.testing.assert_array_equal(gpu.soft_skeleton_backward(FewThreads(), probs, probs, counts, 3), gradient)


def test_soft_skeleton_leaves_its_input_alone():
    probs = probabilities((3, 4))
    grad = probs.copy()
    gpu.soft_skeleton_backward(FewThreads(), grad, probs, np.array([2, 2, 2]), 2)
    np.testing.assert_array_equal(probs, probabilities((3, 4)))
    np.testing.assert_array_equal(grad, probs)


def test_negative_iterations_are_refused():
    probs, counts = probabilities((2, 2)), np.array([-1] * 3)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        gpu.soft_skeleton(FewThreads(), probs, counts, -1)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        gpu.soft_skeleton_backward(FewThreads(), probs, probs, counts, -1)
