"""Which patches a network gets to see: forced patches balanced over classes and instances of the whole dataset."""

from nnunet_imbal.sampling.cache import build_index, cached_index
from nnunet_imbal.sampling.index import MAX_POSITIONS, InstanceIndex, Region, find_instances, merge
from nnunet_imbal.sampling.sampler import Draw, InstanceBalancedSampler, Randomness, case_weights, patch_center

__all__ = [
    "MAX_POSITIONS",
    "Draw",
    "InstanceBalancedSampler",
    "InstanceIndex",
    "Randomness",
    "Region",
    "build_index",
    "cached_index",
    "case_weights",
    "find_instances",
    "merge",
    "patch_center",
]
