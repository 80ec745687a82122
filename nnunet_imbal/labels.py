"""What the channels of a network mean: classes or overlapping regions, with or without an ignore label."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LabelSpec", "check_labels", "plain_tensor", "to_one_hot"]


def plain_tensor(tensor: Tensor) -> Tensor:
    """Drop tensor subclasses such as MONAI's MetaTensor, whose bookkeeping is slow and breaks compilation."""
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def to_one_hot(labels: Tensor, num_classes: int, first: int = 0) -> Tensor:
    """Turn a label map into one yes/no channel per class.

    Args:
        labels: ``(B, 1, *S)``, any dtype, values ``0 .. num_classes - 1``. Other values belong to no class.
        num_classes: number of classes, background included.
        first: class of the first channel; 1 leaves out the background.

    Returns:
        ``(B, num_classes - first, *S)`` bool.

    Example:
        >>> to_one_hot(torch.tensor([[[0, 2, 1]]]), 3).int().tolist()
        [[[1, 0, 0], [0, 0, 1], [0, 1, 0]]]
    """
    # Two dtypes would be compared in a third, which takes several times as long.
    dtype = labels.dtype if _can_count_to(num_classes, labels.dtype) else torch.int64
    classes = torch.arange(first, num_classes, device=labels.device, dtype=dtype)
    return labels == classes.view(1, -1, *[1] * (labels.ndim - 2))


def _can_count_to(number: int, dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or (dtype != torch.bool and number <= torch.iinfo(dtype).max)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse a label map with values outside ``0 .. num_classes - 1``.

    Raises:
        ValueError: names the offending value, the expected range and the usual cause.
    """
    if labels.numel() == 0:
        return
    lowest, highest = labels.min().item(), labels.max().item()
    for value in (lowest, highest):
        if not 0 <= value < num_classes:
            raise ValueError(
                f"target holds the label {value:g}, but the network has {num_classes} channels, so labels must be "
                f"0..{num_classes - 1}. If {value:g} marks voxels to ignore, leave them out with `mask`."
            )


@dataclass(frozen=True)
class LabelSpec:
    """How nnU-Net encodes a target, as far as a loss needs to know.

    Attributes:
        has_regions: overlapping regions trained with sigmoid, instead of exclusive classes with softmax.
        ignore_label: value of voxels nobody annotated; with regions they come as an extra last channel.
    """

    has_regions: bool = False
    ignore_label: int | None = None

    def activation(self) -> dict[str, bool]:
        """Constructor words that make a loss fit this encoding."""
        if self.has_regions:
            return {"sigmoid": True, "include_background": True}
        return {"softmax": True, "to_onehot_y": True, "include_background": False}

    def split_target(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Separate what is annotated from what is to be ignored.

        Args:
            target: ``(B, 1, *S)`` label map, or with regions ``(B, R [+ 1], *S)`` where the last channel marks
                voxels to ignore if there is an ignore label.

        Returns:
            The target without the ignore marks, and a mask ``(B, 1, *S)`` bool, True = counts (None: all count).
        """
        if self.ignore_label is None:
            return target, None
        if self.has_regions:
            return target[:, :-1], target[:, -1:] == 0
        mask = target != self.ignore_label
        return target.masked_fill(~mask, 0), mask
