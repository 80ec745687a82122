"""The two decorators of all GPU code."""

from collections.abc import Callable
from typing import Any

from numba import cuda

__all__ = ["inlined", "kernel"]


def kernel(function: Callable[..., None]) -> Any:
    """Compile a GPU kernel at its first launch and keep it on disk, where a folder for that is writable."""
    try:
        return cuda.jit(function, cache=True)
    except RuntimeError:  # numba found no place it may write to: read-only install and no home directory
        return cuda.jit(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Make a function callable from kernels. Inlining lets kernels compile where there is no GPU driver."""
    compiled = cuda.jit(function, device=True, inline="always")
    getattr(compiled, "targetoptions", {})["inline"] = "always"  # numba's built-in CUDA target loses the option
    return compiled
