"""Where the instances (lesions, vessel pieces, organs) of a dataset are: found once, drawn from ever after."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal.errors import ConfigError, LabelError
from numba_kernels import component_stats, connected_components

__all__ = ["MAX_POSITIONS", "InstanceIndex", "Region", "find_instances", "merge"]

Region = tuple[int, ...]
"""Labels that together make one class, as in nnU-Net's region-based training."""

MAX_POSITIONS = 64
"""Voxels remembered of each instance: any one of them can become the middle of a patch."""

_SEED = 20260101  # which voxels of a large instance are remembered; fixed, so that an index can be made again


@dataclass(frozen=True)
class InstanceIndex:
    """K instances of C classes in N cases, as flat arrays without any Python object per instance.

    Attributes:
        cases: names of the cases, ``N``; also of those without an instance.
        classes: labels of each class, ``C``.
        case_of: place in ``cases``, int32 ``(K,)``.
        class_of: place in ``classes``, int32 ``(K,)``.
        volumes: voxels, int64 ``(K,)``.
        boxes: bounding box, first voxel and voxel after the last one along each axis, int32 ``(K, D, 2)``.
        positions: voxels of all instances, one after another, int32 ``(M, D)``.
        first_position: those of instance k are ``positions[first_position[k] : first_position[k + 1]]``,
            int64 ``(K + 1,)``.
    """

    cases: tuple[str, ...]
    classes: tuple[Region, ...]
    case_of: NDArray[np.int32]
    class_of: NDArray[np.int32]
    volumes: NDArray[np.int64]
    boxes: NDArray[np.int32]
    positions: NDArray[np.int32]
    first_position: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.volumes)

    def cases_per_class(self) -> NDArray[np.int64]:
        """In how many cases each class occurs, ``(C,)``."""
        pairs = np.unique(np.stack([self.class_of, self.case_of]), axis=1)
        return np.bincount(pairs[0], minlength=len(self.classes))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The numeric part by name, for a file."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("cases", "classes")}


def find_instances(
    labels: NDArray[Any],
    classes: Sequence[int | Sequence[int]] | None = None,
    *,
    min_voxels: int = 1,
    max_positions: int = MAX_POSITIONS,
    case: str = "",
) -> InstanceIndex:
    """Find the separate pieces of each class in one label map.

    Two voxels belong to one instance if a chain of neighbours (26 in 3-D, 8 in 2-D) of the class joins them.

    Args:
        labels: ``(Y, X)`` or ``(Z, Y, X)``, bool or any integer dtype.
        classes: labels, or groups of labels that count as one class. Labels not named here (background, ignore,
            nnU-Net's -1 outside the body) make no instance. Default: each label above 0 is a class.
        min_voxels: smaller instances are left out, as if they were not there.
        max_positions: voxels remembered of each instance, drawn without replacement with a fixed seed.
        case: name of the case.

    Returns:
        Index of one case; without an instance all arrays have 0 rows.

    Raises:
        ConfigError: ``min_voxels`` or ``max_positions`` is below 1.
        LabelError: ``labels`` is neither 2-D nor 3-D, or does not hold whole numbers.

    Example:
        >>> index = find_instances(np.array([[1, 1, 0, 2], [0, 0, 0, 0], [2, 0, 0, 0]]))
        >>> index.classes, index.class_of.tolist(), index.volumes.tolist()
        (((1,), (2,)), [0, 1, 1], [2, 1, 1])
    """
    for name, value in (("min_voxels", min_voxels), ("max_positions", max_positions)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    labels = _as_label_map(labels)
    if classes is None:
        classes = [int(value) for value in np.unique(labels) if value > 0]
    regions = tuple(_as_region(each) for each in classes)
    rng = np.random.default_rng(_SEED)
    parts = [
        _find_in_class(_mask(labels, region), number, min_voxels, max_positions, rng)
        for number, region in enumerate(regions)
    ]
    return _assemble((case,), regions, labels.ndim, parts)


def merge(parts: Sequence[InstanceIndex]) -> InstanceIndex:
    """Join the indices of several cases into that of the dataset.

    Args:
        parts: at least one, all with the same classes and number of axes.

    Raises:
        ValueError: nothing to merge, or different classes.

    Example:
        >>> one, two = (find_instances(np.eye(2, dtype=np.uint8), [1], case=name) for name in "ab")
        >>> merge([one, two]).case_of.tolist()
        [0, 1]
    """
    if len({part.classes for part in parts}) != 1:
        raise ValueError(f"expected indices with the same classes, got {[part.classes for part in parts]}")
    before = np.cumsum([0, *(len(part.cases) for part in parts)])
    counts = np.concatenate([np.diff(part.first_position) for part in parts])
    return InstanceIndex(
        cases=tuple(case for part in parts for case in part.cases),
        classes=parts[0].classes,
        case_of=np.concatenate([part.case_of + n for part, n in zip(parts, before, strict=False)]).astype(np.int32),
        class_of=np.concatenate([part.class_of for part in parts]),
        volumes=np.concatenate([part.volumes for part in parts]),
        boxes=np.concatenate([part.boxes for part in parts]),
        positions=np.concatenate([part.positions for part in parts]),
        first_position=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


@dataclass(frozen=True)
class _ClassInstances:
    number: int
    volumes: NDArray[np.int64]
    boxes: NDArray[np.int64]
    positions: list[NDArray[np.int64]]


def _find_in_class(
    mask: NDArray[np.bool_], number: int, min_voxels: int, max_positions: int, rng: np.random.Generator
) -> _ClassInstances:
    stats = component_stats(mask)
    if not len(stats.sizes):  # most classes are absent from most cases
        return _ClassInstances(number, stats.sizes, stats.boxes, [])
    components, _ = connected_components(mask)
    kept = np.flatnonzero(stats.sizes >= min_voxels)
    positions = [_positions(components, int(k) + 1, stats.boxes[k], max_positions, rng) for k in kept]
    return _ClassInstances(number, stats.sizes[kept], stats.boxes[kept], positions)


def _positions(
    components: NDArray[np.int32], component: int, box: NDArray[np.int64], most: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    part = components[tuple(slice(begin, end) for begin, end in box)]
    inside = np.flatnonzero(part == component)
    if len(inside) > most:
        inside = rng.choice(inside, most, replace=False)
    return np.stack(np.unravel_index(inside, part.shape), axis=1) + box[:, 0]


def _assemble(
    cases: tuple[str, ...], classes: tuple[Region, ...], ndim: int, parts: list[_ClassInstances]
) -> InstanceIndex:
    positions = [voxels for part in parts for voxels in part.positions]
    return InstanceIndex(
        cases=cases,
        classes=classes,
        case_of=np.zeros(len(positions), np.int32),
        class_of=np.repeat([part.number for part in parts], [len(part.volumes) for part in parts]).astype(np.int32),
        volumes=np.concatenate([np.empty(0, np.int64), *(part.volumes for part in parts)]),
        boxes=np.concatenate([np.empty((0, ndim, 2), np.int32), *(part.boxes for part in parts)]).astype(np.int32),
        positions=np.concatenate([np.empty((0, ndim), np.int32), *positions]).astype(np.int32),
        first_position=np.cumsum([0, *map(len, positions)]).astype(np.int64),
    )


def _as_label_map(labels: NDArray[Any]) -> NDArray[Any]:
    labels = np.asarray(labels)
    if labels.ndim not in (2, 3):
        raise LabelError(f"expected a label map (Y, X) or (Z, Y, X) without channels, got shape {labels.shape}")
    if labels.dtype.kind in "biu":
        return labels
    if not (np.isfinite(labels).all() and np.array_equal(labels, np.rint(labels))):
        raise LabelError(f"expected whole numbers, got {labels.dtype} with other values; resample by mode='nearest'")
    return labels.astype(np.int64)


def _as_region(labels: int | Sequence[int]) -> Region:
    return (int(labels),) if isinstance(labels, int | np.integer) else tuple(int(label) for label in labels)


def _mask(labels: NDArray[Any], region: Region) -> NDArray[np.bool_]:
    return labels == region[0] if len(region) == 1 else np.isin(labels, region)
