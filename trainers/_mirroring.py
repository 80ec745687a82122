"""Mirroring for classes that have a side: exchange their labels, or leave that axis alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_imbal.errors import LabelError
from nnunet_imbal.laterality import lateral_axes, paired_labels, swap_table

__all__ = ["LabelSwapMirrorTransform", "Mirroring", "choose_mirroring", "directions_of", "use_label_swap"]


class LabelSwapMirrorTransform(MirrorTransform):
    """nnU-Net's mirroring that keeps left left: a flip along the lateral axis also exchanges the paired labels.

    Args:
        allowed_axes: axes that may be flipped, as upstream.
        lateral_axis: the axis from one side of the patient to the other.
        table: label value after exchange, for values from 0 on; others (padding) stay.
    """

    def __init__(self, allowed_axes: tuple[int, ...], lateral_axis: int, table: Sequence[int]) -> None:
        super().__init__(allowed_axes)
        self.lateral_axis = lateral_axis
        self.table = torch.tensor([*table])

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        flipped: torch.Tensor = super()._apply_to_segmentation(segmentation, **params)
        if self.lateral_axis not in params["axes"]:
            return flipped
        swapped = self.table.to(flipped.dtype)[flipped.clamp(min=0).long()]
        return torch.where(flipped < 0, flipped, swapped)


@dataclass(frozen=True)
class Mirroring:
    """How this training mirrors.

    Attributes:
        axes: axes of the patch mirrored in training.
        test_axes: axes mirrored at test time; never one along which labels would have to be exchanged, because
            nnU-Net's predictor does not.
        reason: why, one sentence for the log; empty for stock mirroring.
        lateral_axis: axis along which labels are exchanged, if any.
        table: labels after exchange.
    """

    axes: tuple[int, ...]
    test_axes: tuple[int, ...]
    reason: str = ""
    lateral_axis: int | None = None
    table: tuple[int, ...] = ()


def choose_mirroring(
    mode: str,
    stock_axes: tuple[int, ...],
    labels: Mapping[str, Any],
    directions: Iterable[Any],
    transpose_forward: Sequence[int],
) -> Mirroring:
    """Decide for one dataset.

    Args:
        mode: ``"stock"``, ``"off"`` (no mirroring along the lateral axis), ``"swap"`` (exchange labels) or ``"auto"``
            (stock if no class has a side, swap if all of them have partners, else off).
        stock_axes: what nnU-Net would mirror.
        labels: of dataset.json, without ``ignore``.
        directions: of each training image, None where its file format knows no patient.
        transpose_forward: of the plans.

    Raises:
        LabelError: ``"swap"`` was asked for and the labels do not come in pairs.
    """
    try:
        pairs, obstacle = paired_labels(labels), ""
    except LabelError as error:
        if mode == "swap":
            raise
        pairs, obstacle = [], str(error)
    if mode == "stock" or not (pairs or obstacle):
        return Mirroring(stock_axes, stock_axes)
    lateral = _lateral_in_patch(directions, transpose_forward, len(stock_axes))
    kept = tuple(axis for axis in stock_axes if axis not in lateral)
    if kept == stock_axes:
        return Mirroring(stock_axes, stock_axes)
    if mode == "off" or obstacle:
        return Mirroring(kept, kept, f"classes have a side{f' ({obstacle})' if obstacle else ''}")
    if len(lateral) > 1:
        return Mirroring(kept, kept, "classes have a side and the images are not oriented alike")
    values = [value for entry in labels.values() for value in np.ravel(entry)]
    table = swap_table(pairs, int(max(values)) + 1)  # one more: the ignore label follows the last class
    names = {value: name for name, entry in labels.items() if np.size(entry) == 1 for value in np.ravel(entry)}
    reason = "flips exchange " + ", ".join(f"{names[a]} and {names[b]}" for a, b in pairs)
    return Mirroring(stock_axes, kept, reason, next(iter(lateral)), tuple(table))


def directions_of(folder: Path) -> Iterator[Any | None]:
    """Orientation that nnU-Net's reader noted beside each preprocessed case; None for formats without a patient."""
    cases = infer_dataset_class(str(folder))(str(folder))
    for case in cases.identifiers:
        yield _direction(cases.load_case(case)[3])


def _direction(properties: Mapping[str, Any]) -> Any | None:
    if "sitk_stuff" in properties:
        cosines = np.asarray(properties["sitk_stuff"]["direction"], dtype=float)
        return cosines.reshape(3, 3) if cosines.size == 9 else None
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        return np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=float)[:3, :3]
    return None


def use_label_swap(transforms: BasicTransform, mirroring: Mirroring) -> BasicTransform:
    """Put the label-exchanging flip in the place of nnU-Net's own."""
    if mirroring.lateral_axis is None or not isinstance(transforms, ComposeTransforms):
        return transforms
    for i, transform in enumerate(transforms.transforms):
        if type(transform) is MirrorTransform:
            swap = LabelSwapMirrorTransform(transform.allowed_axes, mirroring.lateral_axis, mirroring.table)
            transforms.transforms[i] = swap
    return transforms


def _lateral_in_patch(directions: Iterable[Any], transpose_forward: Sequence[int], ndim: int) -> set[int]:
    known = list(directions)
    if not known or any(direction is None for direction in known):
        return set(range(ndim))  # nobody knows where left is, so no flip is safe
    axes = {list(transpose_forward).index(axis) - (3 - ndim) for axis in lateral_axes(known)}
    return {axis for axis in axes if axis >= 0}
