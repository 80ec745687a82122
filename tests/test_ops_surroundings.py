"""The voxels around a mask, against loops that ask each of them."""

import itertools

import pytest
import torch

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import surroundings


def naive(mask):
    """Rows of places in ``mask.flatten()``, voxel by voxel."""
    places, shape = torch.arange(mask.numel()).reshape(mask.shape), mask.shape[2:]
    rows = []
    for sample in range(len(mask)):
        for at in itertools.product(*map(range, shape)):
            row = []
            for step in itertools.product((-1, 0, 1), repeat=len(shape)):
                to = tuple(a + s for a, s in zip(at, step, strict=True))
                inside = all(0 <= t < size for t, size in zip(to, shape, strict=True))
                row.append(int(places[(sample, 0, *to)]) if inside and mask[(sample, 0, *to)] else -1)
            if max(row) >= 0:
                rows.append(row)
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3 ** len(shape))


@pytest.mark.parametrize("shape", [(2, 1, 4, 5, 6), (2, 1, 5, 7), (1, 1, 1, 1, 3), (3, 1, 1, 4), (1, 1, 1, 1)])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_equals_loops(shape, share):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    assert torch.equal(surroundings(mask), naive(mask))


def test_opcheck():
    mask = torch.rand(2, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.1
    torch.library.opcheck(torch.ops.imbal.surroundings.default, (mask,))


def test_other_dimensions_are_refused():
    with pytest.raises(ConfigError, match="got shape"):
        surroundings(torch.zeros(2, 3, dtype=torch.bool))
