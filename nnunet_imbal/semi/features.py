"""What a layer of a network is given, for losses that look at features."""

from typing import Any

from torch import Tensor, nn

__all__ = ["FeatureTap"]


class FeatureTap:
    """Keep the input of one layer at each forward pass, e.g. the decoder's last features before they become logits.

    Register it before the first forward pass of a compiled network; it works under distributed training too. Gradients
    flow through the features.

    Args:
        layer: whose first input is kept, for nnU-Net's networks ``network.decoder.seg_layers[-1]``.

    Attributes:
        features: input of the latest forward pass; None before the first one.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1))
        >>> tap = FeatureTap(network[-1])
        >>> _ = network(torch.zeros(1, 1, 5, 5))
        >>> tap.features.shape
        torch.Size([1, 4, 3, 3])
    """

    def __init__(self, layer: nn.Module) -> None:
        self.features: Tensor | None = None
        self._handle = layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.features = inputs[0]

    def take(self) -> Tensor:
        """The features, which are then forgotten, so that their memory is free after the backward pass.

        Raises:
            RuntimeError: the layer has not been called since the last time.
        """
        features, self.features = self.features, None
        if features is None:
            raise RuntimeError("the layer was not called since its features were last taken; run the network first")
        return features

    def remove(self) -> None:
        """Take the hook off the layer."""
        self._handle.remove()
        self.features = None
