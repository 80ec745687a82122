"""The plain twins of the instructions that compiled kernels use instead."""

import numba
import numpy as np
import pytest

from numba_kernels._bits import add, count_ones, trailing_zeros
from numba_kernels._jit import inlined, kernel
from numba_kernels._vector import equal_bits


@kernel
def compiled_bits(word):
    return trailing_zeros(word), count_ones(word)


@inlined
def _compiled_add(a, b):
    return add(a, b)


@kernel
def compiled_equal(line, i, j):
    return equal_bits(line, i, j)


def test_bits_of_words():
    rng = np.random.default_rng(0)
    words = [1, 2**63, 2**64 - 1, *rng.integers(1, 2**63, 50).tolist(), *(1 << rng.integers(0, 63, 20)).tolist()]
    for word in map(np.uint64, words):
        expected = bin(word)[::-1].index("1"), bin(word).count("1")
        assert (trailing_zeros(word), count_ones(word)) == expected
        assert compiled_bits(word) == expected


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_sum_keeps_the_dtype(dtype):
    a, b = dtype(2**30), dtype(-5)
    assert add(a, b) == _compiled_add(a, b) == 2**30 - 5
    assert add(a, b).dtype == dtype
    if not numba.config.DISABLE_JIT:
        assert numba.from_dtype(np.dtype(dtype)) in {each.return_type for each in _compiled_add.nopython_signatures}


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_comparison_of_64_voxels(dtype):
    line = np.random.default_rng(1).integers(0, 3, 200).astype(dtype)
    for i, j in ((0, 1), (7, 7), (64, 3), (136, 100)):
        expected = sum(1 << k for k in range(64) if line[i + k] == line[j + k])
        assert int(equal_bits(line, i, j)) == expected
        assert int(compiled_equal(line, i, j)) == expected
