"""The kernels on an NVIDIA GPU: the same names and the same answers, for many volumes at once.

Each function takes a *device* first (where memory comes from and how kernels are started: :class:`Device`) and arrays
of that device with one more axis in front, the items (samples x classes). Nothing waits for the GPU. Without a GPU the
same code runs in numba's simulator (``NUMBA_ENABLE_CUDASIM=1``) with :class:`NumpyDevice`.
"""

from numba_kernels.cuda.component_sums import cell_overlap, cell_overlap_backward
from numba_kernels.cuda.connected_components import connected_components
from numba_kernels.cuda.contacts import class_contacts
from numba_kernels.cuda.device import Device, NumpyDevice
from numba_kernels.cuda.distance import distance
from numba_kernels.cuda.local_thickness import local_thickness
from numba_kernels.cuda.nearest_component import nearest_component
from numba_kernels.cuda.skeleton import skeletonize, tube
from numba_kernels.cuda.soft_skeleton import soft_skeleton, soft_skeleton_backward

__all__ = [
    "Device",
    "NumpyDevice",
    "cell_overlap",
    "cell_overlap_backward",
    "class_contacts",
    "connected_components",
    "distance",
    "local_thickness",
    "nearest_component",
    "skeletonize",
    "soft_skeleton",
    "soft_skeleton_backward",
    "tube",
]
