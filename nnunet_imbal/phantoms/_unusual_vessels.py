"""What few people have and networks stumble over: an aneurysm, and two arteries that touch without being joined."""

import math
from dataclasses import replace

import numpy as np

from nnunet_imbal.phantoms._circle_of_willis import Anatomy, Segment
from nnunet_imbal.phantoms._tubes import Points, length_of

__all__ = ["with_aneurysm", "with_kissing_arteries"]

_RADIUS_MM = (1.5, 4.0)
_STEP_MM = 0.2
_OVERLAP = 0.2  # of both radii: walls that barely touch are parted by the voxel grid
# Segments at whose end an aneurysm may grow, and where it points to (Z, Y, X).
_SITES = {
    "BA": (1.0, 0.1, 0.0),
    **{f"{side}-C6": (-0.5, -0.5, 0.7 * out) for side, out in (("R", 1), ("L", -1))},
    **{f"{side}-M1": (-0.1, 0.3, 1.0 * out) for side, out in (("R", 1), ("L", -1))},
    **{f"{side}-A1": (-0.2, 0.8, 0.5 * out) for side, out in (("R", 1), ("L", -1))},
}


def with_aneurysm(rng: np.random.Generator, anatomy: Anatomy) -> Anatomy:
    """Add a sac with a neck to the top of the basilar artery, the carotid at the Pcom, or the end of M1 or A1.

    It is a segment of its own, ``"aneurysm"``, of the class of the artery from which it grows. Being a dead end, it
    changes no Betti number. Sites, directions and the radius of 1.5 to 4 mm are our assumptions.
    """
    sites = [segment for segment in anatomy.segments if segment.name in _SITES]
    parent = sites[rng.integers(len(sites))]
    axis = _SITES[parent.name] + rng.normal(0, 0.1, 3)
    sac = _sac(parent, axis / np.linalg.norm(axis), rng.uniform(*_RADIUS_MM))
    return replace(anatomy, segments=(*anatomy.segments, sac))


def with_kissing_arteries(anatomy: Anatomy) -> Anatomy:
    """Bend both A2, right and left, towards each other until they touch halfway; they carry different labels.

    In voxels a contact cannot be told from a junction, so it counts as one for all classes together
    (`Anatomy.contacts`), but not for any class alone. The A2 become a little longer.
    """
    parts = {segment.name: segment for segment in anatomy.segments}
    right, left = (_halfway(parts[f"{side}-A2"]) for side in "RL")
    apart = right[0] - left[0]
    gap = float(np.linalg.norm(apart))
    shift = (gap - (1 - _OVERLAP) * (right[1] + left[1])) / 2 * apart / gap
    parts["R-A2"] = _pulled(parts["R-A2"], -shift)
    parts["L-A2"] = _pulled(parts["L-A2"], shift)
    lengths = {**anatomy.lengths, **{name: length_of(parts[name].points) for name in ("R-A2", "L-A2")}}
    return replace(anatomy, lengths=lengths, segments=tuple(parts.values()), contacts=(("R-A2", "L-A2"),))


def _sac(parent: Segment, axis: Points, radius: float) -> Segment:
    """A pear: balls from the artery's axis to the middle of the dome, the first as wide as the neck."""
    neck, length = min(float(parent.radii[-1]), radius / 2), float(parent.radii[-1]) + radius
    along = np.linspace(0, 1, math.ceil(length / _STEP_MM) + 1)
    points = parent.points[-1] + along[:, None] * length * axis
    radii = neck + (radius - neck) * np.sin(np.pi / 2 * along) ** 2
    return Segment("aneurysm", parent.label, parent.end, "aneurysm-dome", points, radii)


def _halfway(segment: Segment) -> tuple[Points, float]:
    middle = len(segment.points) // 2
    return segment.points[middle], float(segment.radii[middle])


def _pulled(segment: Segment, shift: Points) -> Segment:
    """The same ends, the middle shifted."""
    share = np.sin(np.linspace(0, np.pi, len(segment.points))) ** 2
    return replace(segment, points=segment.points + share[:, None] * shift)
