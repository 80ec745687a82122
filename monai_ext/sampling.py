"""Random crops that show small instances as often as large ones, as MONAI transforms."""

from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import get_track_meta
from monai.transforms import MapTransform, Randomizable, SpatialCrop
from monai.transforms.inverse import TraceableTransform
from monai.transforms.traits import MultiSampleTrait
from monai.transforms.utils import correct_crop_centers
from monai.utils import ImageMetaKey, fall_back_tuple
from numpy.typing import NDArray

from nnunet_imbal.errors import ConfigError, LabelError
from nnunet_imbal.sampling import InstanceBalancedSampler, InstanceIndex, find_instances

__all__ = ["RandCropByInstances", "RandCropByInstancesD", "RandCropByInstancesDict", "RandCropByInstancesd"]


class RandCropByInstances(Randomizable, TraceableTransform, MultiSampleTrait):
    """Crop patches of which a share is forced to show an instance; the small ones are not left out.

    Used like MONAI's ``RandCropByPosNegLabel``, which draws a foreground voxel and so meets a lesion in proportion to
    its volume. Here a class present in the label is drawn, each alike, then one of its instances by
    `nnunet_imbal.sampling.InstanceBalancedSampler`, then a place that shows it, not necessarily in the middle. The
    other crops lie anywhere. A label without instances gives random crops only.

    Args:
        spatial_size: size of a crop; non-positive values stand for the size of the image.
        label: default label map ``(1, *S)``, or None.
        num_samples: number of crops.
        forced: probability that a crop is forced to show an instance, 0 to 1, for each crop alone.
        instance_share: 0: instances in proportion to volume; 1: each alike.
        offset: how far an instance may lie from the middle of the crop, 0 to 1 (until it touches the edge).
        classes: labels, or groups of labels that count as one class. Default: each label above 0 is a class.
        min_voxels: smaller instances are not targeted.
        allow_smaller: crop what there is if the image is smaller than ``spatial_size``, instead of raising.

    Raises:
        ConfigError: ``forced``, ``instance_share``, ``offset`` or ``num_samples`` out of range (the middle two when
            first used).
        LabelError: the label has several channels or does not hold whole numbers (when called).
        ValueError: no label, or, without ``allow_smaller``, an image smaller than a crop (when called).

    Source:
        Our reconstruction, see `nnunet_imbal.sampling.InstanceBalancedSampler`.

    Example:
        >>> label = torch.zeros(1, 32, 32)
        >>> label[0, 20:30, 20:30] = 1
        >>> label[0, 3, 4] = 1
        >>> crop = RandCropByInstances((8, 8), num_samples=100, forced=1, instance_share=1).set_random_state(0)
        >>> sum(patch.sum().item() == 1 for patch in crop(label, label))
        50
    """

    backend: ClassVar = SpatialCrop.backend

    def __init__(
        self,
        spatial_size: Sequence[int] | int,
        label: torch.Tensor | None = None,
        num_samples: int = 1,
        forced: float = 0.5,
        instance_share: float = 0.5,
        offset: float = 0.7,
        classes: Sequence[int | Sequence[int]] | None = None,
        min_voxels: int = 1,
        allow_smaller: bool = False,
    ) -> None:
        if not 0 <= forced <= 1:
            raise ConfigError(f"forced is a probability and must be between 0 and 1, got {forced}")
        if num_samples < 1:
            raise ConfigError(f"num_samples must be at least 1, got {num_samples}")
        self.spatial_size = spatial_size
        self.label = label
        self.num_samples = num_samples
        self.forced = forced
        self.instance_share = instance_share
        self.offset = offset
        self.classes = classes
        self.min_voxels = min_voxels
        self.allow_smaller = allow_smaller
        self.centers: list[tuple[int, ...]] = []

    def randomize(self, label: torch.Tensor | None = None, instances: InstanceIndex | None = None) -> None:
        """Draw the centers of the next crops.

        Args:
            label: ``(1, *S)``; needed for its size even if ``instances`` is given.
            instances: what `find_instances` found in it, to save the search.
        """
        if label is None:
            raise ValueError("a label is needed: give it to the constructor or to the call")
        shape = tuple(label.shape[1:])
        size = fall_back_tuple(self.spatial_size, shape)
        index = self.find_instances(label) if instances is None else instances
        sampler = None
        if len(index):
            sampler = InstanceBalancedSampler(index, instance_share=self.instance_share, offset=self.offset)
        self.centers = [self._center(sampler, shape, size) for _ in range(self.num_samples)]

    def find_instances(self, label: torch.Tensor) -> InstanceIndex:
        """The instances of a label with the settings of this transform; keep the result to crop faster.

        Args:
            label: ``(1, *S)``.
        """
        if label.shape[0] != 1:
            raise LabelError(f"expected a label map with 1 channel, got shape {tuple(label.shape)}; use AsDiscrete")
        labels: NDArray[Any] = np.asarray(torch.as_tensor(label).cpu())[0]
        return find_instances(labels, self.classes, min_voxels=self.min_voxels)

    def __call__(
        self,
        img: torch.Tensor,
        label: torch.Tensor | None = None,
        instances: InstanceIndex | None = None,
        randomize: bool = True,
    ) -> list[torch.Tensor]:
        """Crop an image.

        Args:
            img: ``(C, *S)``.
            label: ``(1, *S)``; default that of the constructor.
            instances: what `find_instances` found in it, to save the search.
            randomize: draw new places; False crops at those of the latest draw.

        Returns:
            ``num_samples`` crops ``(C, *spatial_size)`` with the metadata of ``img``, ``patch_index`` and
            ``crop_center``.
        """
        if randomize:
            self.randomize(self.label if label is None else label, instances)
        size = fall_back_tuple(self.spatial_size, tuple(img.shape[1:]))
        return [self._crop(img, size, number, center) for number, center in enumerate(self.centers)]

    def _crop(self, img: torch.Tensor, size: Sequence[int], number: int, center: tuple[int, ...]) -> torch.Tensor:
        cropped = SpatialCrop(roi_center=center, roi_size=size)(img)
        if get_track_meta():
            cropped.meta[ImageMetaKey.PATCH_INDEX] = number
            cropped.meta["crop_center"] = center
            self.push_transform(cropped, replace=True)
        return cropped

    def _center(
        self, sampler: InstanceBalancedSampler | None, shape: Sequence[int], size: Sequence[int]
    ) -> tuple[int, ...]:
        is_forced = self.R.random() < self.forced
        if sampler is not None and is_forced:
            center = sampler.draw(size, self.R).center
        else:
            room = [max(0, length - side) for length, side in zip(shape, size, strict=True)]
            center = tuple(int(self.R.randint(most + 1)) + side // 2 for most, side in zip(room, size, strict=True))
        return tuple(int(at) for at in correct_crop_centers(center, size, shape, self.allow_smaller))


class RandCropByInstancesd(Randomizable, MapTransform, MultiSampleTrait):
    """Dictionary version of `RandCropByInstances`: all keys are cropped at the same places.

    Args:
        keys: what to crop.
        label_key: the label map to look for instances in.
        spatial_size: see `RandCropByInstances`.
        num_samples: see `RandCropByInstances`.
        forced: see `RandCropByInstances`.
        instance_share: see `RandCropByInstances`.
        offset: see `RandCropByInstances`.
        classes: see `RandCropByInstances`.
        min_voxels: see `RandCropByInstances`.
        instances_key: an `InstanceIndex` found before; it is not in the result.
        allow_smaller: see `RandCropByInstances`.
        allow_missing_keys: skip keys that an item does not have.

    Example:
        >>> label = torch.zeros(1, 16, 16)
        >>> label[0, 3, 4] = 1
        >>> crop = RandCropByInstancesd(["image", "label"], "label", (8, 8), num_samples=3, forced=1)
        >>> [item["label"].sum().item() for item in crop({"image": label.clone(), "label": label})]
        [1.0, 1.0, 1.0]
    """

    backend: ClassVar = RandCropByInstances.backend

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        spatial_size: Sequence[int] | int,
        num_samples: int = 1,
        forced: float = 0.5,
        instance_share: float = 0.5,
        offset: float = 0.7,
        classes: Sequence[int | Sequence[int]] | None = None,
        min_voxels: int = 1,
        instances_key: str | None = None,
        allow_smaller: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.label_key = label_key
        self.instances_key = instances_key
        self.cropper = RandCropByInstances(
            spatial_size=spatial_size,
            num_samples=num_samples,
            forced=forced,
            instance_share=instance_share,
            offset=offset,
            classes=classes,
            min_voxels=min_voxels,
            allow_smaller=allow_smaller,
        )

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "RandCropByInstancesd":
        """Make the next draws repeatable."""
        super().set_random_state(seed, state)
        self.cropper.set_random_state(seed, state)
        return self

    def randomize(self, label: torch.Tensor | None = None, instances: InstanceIndex | None = None) -> None:
        """Draw the centers of the next crops, see `RandCropByInstances.randomize`."""
        self.cropper.randomize(label, instances)

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Return ``num_samples`` items; what is not cropped is copied into each."""
        item = dict(data)
        instances = None if self.instances_key is None else item.pop(self.instances_key, None)
        self.randomize(item.get(self.label_key), instances)
        rest = {key: value for key, value in item.items() if key not in self.keys}
        crops: list[dict[Hashable, Any]] = [{**item, **deepcopy(rest)} for _ in range(self.cropper.num_samples)]
        for key in self.key_iterator(item):
            for crop, patch in zip(crops, self.cropper(item[key], randomize=False), strict=True):
                crop[key] = patch
        return crops


RandCropByInstancesD = RandCropByInstancesDict = RandCropByInstancesd
