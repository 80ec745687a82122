"""Class frequencies as a loader draws them, and weights by the effective number of samples."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.frequencies import count_voxels, effective_number_weights, measure_prior
from nnunet_imbal.labels import LabelSpec


def test_shares_by_hand(rng):
    maps = [torch.from_numpy(rng.integers(0, 4, (2, 1, 5, 6, 7))) for _ in range(3)]
    voxels = torch.cat(maps).flatten().tolist()
    expected = [voxels.count(c) / len(voxels) for c in range(5)]
    assert measure_prior(maps, 5) == pytest.approx(expected)
    assert measure_prior((m.to(torch.int16) for m in maps), 5) == pytest.approx(expected)


def test_ignored_voxels_do_not_count():
    labels = torch.tensor([0, 0, 0, 1, 2, 2]).view(1, 1, 1, 6)
    assert measure_prior([labels], 2, LabelSpec(ignore_label=2)) == [0.75, 0.25]
    with pytest.raises(DataError, match="no voxel of the given batches is labelled"):
        measure_prior([torch.full((1, 1, 2, 2), 2)], 2, LabelSpec(ignore_label=2))
    with pytest.raises(DataError, match="no voxel"):
        measure_prior([], 2)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int16, torch.float32])
def test_regions_overlap(dtype):
    outer, inner, ignored = [1, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1]
    target = torch.tensor([outer, inner, ignored]).view(1, 3, 1, 6).to(dtype)
    assert count_voxels(target, 2, LabelSpec(has_regions=True, ignore_label=9)).tolist() == [3, 1, 4]
    assert measure_prior([target[:, :2]], 2, LabelSpec(has_regions=True)) == pytest.approx([4 / 6, 2 / 6])


def test_impossible_label():
    with pytest.raises(ValueError, match="label 7"):
        measure_prior([torch.full((1, 1, 2, 2), 7)], 3)


def test_a_loader_that_forces_foreground():
    """What is measured is what is drawn, not what the dataset holds: 1 voxel in 4096, but most patches show it."""
    from monai.data import DataLoader, Dataset  # not above: the two ranks below import this file as well
    from monai.transforms import Compose, RandCropByPosNegLabeld

    labels = torch.zeros(1, 64, 64)
    labels[0, 30, 30] = 1
    crop = RandCropByPosNegLabeld(["label"], "label", (8, 8), pos=9, neg=1, num_samples=1)
    crop.set_random_state(0)
    loader = DataLoader(Dataset([{"label": labels}] * 200, Compose([crop])), batch_size=4)
    prior = measure_prior((batch["label"] for batch in loader), 2)
    assert prior[1] == pytest.approx(0.9 / 64, rel=0.1)


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    labels = torch.full((1 + rank, 1, 2, 2), rank)  # twice as much class 1 on the second rank
    assert measure_prior([labels], 2) == pytest.approx([1 / 3, 2 / 3])
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_agree(tmp_path):
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2, join=True)


@pytest.mark.parametrize(
    ("beta", "weights"),
    [(0.99, (1, 1, 1)), (0.9999, (0.837508, 0.837612, 1.324880)), (0.999999, (0.044421, 0.306278, 2.649301))],
)
def test_golden_weights(beta, weights):
    assert effective_number_weights([9e5, 9e4, 1e4], beta) == pytest.approx(weights, abs=1e-6)


def test_limits_of_beta():
    counts = np.array([50, 20, 4])
    assert effective_number_weights(counts, 0) == pytest.approx([1, 1, 1])
    inverse = 1 / counts
    assert effective_number_weights(counts, 1 - 1e-9) == pytest.approx(3 * inverse / inverse.sum(), rel=1e-6)


def test_cap():
    free = effective_number_weights([1e6, 1e6, 1], 1 - 1e-7, cap=None)
    assert free[2] / free[0] > 1e4
    capped = effective_number_weights([1e6, 1e6, 1], 1 - 1e-7)
    assert capped[2] / capped[0] == pytest.approx(10)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20).filter(any), st.none() | st.floats(0, 0.999999))
def test_rarer_never_weighs_less(counts, beta):
    weights = effective_number_weights(counts, beta)
    assert weights.sum() == pytest.approx(len(counts))
    assert (weights > 0).all()
    assert (np.diff(weights[np.argsort(counts)]) <= 1e-12).all()


@pytest.mark.parametrize("counts", [[], [0, 0], [-1, 2], [float("nan")], [[1, 2]]])
def test_impossible_counts(counts):
    with pytest.raises(ConfigError, match="counts must be"):
        effective_number_weights(counts)


@pytest.mark.parametrize("options", [{"beta": 1}, {"beta": -0.1}, {"cap": 0.5}, {"cap": float("nan")}])
def test_impossible_options(options):
    with pytest.raises(ConfigError, match="beta must be from 0"):
        effective_number_weights([1, 2], **options)
