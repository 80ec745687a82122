"""Comparisons of 64 voxels at a time that numba does not turn into vector instructions by itself.

As in :mod:`numba_kernels._bits`, the plain function says what it means and runs with ``NUMBA_DISABLE_JIT=1``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from numba_kernels._jit import inlined

__all__ = ["bits_of_label", "bits_of_others", "equal_bits"]

_ONE, _ALL = np.uint64(1), np.uint64(2**64 - 1)


def equal_bits(line: NDArray[Any], i: int, j: int) -> np.uint64:
    """Bit k of the result tells whether ``line[i + k] == line[j + k]``, for k = 0..63; nothing checks the bounds."""
    equal = line[i : i + 64] == line[j : j + 64]
    return np.uint64(sum(1 << k for k in np.flatnonzero(equal).tolist()))


@inlined
def bits_of_others(line: NDArray[Any], i: int, count: int, label: Any) -> np.uint64:
    """Bit k of the result tells whether ``line[i + k] != label``, for k = 0..count-1 (64 at the most)."""
    if i + 64 <= line.size:
        return ~bits_of_label(line, i, label) & (_ALL >> np.uint64(64 - count))
    bits = np.uint64(0)
    for k in range(min(count, line.size - i)):
        if line[i + k] != label:
            bits |= _ONE << np.uint64(k)
    return bits


def bits_of_label(line: NDArray[Any], i: int, label: Any) -> np.uint64:
    """Bit k of the result tells whether ``line[i + k] == label``, for k = 0..63; nothing checks the bounds."""
    return np.uint64(sum(1 << k for k in np.flatnonzero(line[i : i + 64] == label).tolist()))


def _load(builder: Any, data: Any, position: Any, bits: int) -> Any:  # pragma: no cover
    """64 neighbours in memory as one vector."""
    lanes = ir.VectorType(ir.IntType(bits), 64)
    vector = builder.load(builder.bitcast(builder.gep(data, [position]), lanes.as_pointer()))
    vector.align = bits // 8  # a row may begin anywhere
    return vector


@intrinsic
def _equal_bits(context: Any, line: Any, i: Any, j: Any) -> tuple[Any, Callable[..., Any]]:  # pragma: no cover
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=values[0]).data
        own, other = (_load(builder, data, position, line.dtype.bitwidth) for position in values[1:])
        return builder.bitcast(builder.icmp_signed("==", own, other), ir.IntType(64))

    return types.uint64(line, types.int64, types.int64), generate


@overload(equal_bits, strict=False)
def _compiled_equal_bits(line: Any, i: Any, j: Any) -> Callable[..., Any]:  # pragma: no cover
    return lambda line, i, j: _equal_bits(line, i, j)


@intrinsic
def _compare(context: Any, line: Any, i: Any, label: Any) -> tuple[Any, Callable[..., Any]]:  # pragma: no cover
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=values[0]).data
        own = _load(builder, data, values[1], line.dtype.bitwidth)
        lane, first = ir.VectorType(ir.IntType(32), 64), ir.Constant(ir.IntType(32), 0)
        undefined = ir.Constant(own.type, ir.Undefined)
        same = builder.shuffle_vector(
            builder.insert_element(undefined, values[2], first), undefined, ir.Constant(lane, None)
        )
        return builder.bitcast(builder.icmp_signed("==", own, same), ir.IntType(64))

    return types.uint64(line, types.int64, line.dtype), generate


@overload(bits_of_label, strict=False)
def _compiled_bits_of_label(line: Any, i: Any, label: Any) -> Callable[..., Any]:  # pragma: no cover
    return lambda line, i, label: _compare(line, i, label)
