"""Operators on tensors that run as numba kernels: the only place where torch meets numba.

They are registered with torch (namespace ``imbal``), so they work under ``torch.compile`` and autograd. For tensors on
a GPU there are kernels in ``_cuda_backend`` and, where those do not run, torch formulas or a way through the CPU.
"""

from nnunet_imbal.ops.cells import component_cells
from nnunet_imbal.ops.labels import component_labels
from nnunet_imbal.ops.overlap import cell_overlap

__all__ = ["cell_overlap", "component_cells", "component_labels"]
