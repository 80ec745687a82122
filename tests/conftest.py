"""What all tests share: volumes with a few components, seeded; and what several test processes must not share."""

import os

import numpy as np
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "agg")


def pytest_configure(config):
    """Give each of several test processes kernels of its own: numba's cache mixes up what two write at once."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:
        folder = config.rootpath / ".pytest_cache" / "numba" / worker
        os.environ["NUMBA_CACHE_DIR"] = str(folder)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that all processes of this test run see."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


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
