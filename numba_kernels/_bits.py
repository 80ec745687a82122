"""Bit tricks that numba lacks: one processor instruction each.

Every function here is plain Python that says what it means. Compiled callers get the instruction in its place
(``overload``); with ``NUMBA_DISABLE_JIT=1`` the plain function itself runs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

__all__ = ["add", "count_ones", "trailing_zeros"]


def trailing_zeros(word: np.uint64) -> int:
    """Position of the lowest set bit of a word that is not 0: uint64 -> 0..63."""
    value = int(word)
    return (value & -value).bit_length() - 1


def count_ones(word: np.uint64) -> int:
    """Count the set bits: uint64 -> 0..64."""
    return bin(int(word)).count("1")


def add(a: Any, b: Any) -> Any:
    """Add two integers of one dtype without widening them.

    numba makes int32 + int32 an int64, which halves the number of lanes in a vector.
    """
    return a.dtype.type(int(a) + int(b))


# What follows runs inside the compiler, never with NUMBA_DISABLE_JIT=1, where line coverage is counted.


@intrinsic  # type: ignore[misc,unused-ignore]
def _trailing_zeros(context: Any, word: Any) -> tuple[Any, Callable[..., Any]]:  # pragma: no cover
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.cttz(values[0], context.get_constant(types.boolean, True))

    return types.int64(types.uint64), generate


@intrinsic
def _count_ones(context: Any, word: Any) -> tuple[Any, Callable[..., Any]]:  # pragma: no cover
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.ctpop(values[0])

    return types.int64(types.uint64), generate


@intrinsic
def _add(context: Any, a: Any, b: Any) -> tuple[Any, Callable[..., Any]]:  # pragma: no cover
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.add(*values)

    return a(a, a), generate


@overload(trailing_zeros, strict=False)
def _compiled_trailing_zeros(word: Any) -> Callable[..., Any]:  # pragma: no cover
    return lambda word: _trailing_zeros(word)


@overload(count_ones, strict=False)
def _compiled_count_ones(word: Any) -> Callable[..., Any]:  # pragma: no cover
    return lambda word: _count_ones(word)


@overload(add, strict=False)
def _compiled_add(a: Any, b: Any) -> Callable[..., Any]:  # pragma: no cover
    return lambda a, b: _add(a, b)
