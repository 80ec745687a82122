"""Every loss of the catalogue, for ``"_target_": "monai_ext.losses.CCDiceLoss"`` in a bundle.

Example:
    >>> import torch
    >>> CCDiceLoss(sigmoid=True)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).item()
    0.0
"""

from nnunet_imbal.losses import *  # noqa: F403  # a loss has one home; here it only gets MONAI's address
from nnunet_imbal.losses import __all__  # noqa: F401
