"""The one comparison of 64 voxels at a time that numba does not turn into vector instructions by itself.

As in :mod:`numba_kernels._bits`, the plain function says what it means and runs with ``NUMBA_DISABLE_JIT=1``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

__all__ = ["equal_bits"]


def equal_bits(line: NDArray[Any], i: int, j: int) -> np.uint64:
    """Bit k of the result tells whether ``line[i + k] == line[j + k]``, for k = 0..63; nothing checks the bounds."""
    equal = line[i : i + 64] == line[j : j + 64]
    return np.uint64(sum(1 << k for k in np.flatnonzero(equal).tolist()))


@intrinsic
def _equal_bits(context: Any, line: Any, i: Any, j: Any) -> tuple[Any, Callable[..., Any]]:  # pragma: no cover
    lanes = ir.VectorType(ir.IntType(line.dtype.bitwidth), 64)

    def load(builder: Any, data: Any, position: Any) -> Any:
        vector = builder.load(builder.bitcast(builder.gep(data, [position]), lanes.as_pointer()))
        vector.align = line.dtype.bitwidth // 8  # a row may begin anywhere
        return vector

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=values[0]).data
        equal = builder.icmp_signed("==", load(builder, data, values[1]), load(builder, data, values[2]))
        return builder.bitcast(equal, ir.IntType(64))

    return types.uint64(line, types.int64, types.int64), generate


@overload(equal_bits, strict=False)
def _compiled_equal_bits(line: Any, i: Any, j: Any) -> Callable[..., Any]:  # pragma: no cover
    return lambda line, i, j: _equal_bits(line, i, j)
