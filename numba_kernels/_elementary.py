"""Exponential and logarithm of float32 from plain arithmetic, which LLVM turns into vector instructions.

Those of NumPy and ``math`` are calls, one number at a time. Coefficients: Cephes library (S. Moshier), ``expf`` and
``logf``. NaN in, NaN out.
"""

import numpy as np

from numba_kernels._jit import inlined

__all__ = ["exp32", "expm1_32", "log32"]

_LOG2_E = np.float32(1.442695040888963)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # the first has few digits, so n times it
# Added to a number, it leaves the rounded number plus 127, an exponent of float32, in the lowest bits.
_ROUNDER = np.float32(1.5 * 2**23 + 127)
_LOWEST = np.float32(-87)  # e to the power of less is no ordinary float32
_MANTISSA = np.int32(23)  # bits
_ROOT_HALF = np.int32(0x3F3504F3)  # bits of the root of 1/2
ONE, HALF, LARGEST = np.float32(1), np.float32(0.5), np.float32(np.finfo(np.float32).max)


@inlined
def exp32(x: np.float32) -> np.float32:
    """Exponential of at most 0, to 2 units in the last place; 1.6e-38 below -87."""
    more, power = _power(x)
    return more * power + power


@inlined
def expm1_32(x: np.float32) -> np.float32:
    """Exponential of at most 0, minus 1: keeps the digits of a small number."""
    more, power = _power(x)
    return more * power + (power - ONE)


@inlined
def _power(x: np.float32) -> tuple[np.float32, np.float32]:
    """The exponential as (1 + a) * 2**n, its parts a and 2**n."""
    x = _LOWEST if x < _LOWEST else x
    shifted = x * _LOG2_E + _ROUNDER
    n = shifted - _ROUNDER
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    bits = np.int32(np.float32(shifted).view(np.int32) << _MANTISSA)
    return y * r * r + r, np.int32(bits).view(np.float32)


@inlined
def log32(x: np.float32) -> np.float32:
    """Logarithm of a positive, not denormal number, to 2 units in the last place."""
    bits = np.float32(x).view(np.int32)
    n = np.int32(np.int32(bits - _ROOT_HALF) >> _MANTISSA)
    r = np.int32(bits - np.int32(n << _MANTISSA)).view(np.float32) - ONE  # root of 1/2 to root of 2, minus 1
    y = np.float32(7.0376836292e-2)
    y = y * r + np.float32(-1.1514610310e-1)
    y = y * r + np.float32(1.1676998740e-1)
    y = y * r + np.float32(-1.2420140846e-1)
    y = y * r + np.float32(1.4249322787e-1)
    y = y * r + np.float32(-1.6668057665e-1)
    y = y * r + np.float32(2.0000714765e-1)
    y = y * r + np.float32(-2.4999993993e-1)
    y = y * r + np.float32(3.3333331174e-1)
    squared = r * r
    y = y * r * squared + np.float32(n) * _LN2_LOW - HALF * squared
    return r + y + np.float32(n) * _LN2_HIGH if x <= LARGEST else x
