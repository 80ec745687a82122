"""What transforms share that derive one array from another: a key beside the first, mm per voxel."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform

__all__ = ["DerivedMapd", "array_spacing"]


class DerivedMapd(MapTransform):
    """Adds what ``converter`` makes of ``label`` as ``label`` + ``postfix``; a postfix of ``""`` replaces the label."""

    def __init__(
        self,
        keys: KeysCollection,
        converter: Callable[[NdarrayOrTensor], NdarrayOrTensor],
        postfix: str,
        allow_missing_keys: bool,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.converter = converter
        self.postfix = postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the results added."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[f"{key}{self.postfix}" if self.postfix else key] = self.converter(out[key])
        return out


def array_spacing(img: NdarrayOrTensor) -> list[float] | None:
    """Mm per voxel along the array's own spatial axes, from the affine of a `MetaTensor`; None for other inputs."""
    if not isinstance(img, MetaTensor):
        return None
    # All rows of the affine: pixdim looks at two of them for a 2-D image, which fails for a slice along another axis.
    steps = affine_to_spacing(img.affine, r=len(img.affine) - 1)
    return steps[: img.ndim - 1].tolist()
