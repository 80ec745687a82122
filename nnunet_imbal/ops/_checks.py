"""Checks that the operators share."""

from collections.abc import Sequence

from torch import Tensor

from nnunet_imbal.errors import ConfigError

__all__ = ["CONNECTIVITIES", "spatial_axes", "valid_connectivity", "valid_spacing"]

CONNECTIVITIES = {2: (8, 4), 3: (26, 18, 6)}


def spatial_axes(mask: Tensor) -> int:
    """Number of spatial axes of ``(B, C, *S)``: 2 or 3, anything else is refused."""
    ndim = mask.ndim - 2
    if ndim not in CONNECTIVITIES:
        raise ConfigError(f"mask must be (B, C, Y, X) or (B, C, Z, Y, X), got shape {tuple(mask.shape)}")
    return ndim


def valid_spacing(spacing: Sequence[float] | None, ndim: int) -> list[float]:
    """One positive number of mm per axis; None means 1 mm."""
    steps = [1.0] * ndim if spacing is None else [float(step) for step in spacing]
    if len(steps) != ndim or not all(0 < step < float("inf") for step in steps):
        raise ConfigError(f"spacing must be {ndim} positive numbers (mm per voxel, in array order), got {spacing}")
    return steps


def valid_connectivity(connectivity: int | None, ndim: int) -> int:
    """A connectivity that exists in this dimension; None means all neighbours."""
    known = CONNECTIVITIES[ndim]
    if connectivity is not None and connectivity not in known:
        raise ConfigError(f"connectivity in {ndim}-D must be one of {known}, got {connectivity}")
    return connectivity or known[0]
