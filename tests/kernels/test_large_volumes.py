"""Each kernel once on 512 x 512 x 512 voxels: indices, counts and memory that small volumes never reach.

The volumes are one block of 8 x 8 x 8 voxels, repeated, so that the answer is known.
"""

import numpy as np
import pytest

import numba_kernels

pytestmark = pytest.mark.slow

SIDE, PERIOD = 512, 8
TIMES = (SIDE // PERIOD,) * 3
COUNT = TIMES[0] ** 3


def tiled(block, times=TIMES):
    return np.tile(block, times)


def block_with(start, stop, dtype=bool):
    block = np.zeros((PERIOD,) * 3, dtype)
    block[(slice(start, stop),) * 3] = 1
    return block


def test_components_number_more_than_16_bits_can_count():
    mask = tiled(block_with(2, 5))
    components, count = numba_kernels.connected_components(mask)
    assert count == COUNT > 65_535
    firsts = components[2::PERIOD, 2::PERIOD, 2::PERIOD]
    np.testing.assert_array_equal(firsts.ravel(), np.arange(1, COUNT + 1))
    for shift in np.ndindex(3, 3, 3):
        others = tuple(slice(2 + s, None, PERIOD) for s in shift)
        np.testing.assert_array_equal(components[others], firsts)
    assert np.count_nonzero(components) == 27 * COUNT


def test_sizes_and_large_components():
    mask = tiled(block_with(1, 4))
    mask[-3:, -3:, -3:] = True
    stats = numba_kernels.component_stats(mask)
    assert stats.sizes.shape == (COUNT + 1,)
    assert set(stats.sizes.tolist()) == {27}
    assert stats.boxes[-1].tolist() == [[SIDE - 3, SIDE]] * 3
    np.testing.assert_allclose(stats.centroids[-1], SIDE - 2)
    mask[-4, -3, -3] = True
    largest = numba_kernels.largest_component(mask)
    assert largest.sum() == 28
    np.testing.assert_array_equal(numba_kernels.remove_small_components(mask, 28), largest)


def test_nearest_component_and_distance():
    seeds = tiled(block_with(4, 5))
    labels = np.zeros(seeds.shape, np.int32)
    labels[seeds] = np.arange(1, COUNT + 1)
    cells, distance = numba_kernels.nearest_component(labels, return_distance=True)
    steps = (np.arange(PERIOD) - 4.0) ** 2
    expected = np.sqrt(steps[:, None, None] + steps[:, None] + steps).astype(np.float32)
    np.testing.assert_array_equal(distance, tiled(expected))
    blocks = cells.reshape(TIMES[0], PERIOD, TIMES[1], PERIOD, TIMES[2], PERIOD)
    own = blocks[:, 1:, :, 1:, :, 1:]  # at 0 the block before is as near
    numbers = np.arange(1, COUNT + 1).reshape(TIMES)[:, None, :, None, :, None]
    assert (own == numbers).all()


def test_depth():
    depth = numba_kernels.distance(tiled(~block_with(4, 5)), (1.0, 1.0, 2.0))
    assert depth.max() == pytest.approx(np.sqrt(16 + 16 + 64))
    assert np.count_nonzero(depth == 0) == COUNT


def test_skeleton_and_tube():
    block = block_with(2, 5)
    skeleton = numba_kernels.skeletonize(tiled(block))
    np.testing.assert_array_equal(skeleton, tiled(numba_kernels.skeletonize(block)))
    assert np.count_nonzero(skeleton) >= COUNT
    point = block_with(3, 4)
    np.testing.assert_array_equal(numba_kernels.tube(tiled(point)), tiled(numba_kernels.tube(point)))


def test_local_thickness():
    block = block_with(2, 5)
    thickness = numba_kernels.local_thickness(tiled(block))
    np.testing.assert_array_equal(thickness, tiled(numba_kernels.local_thickness(block)))


def test_class_contacts():
    block = block_with(2, 5, np.uint8)
    block[3, 3, 3] = 2
    contacts = numba_kernels.class_contacts(tiled(block), 3)
    np.testing.assert_array_equal(contacts, COUNT * numba_kernels.class_contacts(block, 3))


def test_sums_of_cells_and_their_gradient():
    cells = np.zeros((SIDE,) * 3, np.int32)
    cells[SIDE // 2 :] = 70_000
    probs, target = np.full(cells.shape, 0.25, np.float32), cells > 0
    half = cells.size // 2
    sums = numba_kernels.cell_overlap(probs, target, cells, 70_000)
    assert sums[:, 0].tolist() == [0, half / 4, 0]
    assert sums[:, -1].tolist() == [half / 4, half / 4, half]
    assert not sums[:, 1:-1].any()
    del probs
    back = numba_kernels.cell_overlap_backward(sums.astype(np.float32), target, cells)
    assert (back[: SIDE // 2] == half / 4).all()
    assert (back[SIDE // 2 :] == half / 2).all()


def test_soft_skeleton():
    """The way back on an eighth of the volume: it needs 10 volumes of float32 and more."""
    block = block_with(2, 5, np.float32) * np.float32(0.75)
    inner = (slice(PERIOD, 2 * PERIOD),) * 3
    expected = numba_kernels.soft_skeleton(np.tile(block, (3, 3, 3)), 2)[inner]
    skeleton = numba_kernels.soft_skeleton(tiled(block), 2)
    np.testing.assert_array_equal(skeleton, tiled(expected))
    few = (TIMES[0] // 8, *TIMES[1:])
    small = np.tile(block, (3, 3, 3))
    slope = numba_kernels.soft_skeleton_backward(np.ones_like(small), small, 2)[inner]
    probs = np.tile(block, few)
    np.testing.assert_array_equal(
        numba_kernels.soft_skeleton_backward(np.ones_like(probs), probs, 2), np.tile(slope, few)
    )
