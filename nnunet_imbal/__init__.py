"""nnunet-imbal: losses, kernels and trainers for rare classes, tiny lesions and thin vessels."""

from nnunet_imbal._version import __version__
from nnunet_imbal.registry import build_loss, list_losses

__distribution__ = "nnunet-imbal"
__all__ = ["__version__", "build_loss", "list_losses"]
