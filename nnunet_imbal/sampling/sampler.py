"""Draw a class, then an instance of it, then a patch that shows it: no lesion of the dataset is out of reach."""

from dataclasses import dataclass
from math import floor, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.sampling.index import InstanceIndex, Region

__all__ = ["Draw", "InstanceBalancedSampler", "Randomness", "case_weights", "patch_center"]

Randomness = np.random.Generator | np.random.RandomState
"""Both have ``random()``, which is all that is asked of them; MONAI's transforms own the older kind."""


@dataclass(frozen=True)
class Draw:
    """One forced patch.

    Attributes:
        case: name of the case.
        region: labels of the class that was drawn.
        instance: its number in the index.
        center: middle voxel of the patch, i.e. the one at ``size // 2``; may lie outside the image near its border.
    """

    case: str
    region: Region
    instance: int
    center: tuple[int, ...]


class InstanceBalancedSampler:
    """Small lesions and rare classes become the target of a patch as often as asked, wherever they are.

    Class c with probability ``n_c^-g / sum``, where ``n_c`` is the number of cases that contain it and ``g`` the
    ``class_exponent``; then instance k of that class, out of K in all cases, with ``(1 - s) V_k / sum V + s / K``,
    where ``V`` is the volume and ``s`` the ``instance_share``; then a random voxel of it, moved by a random offset
    (`patch_center`).

    Args:
        index: the instances.
        class_exponent: ``g``, at least 0. 0: each class alike; 1: a class that is in half as many cases is drawn
            twice as often.
        instance_share: ``s``, 0 to 1. 0: in proportion to volume, as voxel-wise sampling does; 1: every instance alike.
        offset: how far the patch may be moved off the instance, 0 (not at all) to 1 (until it touches the edge).

    Raises:
        ConfigError: a value out of range, or an index without any instance.

    Source:
        Our reconstruction. nnDetection (Baumgartner et al., https://doi.org/10.1007/978-3-030-87240-3_51) draws
        instances uniformly and moves the patch; the mixture with volume and the class exponent are ours.

    Example:
        >>> from nnunet_imbal.sampling.index import find_instances
        >>> labels = np.zeros((9, 9), np.uint8)
        >>> labels[1, 2], labels[5:8, 5:8] = 1, 1
        >>> sampler = InstanceBalancedSampler(find_instances(labels), instance_share=1)
        >>> sampler.instance_probabilities.tolist()
        [0.5, 0.5]
        >>> sampler.draw((5, 5), np.random.default_rng(0)).instance
        1
    """

    def __init__(
        self,
        index: InstanceIndex,
        *,
        class_exponent: float = 1.0,
        instance_share: float = 0.5,
        offset: float = 0.7,
    ) -> None:
        if not len(index):
            raise ConfigError("the index holds no instance, so there is nothing to draw; sample at random instead")
        if not 0 <= class_exponent < float("inf"):
            raise ConfigError(f"class_exponent must be a finite number of at least 0, got {class_exponent}")
        for name, value in (("instance_share", instance_share), ("offset", offset)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, got {value}")
        self.index = index
        self.offset = offset
        self.class_probabilities = _class_probabilities(index.cases_per_class(), class_exponent)
        self.instance_probabilities = self._instance_probabilities(instance_share)
        self._cumulative = np.cumsum(self.instance_probabilities)

    def draw(self, patch_size: ArrayLike, rng: Randomness) -> Draw:
        """Draw one patch; costs some microseconds, whatever the number of instances.

        Args:
            patch_size: voxels along each axis.
            rng: where the randomness comes from.
        """
        index = self.index
        # Class and instance in one draw: the probabilities of a class's instances add up to that of the class.
        at = self._cumulative[-1] * rng.random()
        instance = min(int(np.searchsorted(self._cumulative, at, side="right")), len(index) - 1)
        begin, end = index.first_position[instance : instance + 2]
        voxel = index.positions[begin + _below(int(end - begin), rng)]
        return Draw(
            case=index.cases[index.case_of[instance]],
            region=index.classes[index.class_of[instance]],
            instance=instance,
            center=patch_center(voxel, index.boxes[instance], patch_size, rng, self.offset),
        )

    def _instance_probabilities(self, share: float) -> NDArray[np.float64]:
        classes, volumes = self.index.class_of, self.index.volumes
        counts = np.bincount(classes, minlength=len(self.class_probabilities))
        totals = np.bincount(classes, weights=volumes, minlength=len(self.class_probabilities))
        within = (1 - share) * volumes / totals[classes] + share / counts[classes]
        return within * self.class_probabilities[classes]


def patch_center(
    voxel: ArrayLike, box: ArrayLike, patch_size: ArrayLike, rng: Randomness, offset: float = 0.7
) -> tuple[int, ...]:
    """Place a patch around a voxel of an instance so that "in the middle" tells the network nothing.

    Along each axis of patch size P and instance extent e, the voxel is moved by a whole number drawn uniformly from
    ``-r .. r``, ``r = floor(offset * max(0, P - e) / 2)``. An instance that fits into the patch then is moved back
    inside; one that does not fit has r = 0.

    Args:
        voxel: of the instance, ``(D,)``.
        box: bounding box of the instance, ``(D, 2)``, as in `InstanceIndex`.
        patch_size: ``(D,)``, voxels.
        rng: where the randomness comes from.
        offset: 0 to 1.

    Returns:
        Voxel at place ``P // 2`` of the patch.

    Example:
        >>> patch_center((5, 5), ((5, 6), (2, 9)), (8, 4), np.random.default_rng(0), offset=0)
        (5, 5)
    """
    center = []
    for at, (begin, end), size in zip(np.asarray(voxel), np.asarray(box), np.asarray(patch_size), strict=True):
        reach = floor(offset * max(0, int(size) - int(end - begin)) / 2)
        start = int(at) - int(size) // 2 - reach + _below(2 * reach + 1, rng)
        if end - begin <= size:
            start = min(max(start, int(end - size)), int(begin))
        center.append(start + int(size) // 2)
    return tuple(center)


def case_weights(index: InstanceIndex, threshold: float) -> NDArray[np.float64]:
    """Draw cases with rare classes more often (repeat-factor sampling).

    ``r_c = max(1, sqrt(t / f_c))`` with ``f_c`` the share of cases that contain class c; a case gets the largest
    ``r_c`` of its classes, one without any class gets 1.

    Args:
        index: the instances.
        threshold: ``t``; classes in a smaller share of the cases are repeated. 0 < t <= 1.

    Returns:
        Probability of each case, ``(N,)``, adding up to 1.

    Raises:
        ConfigError: ``threshold`` out of range.

    Source:
        Gupta, Dollár and Girshick, "LVIS", CVPR 2019, https://arxiv.org/abs/1908.03195.

    Example:
        >>> from nnunet_imbal.sampling.index import find_instances, merge
        >>> maps = [[[1, 2]], [[1, 0]], [[1, 0]], [[1, 0]]]
        >>> case_weights(merge([find_instances(np.array(each), [1, 2]) for each in maps]), 1.0).tolist()
        [0.4, 0.2, 0.2, 0.2]
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the threshold of repeat-factor sampling must be above 0 and at most 1, got {threshold}")
    weights = np.ones(len(index.cases))
    for number, count in enumerate(index.cases_per_class()):
        if count:
            owners = index.case_of[index.class_of == number]
            weights[owners] = np.maximum(weights[owners], sqrt(threshold * len(index.cases) / count))
    return weights / weights.sum()


def _class_probabilities(cases: NDArray[np.int64], exponent: float) -> NDArray[np.float64]:
    weights = np.zeros(len(cases))
    weights[cases > 0] = cases[cases > 0].astype(float) ** -exponent
    return weights / weights.sum()


def _below(count: int, rng: Randomness) -> int:
    return min(int(rng.random() * count), count - 1)
