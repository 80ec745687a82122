"""Every loss of the catalogue, for ``"_target_": "monai_ext.losses.CCDiceLoss"`` in a bundle.

Example:
    >>> import torch
    >>> CCDiceLoss(sigmoid=True)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).item()
    0.0
"""

from nnunet_imbal.losses import CCDiceLoss, DeepSupervision, WeightedSum

__all__ = ["CCDiceLoss", "DeepSupervision", "WeightedSum"]
