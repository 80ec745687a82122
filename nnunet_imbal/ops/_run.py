"""How every operator runs: its items in threads on the CPU, or the kernels for the GPU."""

import functools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numba
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["for_each", "for_each_sample", "gpu_kernels", "items", "thread_pool", "through_host"]

logger = logging.getLogger(__name__)


def items(tensor: Tensor) -> NDArray[Any]:
    """(B, C, *S) -> numpy (B*C, voxels)."""
    lead = tensor.shape[:2].numel()
    return tensor.detach().reshape(lead, tensor.shape[2:].numel()).numpy()


def for_each(work: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Do independent work in threads (kernels release the GIL), or here where threads would only be in the way."""
    # numba's dial for threads, not torch's, which nnU-Net turns down to 1 on a GPU. Loader processes are daemons.
    threads, numbers = numba.config.NUMBA_NUM_THREADS, list(numbers)
    if threads == 1 or len(numbers) == 1 or multiprocessing.current_process().daemon:
        for number in numbers:
            work(number)
    else:
        list(thread_pool(os.getpid(), threads).map(work, numbers))


def for_each_sample(kernel: Callable[..., Any], *tensors: Tensor) -> None:
    """Call a kernel with the arrays of each sample of (B, ...) tensors; it writes to the last of them."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    for_each(lambda i: kernel(*(array[i] for array in arrays)), range(len(arrays[0])))


@functools.lru_cache(maxsize=1)
def thread_pool(pid: int, threads: int) -> ThreadPoolExecutor:
    """One pool per process: the threads of a parent do not exist in its forked child."""
    return ThreadPoolExecutor(threads, thread_name_prefix="imbal")


@functools.cache
def gpu_kernels(operator: str) -> ModuleType | None:
    """The module with the kernels for the GPU, or None where those of an operator do not run; why is said once."""
    try:
        from nnunet_imbal import _cuda_backend  # imports numba's CUDA half, of no use without a GPU

        obstacle = _cuda_backend.find_obstacle(operator)
    except ImportError as error:
        obstacle = str(error)
    if not obstacle:
        return _cuda_backend
    _warn(obstacle)
    return None


def through_host(operator: Callable[..., Any], *arguments: Any) -> Tensor:
    """Let an operator work on the CPU: copy its tensors there, and the answer back to where the first one lies."""
    answer: Tensor = operator(*(each.cpu() if isinstance(each, Tensor) else each for each in arguments))
    return answer.to(arguments[0].device)


@functools.cache
def _warn(obstacle: str) -> None:
    logger.warning(
        "the GPU kernels do not run, so masks are copied to the CPU and back (see docs/gpu.md): %s", obstacle
    )
