"""From MONAI's two encodings of a segmentation, label map or channels, to masks and to integers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_imbal.errors import ConfigError, LabelError
from nnunet_imbal.labels import to_one_hot

__all__ = ["class_masks", "whole_labels"]


def class_masks(labels: Tensor, num_classes: int | None, include_background: bool | None) -> Tensor:
    """Turn a label map or one-hot channels into one mask per class.

    Args:
        labels: ``(B, 1, *S)`` label map if ``num_classes`` is given; ``(B, C, *S)`` of 0 and 1 otherwise (or where
            the channels are ``num_classes``); any dtype.
        num_classes: number of classes, background included; None: the channels are classes already.
        include_background: keep channel 0. None: no for label maps, yes otherwise. A single channel is always kept.

    Returns:
        ``(B, C or C - 1, *S)`` bool, a plain tensor.

    Raises:
        ConfigError: ``num_classes`` is below 2.
        LabelError: wrong number of axes or channels, or values that are not labels.
    """
    labels = labels.as_subclass(Tensor)
    if num_classes is not None:
        _check_num_classes(num_classes)
    _check_axes(labels.shape[1:])
    masks = _check_masks(labels) if num_classes is None else _from_label_map(labels, num_classes)
    keep = num_classes is None if include_background is None else include_background
    return masks if keep or masks.shape[1] == 1 else masks[:, 1:]


def whole_labels(labels: Tensor, num_classes: int | None = None) -> Tensor:
    """Turn labels of any dtype, as MONAI's readers and transforms leave them, into integers.

    Args:
        labels: ``(C, *S)`` label maps or masks, 2-D or 3-D.
        num_classes: number of classes, background included; None: labels may be any whole numbers from 0.

    Returns:
        Same shape, bool, uint8 or int32; a plain tensor.

    Raises:
        ConfigError: ``num_classes`` is below 2.
        LabelError: wrong number of axes, or values that are not labels.
    """
    labels = labels.as_subclass(Tensor)
    if num_classes is not None:
        _check_num_classes(num_classes)
    _check_axes(labels.shape)
    whole = labels if labels.dtype in (torch.bool, torch.uint8) else labels.int()
    known = (whole == labels) & (whole >= 0)
    if num_classes is not None:
        known &= whole < num_classes
    if not known.all():
        raise _unknown_labels(labels[~known], num_classes)
    return whole


def _unknown_labels(values: Tensor, num_classes: int | None) -> LabelError:
    allowed = "whole numbers from 0" if num_classes is None else f"the whole numbers 0..{num_classes - 1}"
    return LabelError(
        f"the label map holds {_examples(values)}, expected {allowed} (num_classes={num_classes}); resample labels "
        f"with mode='nearest', and map voxels to ignore to 0"
    )


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ConfigError(f"num_classes counts the background too, so it must be at least 2, got {num_classes}")


def _check_axes(shape: Sequence[int]) -> None:
    if len(shape) not in (3, 4):
        raise LabelError(
            f"expected a channel and 2 or 3 spatial axes per item, got shape {tuple(shape)}; "
            f"EnsureChannelFirst adds a missing channel"
        )


def _from_label_map(labels: Tensor, num_classes: int) -> Tensor:
    channels = labels.shape[1]
    if channels == num_classes:
        return _check_masks(labels)
    if channels != 1:
        raise LabelError(f"expected 1 channel (a label map) or {num_classes} (one per class), got {channels}")
    masks = to_one_hot(labels, num_classes)
    if not (known := masks.any(dim=1, keepdim=True)).all():
        raise _unknown_labels(labels[~known], num_classes)
    return masks


def _check_masks(masks: Tensor) -> Tensor:
    if not (known := (masks == 0) | (masks == 1)).all():
        raise LabelError(
            f"expected channels of 0 and 1, got {_examples(masks[~known])}; for a label map give num_classes, "
            f"for the output of a network use AsDiscrete first"
        )
    return masks != 0


def _examples(values: Tensor) -> str:
    first = [f"{value:g}" for value in torch.unique(values)[:3].tolist()]
    return ", ".join(first)
