"""Cases that nobody annotated, in a raw nnU-Net dataset: their label map says ``ignore`` wherever there is an image."""

from nnunet_imbal.unlabelled.dataset import Removal, add_unlabelled, remove_unlabelled
from nnunet_imbal.unlabelled.intensities import extract_fingerprint

__all__ = ["Removal", "add_unlabelled", "extract_fingerprint", "remove_unlabelled"]
