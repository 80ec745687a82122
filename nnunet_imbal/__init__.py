"""nnunet-imbal: losses, kernels and trainers for rare classes, tiny lesions and thin vessels."""

from nnunet_imbal._version import __version__

__distribution__ = "nnunet-imbal"
__all__ = ["__version__"]
