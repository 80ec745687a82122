"""nnU-Net's side of the label proportion: how much of a patch each class fills, and what unlabelled patches owe it."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor

from nnunet_imbal._progress import track
from nnunet_imbal.labels import LabelSpec
from nnunet_imbal.losses import LabelProportion
from nnunet_imbal.proportions import collect_proportions
from trainers._adapter import Levels, full_resolution, label_spec

__all__ = ["PATCHES", "Proportion", "measure_proportions"]

PATCHES = 500


class Proportion:
    """`LabelProportion` on nnU-Net's output.

    Args:
        bank: see `measure_proportions`.
        labels: how the target is encoded, with an ignore label.
        device: of the network.
    """

    def __init__(self, bank: Tensor, labels: LabelSpec, device: torch.device) -> None:
        self.labels = labels
        bank = bank.float()  # as a checkpoint keeps it: the bounds are to be the same after a resume
        self.module = LabelProportion(bank, regions=labels.has_regions).to(device)

    def loss(self, output: Levels, target: Levels) -> Tensor:
        """Of the patches in which nothing is labelled; 0 without one."""
        _, mask = self.labels.split_target(full_resolution(target))
        loss: Tensor = self.module(full_resolution(output), mask)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed training needs, the bank included."""
        return self.module.state_dict()

    @classmethod
    def restore(cls, state: Mapping[str, Any], labels: LabelSpec, device: torch.device) -> "Proportion":
        """As it was in a checkpoint."""
        proportion = cls(state["bank"], labels, device)
        proportion.module.load_state_dict(state)
        return proportion


def measure_proportions(
    cases: nnUNetBaseDataset, configuration: ConfigurationManager, labels: LabelManager, patches: int = PATCHES
) -> Tensor:
    """Share of each channel in patches of labelled cases that are drawn as unlabelled ones are, anywhere in the image.

    Not as labelled ones are: a third of those is forced to show foreground. Augmentation is left out.

    Args:
        cases: labelled training cases.
        configuration: tells the size of a patch.
        labels: of the dataset.
        patches: to draw, all processes together.

    Returns:
        ``(patches, channels)`` float64; fewer rows if many patches have voxels that nobody labelled.

    Raises:
        DataError: no patch is labelled completely.
    """
    transforms = nnUNetTrainer.get_validation_transforms(
        None,
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    size = configuration.patch_size
    loader = nnUNetDataLoader(cases, 1, size, size, labels, oversample_foreground_percent=0.0, transforms=transforms)
    loader.has_ignore = False  # or nnU-Net looks for annotated voxels
    return collect_proportions(_targets(loader, patches), label_spec(labels), labels.num_segmentation_heads, patches)


def _targets(loader: nnUNetDataLoader, patches: int) -> Iterator[Tensor]:
    for _ in track(count(), patches, "Measuring proportions"):
        yield next(loader)["target"]
