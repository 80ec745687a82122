"""nnU-Net's side of SCDL: which features it looks at, its parameters in optimiser and checkpoint."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_imbal.config import Distributions
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.labels import LabelSpec
from nnunet_imbal.losses.scdl import SCDL
from nnunet_imbal.semi import FeatureTap, unwrap
from trainers._adapter import Levels, full_resolution

__all__ = ["ClassDistributions", "last_segmentation_layer"]


class ClassDistributions:
    """SCDL on the features that enter the segmentation layer of full resolution.

    Args:
        network: nnU-Net's network, wrapped or not.
        config: the settings.
        labels: how the target is encoded.
        channels: of the network's output.
        distributed: average gradients over processes.

    Raises:
        ConfigError: a network without nnU-Net's decoder, or wrong options of SCDL.
    """

    def __init__(
        self, network: nn.Module, config: Distributions, labels: LabelSpec, channels: int, distributed: bool
    ) -> None:
        self._layer = last_segmentation_layer(network)
        self.labels = labels
        try:
            self.module = SCDL(self._layer.in_channels, channels, regions=labels.has_regions, **config.kwargs)
        except TypeError as error:
            raise ConfigError(f"imbal: kwargs of scdl: {error}") from error
        device = self._layer.weight.device
        self.module.to(device)
        devices = [device] if device.type == "cuda" else None
        self._called = DistributedDataParallel(self.module, device_ids=devices) if distributed else self.module
        self._tap: FeatureTap | None = None

    def watch(self) -> None:
        """Begin to look at the network, after all copies of it have been made."""
        self._tap = FeatureTap(self._layer)

    def loss(self, target: Levels, unlabelled: float) -> Tensor:
        """SCDL of the latest forward pass.

        Args:
            target: nnU-Net's target.
            unlabelled: say of voxels without labels, 0 to 1.
        """
        labels, mask = self.labels.split_target(full_resolution(target))
        loss: Tensor = self._called(self._features(), labels, mask, unlabelled)
        return loss

    def forget(self) -> None:
        """Drop the features of a forward pass without a loss."""
        self._features()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed training needs."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as in a checkpoint."""
        self.module.load_state_dict(state)

    def _features(self) -> Tensor:
        if self._tap is None:
            raise AssertionError("watch() comes before the first forward pass")
        return self._tap.take()


def last_segmentation_layer(network: nn.Module) -> nn.Conv2d | nn.Conv3d:
    """The layer that turns features of full resolution into logits, in nnU-Net's own U-Nets.

    Raises:
        ConfigError: the network is built in another way.
    """
    layers = getattr(getattr(unwrap(network), "decoder", None), "seg_layers", None)
    if not layers or not isinstance(layers[-1], nn.Conv2d | nn.Conv3d):
        raise ConfigError(
            f"SCDL looks at the features before `decoder.seg_layers[-1]`, which {type(unwrap(network)).__name__} does "
            "not have; use one of nnU-Net's U-Nets, or nnunet_imbal.losses.scdl in a trainer of your own"
        )
    return layers[-1]
