from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses.cldice import soft_skel
from scipy import ndimage

from numba_kernels import soft_skeleton, soft_skeleton_backward

F32 = np.float32


def naive_states(probs, iterations):
    """Volumes E[0..k+1] and skeletons S[-1..k]."""
    cross = ndimage.generate_binary_structure(probs.ndim, 1)
    volumes, skeletons = [probs], [np.zeros_like(probs)]
    for _ in range(iterations + 1):
        volumes.append(ndimage.minimum_filter(volumes[-1], footprint=cross, mode="nearest"))
        opened = ndimage.maximum_filter(volumes[-1], size=3, mode="nearest")
        ridge = np.maximum(volumes[-2] - opened, F32(0))
        before = skeletons[-1]
        skeletons.append(before + np.maximum(ridge - before * ridge, F32(0)))
    return volumes, skeletons


def place_of(value, volume, voxel, steps):
    """First place around the voxel that has the value, in the order of the steps."""
    for step in steps:
        other = tuple(v + s for v, s in zip(voxel, step, strict=True))
        if all(0 <= o < n for o, n in zip(other, volume.shape, strict=True)) and volume[other] == value:
            return other
    raise AssertionError(value)


def naive_backward(grad, probs, iterations):
    """Voxel by voxel, with the documented rule for equal values."""
    volumes, skeletons = naive_states(probs, iterations)
    block = list(product((-1, 0, 1), repeat=probs.ndim))
    cross = sorted((step for step in block if sum(map(abs, step)) <= 1), key=lambda step: (any(step), step))
    grad_skeleton, grad_eroded = grad.astype(float), np.zeros(probs.shape)
    for i in reversed(range(iterations + 1)):
        volume, eroded, before = volumes[i], volumes[i + 1], skeletons[i]
        grad_volume = np.zeros(probs.shape)
        opened = ndimage.maximum_filter(eroded, size=3, mode="nearest")
        for voxel in np.ndindex(probs.shape):
            ridge = volume[voxel] - opened[voxel]
            if ridge > 0 and ridge - before[voxel] * ridge > 0:
                share = grad_skeleton[voxel] * (1 - before[voxel])
                grad_skeleton[voxel] *= 1 - ridge
                grad_volume[voxel] += share
                grad_eroded[place_of(opened[voxel], eroded, voxel, block)] -= share
        for voxel in np.ndindex(probs.shape):
            grad_volume[place_of(eroded[voxel], volume, voxel, cross)] += grad_eroded[voxel]
        grad_eroded = grad_volume
    return grad_eroded


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(1, 7), min_size=2, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([2, 4, 1000]))  # few levels: many equal values
    probs = (rng.integers(0, levels, shape) / (levels - 1)).astype(F32)
    return probs, rng.standard_normal(shape).astype(F32), draw(st.integers(0, 6))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_equals_naive_twins(case):
    probs, grad, iterations = case
    copies = probs.copy(), grad.copy()
    skeleton = soft_skeleton(probs, iterations)
    assert skeleton.dtype == F32
    np.testing.assert_array_equal(skeleton, naive_states(probs, iterations)[1][-1])
    back = soft_skeleton_backward(grad, probs, iterations)
    assert back.dtype == F32
    np.testing.assert_allclose(back, naive_backward(grad, probs, iterations), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(copies, (probs, grad))


@pytest.mark.parametrize("shape", [(9, 10, 11), (1, 8, 9), (8, 1, 9), (8, 9, 1), (12, 13), (2, 1, 3)])
@pytest.mark.parametrize("iterations", [0, 1, 3, 8])
def test_equals_monai_forward_and_backward(shape, iterations):
    """All values differ, so there is one gradient only."""
    rng = np.random.default_rng(iterations)
    size = int(np.prod(shape))
    probs = (rng.permutation(size).reshape(shape) / size).astype(F32)
    grad = rng.standard_normal(shape).astype(F32)
    leaf = torch.tensor(probs[None, None], requires_grad=True)
    expected = soft_skel(leaf, iterations)
    expected.backward(torch.tensor(grad[None, None]))
    np.testing.assert_allclose(soft_skeleton(probs, iterations), expected.detach()[0, 0], atol=1e-6)
    np.testing.assert_allclose(soft_skeleton_backward(grad, probs, iterations), leaf.grad[0, 0], atol=1e-5)


@pytest.mark.parametrize("iterations", [10, 11, 30])
def test_states_that_are_computed_again_are_the_same(iterations):
    """Beyond 10 iterations not all of them are kept."""
    rng = np.random.default_rng(iterations)
    probs, grad = rng.random((2, 3, 60)).astype(F32), rng.standard_normal((2, 3, 60)).astype(F32)
    probs.sort(axis=2)  # erodes for long
    back = soft_skeleton_backward(grad, probs, iterations)
    np.testing.assert_allclose(back, naive_backward(grad, probs, iterations), rtol=1e-4, atol=1e-5)


def test_gradient_is_the_slope():
    rng = np.random.default_rng(0)
    probs = (rng.permutation(60).reshape(3, 4, 5) / 60).astype(F32)
    grad, direction = rng.standard_normal((2, 3, 4, 5))
    step = 1e-3
    ends = [(soft_skeleton(probs + sign * step * direction, 2) * grad).sum() for sign in (-1, 1)]
    slope = (soft_skeleton_backward(grad, probs, 2) * direction).sum()
    assert (ends[1] - ends[0]) / (2 * step) == pytest.approx(slope, rel=1e-2)


def bar():
    probs = np.zeros((5, 9), F32)
    probs[1:4, 1:8] = 1
    return probs


def test_bar_becomes_its_middle_line():
    for iterations in (1, 3, 10):
        line = soft_skeleton(bar(), iterations)
        np.testing.assert_array_equal(np.argwhere(line == 1), [(2, x) for x in range(2, 7)])
        assert line.sum() == 5
    assert not soft_skeleton(bar(), 0).any()  # too few iterations for its thickness
    faint = np.where(bar() > 0, F32(0.9), F32(0.1))
    faint[1:4, 4] = 0.3
    assert soft_skeleton(faint, 3).sum() == pytest.approx(2.2, abs=1e-5)


def test_vessel_that_narrows_breaks():
    """What is known of this skeleton: the voxel where the vessel narrows is lost."""
    mask = np.zeros((5, 5, 10), F32)
    mask[1:4, 1:4, 1:5] = mask[2, 2, 5:9] = 1
    line = soft_skeleton(mask, 10)
    np.testing.assert_array_equal(np.argwhere(line), [(2, 2, x) for x in (2, 3, 4, 6, 7, 8)])


@pytest.mark.parametrize("shape", [(7, 7), (4, 5, 6), (1, 1, 1), (0, 3), (0, 3, 3), (3, 0, 3), (3, 3, 0)])
def test_constant_volumes_have_no_skeleton_and_no_gradient(shape):
    for value in (0, 0.5, 1):
        probs = np.full(shape, value, F32)
        assert not soft_skeleton(probs, 3).any()
        assert not soft_skeleton_backward(np.ones(shape), probs, 3).any()


def test_single_voxel_is_its_own_skeleton():
    probs = np.zeros((5, 5, 5), F32)
    probs[2, 2, 2] = 1
    for iterations in (0, 2):
        np.testing.assert_array_equal(soft_skeleton(probs, iterations), probs)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("layout", ["C", "F", "strided", "read-only"])
def test_dtype_and_memory_order_do_not_matter(dtype, layout):
    values = (np.random.default_rng(1).integers(0, 16, (5, 6, 7)) / 16).astype(dtype)
    probs = values.copy()
    if layout == "F":
        probs = np.asfortranarray(probs)
    elif layout == "strided":
        probs = np.repeat(probs, 2, axis=0)[::2]
    elif layout == "read-only":
        probs.flags.writeable = False
    np.testing.assert_array_equal(soft_skeleton(probs, 2), soft_skeleton(values.astype(F32), 2))
    np.testing.assert_array_equal(
        soft_skeleton_backward(probs, probs, 2), soft_skeleton_backward(values.astype(F32), values.astype(F32), 2)
    )
    np.testing.assert_array_equal(probs, values)


def test_not_a_number_stays_within_bounds():
    probs = np.full((4, 4, 4), np.nan, F32)
    assert soft_skeleton(probs, 2).shape == probs.shape
    assert soft_skeleton_backward(np.ones_like(probs), probs, 2).shape == probs.shape


@pytest.mark.parametrize(
    ("probs", "iterations", "error", "words"),
    [
        (np.zeros((3, 3), int), 1, TypeError, "int64"),
        (np.zeros(3), 1, ValueError, r"\(3,\)"),
        (np.zeros((1, 1, 3, 3, 3)), 1, ValueError, "2-D or 3-D"),
        (np.zeros((3, 3)), -1, ValueError, "got -1"),
    ],
)
def test_bad_input_is_refused(probs, iterations, error, words):
    with pytest.raises(error, match=words):
        soft_skeleton(probs, iterations)
    with pytest.raises(error, match=words):
        soft_skeleton_backward(probs, probs, iterations)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        soft_skeleton_backward(np.zeros((2, 3)), np.zeros((3, 2)), 1)
