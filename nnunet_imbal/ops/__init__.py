"""Operators on tensors that run as numba kernels: the only place where torch meets numba.

They are registered with torch (namespace ``imbal``), so they work under ``torch.compile`` and autograd. For tensors on
a GPU there are kernels in ``_cuda_backend`` and, where those do not run, torch formulas or a way through the CPU.
"""

from nnunet_imbal.ops.calibre import calibre_sums
from nnunet_imbal.ops.cells import component_cells
from nnunet_imbal.ops.contacts import class_contacts
from nnunet_imbal.ops.cross_entropy import one_vs_rest_cross_entropy
from nnunet_imbal.ops.error_overlap import cell_error_overlap
from nnunet_imbal.ops.labels import component_labels
from nnunet_imbal.ops.maxima import component_max
from nnunet_imbal.ops.overlap import cell_overlap
from nnunet_imbal.ops.skeleton import skeletonize, tube
from nnunet_imbal.ops.soft_skeleton import erosion_depth, soft_skeleton
from nnunet_imbal.ops.surroundings import surroundings
from nnunet_imbal.ops.thickness import distance, local_thickness
from nnunet_imbal.ops.voxels import cell_voxels

__all__ = [
    "calibre_sums",
    "cell_error_overlap",
    "cell_overlap",
    "cell_voxels",
    "class_contacts",
    "component_cells",
    "component_labels",
    "component_max",
    "distance",
    "erosion_depth",
    "local_thickness",
    "one_vs_rest_cross_entropy",
    "skeletonize",
    "soft_skeleton",
    "surroundings",
    "tube",
]
