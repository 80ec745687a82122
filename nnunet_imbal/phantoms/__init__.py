"""Small datasets to try things on: made by a formula, or real and small enough to travel with the package."""

from nnunet_imbal.phantoms._case import Case, Phantom
from nnunet_imbal.phantoms._dataset import DATASETS, write_dataset
from nnunet_imbal.phantoms.lesions import LesionPhantom
from nnunet_imbal.phantoms.organs import OrganPhantom
from nnunet_imbal.phantoms.spine import SpinePhantom
from nnunet_imbal.phantoms.vessels import VesselPhantom

__all__ = [
    "DATASETS",
    "Case",
    "LesionPhantom",
    "OrganPhantom",
    "Phantom",
    "SpinePhantom",
    "VesselPhantom",
    "write_dataset",
]
