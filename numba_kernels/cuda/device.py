"""What the host side of the kernels needs to know of a GPU: its memory, a running sum and how to start a kernel."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["THREADS", "Device", "NumpyDevice"]

THREADS = 128  # threads of a block


class Device(Protocol):
    """An array library that shares a GPU with numba.

    Arrays are those of the library. They must know ``ndim``, ``shape``, ``reshape`` and slices as NumPy's do.
    """

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Give memory that holds anything; ``dtype`` is a name like ``"int32"`` or the dtype of another array."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Give memory filled with 0."""

    def cumulate(self, counts: Any) -> Any:
        """Add up the int32 line ``counts``, each element included: int32 of the same length."""

    def launch(self, kernel: Any, blocks: int | tuple[int, int], *arguments: Any, threads: int = THREADS) -> None:
        """Start a kernel with about so many blocks, one at least. Any numbers give the same answer."""


class NumpyDevice:
    """NumPy arrays, for numba's simulator: slow, but it needs no GPU and runs the same code.

    Example:
        >>> NumpyDevice().cumulate(np.array([1, 0, 1], np.int32))
        array([1, 1, 2], dtype=int32)
    """

    blocks = 2  # a simulated thread is a thread of Python's: few of them, which do more each
    threads = 16

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Give memory that holds anything."""
        return np.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Give memory filled with 0."""
        return np.zeros(shape, dtype)

    def cumulate(self, counts: NDArray[Any]) -> NDArray[Any]:
        """Add up, each element included."""
        return np.cumsum(counts, dtype=np.int32)

    def launch(self, kernel: Any, blocks: int | tuple[int, int], *arguments: Any, threads: int = THREADS) -> None:
        """Run a kernel in a few simulated blocks and wait for it."""
        wanted = blocks if isinstance(blocks, tuple) else (blocks,)
        kernel[tuple(min(number, self.blocks) for number in wanted), min(threads, self.threads)](*arguments)
