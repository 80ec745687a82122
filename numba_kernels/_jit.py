"""The one decorator of all kernels: how numba compiles, and where it may keep the machine code."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from numba import njit

__all__ = ["inlined", "kernel"]

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function of NumPy arrays: serial, without the GIL, kept on disk for the next process.

    Kernels are serial because numba's threads do not survive a fork, and data loaders fork; callers run several
    kernels in Python threads instead. ``fastmath`` stays off so that NaN and rounding mean what they say.

    Args:
        function: Function that numba can compile. With ``NUMBA_DISABLE_JIT=1`` it stays plain Python.

    Returns:
        The compiled function. If no folder for machine code is writable, a function compiled anew per process.
    """
    return _compile(function, forceinline=False)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Do as :func:`kernel`, but copy the function into its callers.

    For small functions inside hot loops: handing over an array costs as much as reading it ten times.
    """
    return _compile(function, forceinline=True)


def _compile(function: Callable[P, R], *, forceinline: bool) -> Callable[P, R]:
    try:
        return njit(nogil=True, cache=True, fastmath=False, boundscheck=False, forceinline=forceinline)(function)
    except RuntimeError:  # numba found no place it may write to: read-only install and no home directory
        _warn_once()
        return njit(nogil=True, cache=False, fastmath=False, boundscheck=False, forceinline=forceinline)(function)


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "numba_kernels: no writable folder for compiled kernels was found, so every process compiles them anew "
        "(some seconds). Set NUMBA_CACHE_DIR to a writable folder to avoid this.",
        RuntimeWarning,
        stacklevel=4,
    )
