"""What every phantom makes: one case, and a few words about the whole dataset."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.errors import ConfigError

__all__ = ["Case", "Phantom", "generator"]


@dataclass(frozen=True)
class Case:
    """One image with its label map, in the axis order of a NIfTI file.

    Attributes:
        image: Grey values, shape (X, Y, Z).
        label: Class of each voxel, uint8, shape (X, Y, Z); 0 is background.
        instances: Which lesion, organ, vessel segment or vertebra each voxel belongs to, uint16, shape (X, Y, Z);
            0 is none.
        affine: Voxel index to millimetres, float64, shape (4, 4).
        truth: What is known exactly about this case; goes into ``truth/CASE.json``.
    """

    image: NDArray[Any]
    label: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    affine: NDArray[np.float64]
    truth: Mapping[str, Any] = field(default_factory=dict)


class Phantom(Protocol):
    """A source of cases. Both methods give the same voxels for the same numbers."""

    @property
    def title(self) -> str:
        """Name of the dataset, as in ``Dataset900_Title``."""

    @property
    def description(self) -> str:
        """What the data are and what they may be used for."""

    @property
    def licence(self) -> str:
        """Under which terms the data may be used."""

    @property
    def channel(self) -> str:
        """nnU-Net's channel name; ``CT`` would change the normalisation."""

    @property
    def labels(self) -> Mapping[str, int]:
        """Class names and values, with ``background`` 0."""

    def training_case(self, seed: int, index: int) -> Case:
        """Return training case number ``index``."""

    def test_case(self, seed: int, index: int) -> Case | None:
        """Return test case number ``index``, or None if there are no more."""


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Return the random generator of one case; no other case shares its numbers.

    Raises:
        ConfigError: ``seed`` is negative.
    """
    if seed < 0:
        raise ConfigError(f"The seed is {seed}; expected a whole number from 0 upwards.")
    return np.random.default_rng([seed, stream, index])
