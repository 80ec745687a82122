"""Centre lines, calibres and neighbours of labelled vessels as MONAI transforms."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor
from torch import Tensor

from monai_ext._channels import whole_labels
from monai_ext._derived_map import DerivedMapd, array_spacing
from nnunet_imbal.errors import LabelError
from nnunet_imbal.ops import class_contacts, local_thickness, skeletonize

__all__ = [
    "ClassContacts",
    "ClassContactsD",
    "ClassContactsDict",
    "ClassContactsd",
    "LocalThickness",
    "LocalThicknessD",
    "LocalThicknessDict",
    "LocalThicknessd",
    "Skeletonize",
    "SkeletonizeD",
    "SkeletonizeDict",
    "Skeletonized",
]


class Skeletonize(Transform):
    """Reduce each vessel to its centre line, one voxel thin; nothing breaks, nothing gets lost, however small.

    Each channel is looked at on its own, and in a label map each class on its own, as if the others were background.

    Raises:
        LabelError: the input is not channel-first or holds values that are not labels (when called).

    Source:
        The rule and its origin are those of `numba_kernels.skeletonize`.

    Example:
        >>> vessel = torch.tensor([[[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]])
        >>> Skeletonize()(vessel)[0].tolist()
        [[0, 0, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Find the centre lines.

        Args:
            img: ``(C, *S)`` label maps or masks, 2-D or 3-D, any dtype, array or tensor.

        Returns:
            Same shape and dtype: the labels on the centre lines, 0 elsewhere; metadata of ``img`` is kept. Empty
            stays empty.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        return convert_to_dst_type(skeletonize(whole_labels(img)[None])[0], img)[0]


class LocalThickness(Transform):
    """Give each voxel the radius of the vessel it belongs to, in mm: that of the largest ball inside that reaches it.

    All classes of a label map are one tree, because there is no wall where one vessel goes over into the next. Channels
    are looked at one by one: for the radius inside each class alone, one-hot encode first (``AsDiscrete``).

    Args:
        spacing: mm per voxel in the order of the array's own spatial axes. Default: that of a `MetaTensor`'s affine
            (its ``pixdim``); 1 mm for any other input.

    Raises:
        ConfigError: impossible ``spacing`` (when called).
        LabelError: the input is not channel-first or holds values that are not labels (when called).

    Source:
        The formula and its origin are those of `numba_kernels.local_thickness`.

    Example:
        >>> LocalThickness()(torch.tensor([[[0, 1, 1, 2, 0, 1, 0]]])).tolist()
        [[[0.0, 2.0, 2.0, 2.0, 0.0, 1.0, 0.0]]]
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(self, spacing: Sequence[float] | None = None) -> None:
        super().__init__()
        self.spacing = spacing

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Measure the radii.

        Args:
            img: ``(C, *S)`` label maps or masks, 2-D or 3-D, any dtype, array or tensor.

        Returns:
            float32 ``(C, *S)``, mm, 0 outside the vessels, inf where a channel has no outside at all; metadata of
            ``img`` is kept.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        spacing = array_spacing(img) if self.spacing is None else self.spacing
        radii = local_thickness(whole_labels(img)[None] != 0, spacing)[0]
        return convert_to_dst_type(radii, img, dtype=torch.float32)[0]


class ClassContacts(Transform):
    """Count where classes touch: the neighbours that a case shows, for checks of anatomy and for ``AGTALLoss``.

    Args:
        num_classes: number of classes C of the label map, background included.
        include_background: keep row and column 0. Default None: no, as elsewhere for label maps.
        connectivity: 6, 18 or 26 neighbours in 3-D, 4 or 8 in 2-D. Default: all (26 or 8).

    Raises:
        ConfigError: impossible ``num_classes`` or ``connectivity`` (when called).
        LabelError: the input is not a label map ``(1, *S)`` or holds other labels (when called).

    Example:
        >>> labels = torch.tensor([[[1, 1, 2], [0, 1, 2]]])
        >>> ClassContacts(num_classes=3, connectivity=4)(labels).tolist()
        [[0, 2], [2, 0]]
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, num_classes: int, include_background: bool | None = None, connectivity: int | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.include_background = include_background
        self.connectivity = connectivity

    def __call__(self, img: NdarrayOrTensor) -> Tensor:
        """Count the pairs of neighbouring voxels with different labels.

        Args:
            img: ``(1, *S)`` label map, 2-D or 3-D, any dtype, array or tensor.

        Returns:
            int64 ``(C - 1, C - 1)``, with background ``(C, C)``: symmetric, 0 on the diagonal and where classes do not
            meet. A plain tensor: a table has no affine.
        """
        labels = whole_labels(convert_to_tensor(img), self.num_classes)
        if labels.shape[0] != 1:
            raise LabelError(
                f"expected a label map with 1 channel, got shape {tuple(labels.shape)}; AsDiscrete(argmax=True) makes "
                f"one of one-hot channels, and overlapping regions have no contacts"
            )
        first = 0 if self.include_background else 1
        return class_contacts(labels[None], self.num_classes, self.connectivity)[0, first:, first:]


class Skeletonized(DerivedMapd):
    """Dictionary version of `Skeletonize`: adds ``label_skeleton`` beside ``label``, which stays as it is.

    Args:
        keys: label maps or masks to look at.
        skeleton_postfix: appended to the key for the result; ``""`` replaces the label.
        allow_missing_keys: skip keys that an item does not have.

    Example:
        >>> Skeletonized("label")({"label": torch.ones(1, 3, 5)})["label_skeleton"].sum().item()
        4.0
    """

    backend: ClassVar = Skeletonize.backend

    def __init__(
        self, keys: KeysCollection, skeleton_postfix: str = "_skeleton", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, Skeletonize(), skeleton_postfix, allow_missing_keys)


class LocalThicknessd(DerivedMapd):
    """Dictionary version of `LocalThickness`: adds ``label_thickness`` beside ``label``, which stays as it is.

    Args:
        keys: label maps or masks to look at.
        spacing: see `LocalThickness`.
        thickness_postfix: appended to the key for the result; ``""`` replaces the label.
        allow_missing_keys: skip keys that an item does not have.

    Example:
        >>> LocalThicknessd("label")({"label": torch.tensor([[[0, 1, 1, 1, 0]]])})["label_thickness"].tolist()
        [[[0.0, 2.0, 2.0, 2.0, 0.0]]]
    """

    backend: ClassVar = LocalThickness.backend

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float] | None = None,
        thickness_postfix: str = "_thickness",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, LocalThickness(spacing), thickness_postfix, allow_missing_keys)


class ClassContactsd(DerivedMapd):
    """Dictionary version of `ClassContacts`: adds ``label_contacts`` beside ``label``, which stays as it is.

    Args:
        keys: label maps to look at.
        num_classes: see `ClassContacts`.
        include_background: see `ClassContacts`.
        connectivity: see `ClassContacts`.
        contacts_postfix: appended to the key for the result; ``""`` replaces the label.
        allow_missing_keys: skip keys that an item does not have.

    Example:
        >>> ClassContactsd("label", num_classes=3)({"label": torch.tensor([[[1, 2, 2]]])})["label_contacts"].tolist()
        [[0, 1], [1, 0]]
    """

    backend: ClassVar = ClassContacts.backend

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        include_background: bool | None = None,
        connectivity: int | None = None,
        contacts_postfix: str = "_contacts",
        allow_missing_keys: bool = False,
    ) -> None:
        converter = ClassContacts(num_classes, include_background, connectivity)
        super().__init__(keys, converter, contacts_postfix, allow_missing_keys)


SkeletonizeD = SkeletonizeDict = Skeletonized
LocalThicknessD = LocalThicknessDict = LocalThicknessd
ClassContactsD = ClassContactsDict = ClassContactsd
