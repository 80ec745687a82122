"""What one label map says about imbalance: how large, how many, how thin, and what touches what."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.special import gammaln

import numba_kernels

__all__ = ["CaseMeasures", "ClassMeasures", "chance_of_no_centre", "measure_case", "skeleton_length"]

STORED_VOXELS, STORED_SHARE = 10_000, 0.01  # of each class and case, by nnU-Net's preprocessing
_MOST_RADII = 200  # kept of each class and case; sorted and evenly spaced, so quantiles stay

Region = tuple[int, ...]


@dataclass(frozen=True)
class ClassMeasures:
    """One class in one case.

    Attributes:
        volume_mm3: volume.
        components_mm3: volume of each connected component (26 neighbours; 8 in a single slice), ascending.
        no_centre: for each of them the chance that stock nnU-Net can never put it into the middle of a forced patch.
        skeleton_mm: length of the centre lines.
        radii_mm: radii along the centre lines, ascending; thinned out when there are many.
    """

    volume_mm3: float
    components_mm3: list[float]
    no_centre: list[float]
    skeleton_mm: float
    radii_mm: list[float]


@dataclass(frozen=True)
class CaseMeasures:
    """One label map.

    Attributes:
        shape: voxels along Z, Y, X.
        spacing_mm: mm per voxel along Z, Y, X.
        voxels: how many there are.
        ignored: how many of them nobody annotated.
        classes: measures of each class that occurs.
        together: measures of all classes as one; None if there is none.
        touching: pairs of classes of which voxels are neighbours, in alphabetical order.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    voxels: int
    ignored: int
    classes: dict[str, ClassMeasures]
    together: ClassMeasures | None
    touching: list[tuple[str, str]]

    @property
    def unlabelled(self) -> bool:
        """Whether nobody annotated anything."""
        return self.ignored == self.voxels


def measure_case(
    labels: NDArray[np.integer], spacing: Sequence[float], classes: Mapping[str, Region], ignore: int | None = None
) -> CaseMeasures:
    """Measure every class of a label map.

    Args:
        labels: ``(Z, Y, X)`` integers from 0.
        spacing: mm per voxel along Z, Y, X.
        classes: name -> label values that make the class; classes may overlap (regions).
        ignore: value of voxels that nobody annotated, or None.

    Example:
        >>> labels = np.zeros((4, 8, 8), np.uint8)
        >>> labels[1:3, 1:3, 1:7], labels[0, 7, 7] = 1, 1
        >>> case = measure_case(labels, (2.0, 1.0, 1.0), {"vein": (1,), "tumour": (2,)})
        >>> list(case.classes), case.classes["vein"].components_mm3
        (['vein'], [2.0, 48.0])
    """
    boxes = find_objects(labels.astype(np.int32, copy=False))

    def measure(values: Iterable[int]) -> ClassMeasures | None:
        box = _union([boxes[value - 1] for value in values if value <= len(boxes) and boxes[value - 1]])
        return None if box is None else _measure_class(np.isin(labels[box], list(values)), spacing)

    found = {name: measure(values) for name, values in classes.items()}
    measures = {name: each for name, each in found.items() if each is not None}
    return CaseMeasures(
        shape=labels.shape,
        spacing_mm=tuple(float(mm) for mm in spacing),
        voxels=labels.size,
        ignored=0 if ignore is None else int(np.count_nonzero(labels == ignore)),
        classes=measures,
        together=next(iter(measures.values()), None) if len(classes) == 1 else measure(set(chain(*classes.values()))),
        touching=_contacts(labels, classes),
    )


def skeleton_length(skeleton: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """Length in mm of lines one voxel thin: half the way from each voxel to its two nearest neighbours on the line.

    A single voxel has length 0. At a junction the third branch counts from its own first voxel on.

    Example:
        >>> skeleton_length(np.eye(4, dtype=bool), (3.0, 4.0))
        15.0
    """
    inner = np.pad(skeleton, 1)
    voxels = np.argwhere(inner)
    offsets = np.argwhere(np.ones((3,) * skeleton.ndim)) - 1
    offsets = offsets[np.any(offsets != 0, axis=1)]
    steps = np.linalg.norm(offsets * np.asarray(spacing), axis=1)
    there = inner[tuple((voxels[:, None] + offsets).transpose(2, 0, 1))]
    nearest = np.sort(np.where(there, steps, np.inf), axis=1)[:, :2]
    return float(nearest[np.isfinite(nearest)].sum() / 2)


def chance_of_no_centre(sizes: NDArray[np.integer]) -> NDArray[np.float64]:
    r"""Chance of each component that none of its voxels is kept as a possible centre of forced patches.

    nnU-Net's preprocessing keeps 10,000 voxels of each class and case, or 1 % where that is more, drawn without
    replacement; forced patches are centred on nothing else. Of :math:`N` voxels :math:`t` are kept, so a component of
    :math:`n` is left out with chance :math:`\binom{N-n}{t} / \binom{N}{t}`. Sizes are those of the original grid;
    after resampling they differ a little.

    Args:
        sizes: voxels of all components of the class in one case.

    Example:
        >>> chance_of_no_centre(np.array([1, 20_000])).round(3).tolist()
        [0.5, 0.0]
    """
    total = int(sizes.sum())
    kept = max(min(STORED_VOXELS, total), int(np.ceil(total * STORED_SHARE)))
    left = total - np.asarray(sizes, np.float64)
    possible = left >= kept
    left = np.where(possible, left, kept)
    log = gammaln(left + 1) - gammaln(left - kept + 1) - gammaln(total + 1) + gammaln(total - kept + 1)
    return np.where(possible, np.exp(log), 0.0)


def _measure_class(mask: NDArray[np.bool_], spacing: Sequence[float]) -> ClassMeasures:
    mask, spacing = (mask[0], spacing[1:]) if len(mask) == 1 else (mask, spacing)  # a single slice has no thickness
    voxel = float(np.prod(spacing))
    sizes = np.sort(numba_kernels.component_stats(mask).sizes)
    around = np.pad(mask, 1)  # what lies beyond the box is another class
    skeleton = numba_kernels.skeletonize(around)
    radii = np.sort(numba_kernels.distance(around, spacing)[skeleton])
    places = np.linspace(0, len(radii) - 1, min(len(radii), _MOST_RADII)).round().astype(int)
    return ClassMeasures(
        volume_mm3=float(sizes.sum() * voxel),
        components_mm3=(sizes * voxel).tolist(),
        no_centre=chance_of_no_centre(sizes).tolist(),
        skeleton_mm=skeleton_length(skeleton, spacing),
        radii_mm=radii[places].tolist(),
    )


def _contacts(labels: NDArray[np.integer], classes: Mapping[str, Region]) -> list[tuple[str, str]]:
    """Classes that share a label contain each other or overlap: of them nothing is said."""
    largest = int(labels.max(initial=0))
    touching = numba_kernels.class_contacts(labels, largest + 1) > 0

    def touch(a: Region, b: Region) -> bool:
        rows, columns = ([value for value in values if value <= largest] for values in (a, b))
        return set(a).isdisjoint(b) and bool(touching[np.ix_(rows, columns)].any())

    names = sorted(classes)
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if touch(classes[a], classes[b])]


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...] | None:
    if not boxes:
        return None
    axes = zip(*boxes, strict=True)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in axes)
