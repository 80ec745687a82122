"""MONAI adapter: the same losses, transforms and metrics in MONAI words."""

__distribution__ = "nnunet-imbal"
