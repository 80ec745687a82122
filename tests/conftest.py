"""What all tests share: volumes with a few components, seeded."""

import os

import numpy as np
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)


def _boxes(shape, rng, count, largest):
    volume = np.zeros(shape, dtype=np.int64)
    for _ in range(count):
        size = rng.integers(1, largest + 1, len(shape))
        start = [int(rng.integers(0, max(n - s, 0) + 1)) for n, s in zip(shape, size, strict=True)]
        label = int(rng.integers(1, 3))
        volume[tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))] = label
    return volume


@pytest.fixture
def label_maps(rng):
    """Function (batch, *shape) -> int64 label maps (B, 1, *S) with classes 0, 1, 2 and several components each."""

    def make(batch=2, shape=(12, 12, 12), count=6, largest=4):
        maps = np.stack([_boxes(shape, rng, count, largest) for _ in range(batch)])
        return torch.from_numpy(maps).unsqueeze(1)

    return make
