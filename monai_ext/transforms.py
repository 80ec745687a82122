"""Maps derived from labels as MONAI transforms, so that data-loading workers find them and not the training step."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_ext._channels import class_masks
from monai_ext._derived_map import DerivedMapd, array_spacing
from monai_ext._topology_transforms import (
    ClassContacts,
    ClassContactsD,
    ClassContactsd,
    ClassContactsDict,
    LocalThickness,
    LocalThicknessD,
    LocalThicknessd,
    LocalThicknessDict,
    Skeletonize,
    SkeletonizeD,
    Skeletonized,
    SkeletonizeDict,
)
from nnunet_imbal.ops import component_cells

__all__ = [
    "ClassContacts",
    "ClassContactsD",
    "ClassContactsDict",
    "ClassContactsd",
    "ComponentCells",
    "ComponentCellsD",
    "ComponentCellsDict",
    "ComponentCellsd",
    "LocalThickness",
    "LocalThicknessD",
    "LocalThicknessDict",
    "LocalThicknessd",
    "Skeletonize",
    "SkeletonizeD",
    "SkeletonizeDict",
    "Skeletonized",
]


class ComponentCells(Transform):
    """Tell for each voxel which lesion is nearest, class by class: the ``cells`` of `nnunet_imbal.losses.cc_dice_loss`.

    Put it after the last transform that moves or crops voxels. If a crop has to come later, treat the result like a
    label (``mode="nearest"``): ids of lesions outside the crop do no harm.

    Args:
        num_classes: the input is a label map of so many classes, background included. None: its channels are
            classes or overlapping regions already, 0 or 1.
        include_background: keep channel 0. Default None: no for label maps, yes otherwise, as in the losses.
            A single channel is always kept.
        spacing: mm per voxel in the order of the array's own spatial axes. Default: that of a `MetaTensor`'s affine
            (its ``pixdim``); 1 mm for any other input.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D make one lesion. Default: all (26 or 8).

    Raises:
        ConfigError: impossible ``num_classes``, ``spacing`` or ``connectivity`` (when called).
        LabelError: the input is not channel-first or holds values that are not labels.

    Example:
        >>> labels = torch.tensor([[[1, 0, 0, 0, 1], [0, 0, 2, 0, 0]]])
        >>> ComponentCells(num_classes=3)(labels)[:, 0].tolist()
        [[1, 1, 1, 2, 2], [1, 1, 1, 1, 1]]
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self,
        num_classes: int | None = None,
        include_background: bool | None = None,
        spacing: Sequence[float] | None = None,
        connectivity: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.include_background = include_background
        self.spacing = spacing
        self.connectivity = connectivity

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Find the nearest component of each class.

        Args:
            img: ``(1, *S)`` label map or ``(C, *S)`` masks, 2-D or 3-D, any dtype, array or tensor.

        Returns:
            int32 ``(classes, *S)`` with ids 1..K, 0 everywhere in an absent class; metadata of ``img`` is kept.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        masks = class_masks(img[None], self.num_classes, self.include_background)
        spacing = array_spacing(img) if self.spacing is None else self.spacing
        cells = component_cells(masks, spacing, self.connectivity)[0]
        return convert_to_dst_type(cells, img, dtype=torch.int32)[0]


class ComponentCellsd(DerivedMapd):
    """Dictionary version of `ComponentCells`: adds ``label_cells`` beside ``label``, which stays as it is.

    Args:
        keys: label maps or masks to look at.
        num_classes: see `ComponentCells`.
        include_background: see `ComponentCells`.
        spacing: see `ComponentCells`.
        connectivity: see `ComponentCells`.
        cells_postfix: appended to the key for the result; ``""`` replaces the label.
        allow_missing_keys: skip keys that an item does not have.

    Example:
        >>> item = ComponentCellsd("label", connectivity=4)({"label": torch.tensor([[[1, 0, 0, 1]]])})
        >>> item["label_cells"].tolist(), item["label"].tolist()
        ([[[1, 1, 2, 2]]], [[[1, 0, 0, 1]]])
    """

    backend: ClassVar = ComponentCells.backend

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int | None = None,
        include_background: bool | None = None,
        spacing: Sequence[float] | None = None,
        connectivity: int | None = None,
        cells_postfix: str = "_cells",
        allow_missing_keys: bool = False,
    ) -> None:
        converter = ComponentCells(num_classes, include_background, spacing, connectivity)
        super().__init__(keys, converter, cells_postfix, allow_missing_keys)


ComponentCellsD = ComponentCellsDict = ComponentCellsd
