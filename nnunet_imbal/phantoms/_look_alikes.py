"""Bright structures around the circle of Willis that carry no label. Their courses are our assumptions."""

import numpy as np

from nnunet_imbal.phantoms._circle_of_willis import Anatomy, Segment
from nnunet_imbal.phantoms._tubes import Points, Tube, bent, fork, tree

__all__ = ["look_alikes"]

_SMALLEST = 0.3  # radius, mm
_VEIN, _SINUS, _FAT = 0.5, 0.45, 0.75  # brightness
_SIDES = (1.0, -1.0)


def look_alikes(rng: np.random.Generator, anatomy: Anatomy) -> list[Tube]:
    """Return arteries beyond and beside the labelled ones, veins, cavernous sinus and fat."""
    parts = {segment.name: segment for segment in anatomy.segments}
    tubes = [*_feeders(rng, parts["BA"]), *_beside_basilar(rng, parts["BA"])]
    for name, segment in parts.items():
        if segment.end.endswith(("M2", "A3", "P3")):
            tubes += _beyond(rng, segment)
        elif name.endswith("C6"):
            tubes += _carotid(rng, segment)
        elif name.endswith("C7"):
            tubes += _choroidal(rng, segment)
    for out in _SIDES:
        tubes += [
            *_veins(rng, out),
            _blob(rng, (-13, 17, 13 * out), 3.0, _SINUS),
            _blob(rng, (-14, 30, 17 * out), 4, _FAT),
        ]
    return tubes


def _unit(*values: float) -> Points:
    return np.array(values) / np.linalg.norm(values)


def _jittered(rng: np.random.Generator, point: tuple[float, float, float], sd: float) -> Points:
    return np.array(point) + rng.normal(0, sd, 3)


def _beyond(rng: np.random.Generator, segment: Segment) -> list[Tube]:
    """Both branches of the bifurcation at which a label ends, and theirs."""
    onward = segment.points[-1] - segment.points[-8]
    return fork(rng, segment.points[-1], _unit(*onward), float(segment.radii[-1]), _SMALLEST, depth=4)


def _tail(rng: np.random.Generator, start: Points, direction: Points, radius: float, length: float) -> Tube:
    points = bent(start, start + direction * length, 1.1 * length, rng.normal(size=3), sway=rng.normal(0, 0.3))
    return Tube(points, np.full(len(points), radius), signal=0.92)


def _feeders(rng: np.random.Generator, basilar: Segment) -> list[Tube]:
    """The two vertebral arteries below the basilar artery."""
    radius = 0.794 * basilar.radii[0]  # Murray's law for equal branches
    return [_tail(rng, basilar.points[0], _unit(-0.8, -0.1, 0.6 * out), radius, 20) for out in _SIDES]


def _beside_basilar(rng: np.random.Generator, basilar: Segment) -> list[Tube]:
    """Superior and anterior inferior cerebellar arteries; the former run along the P1."""
    tubes = []
    for share, radius in ((0.92, rng.uniform(0.55, 0.8)), (0.35, rng.uniform(0.4, 0.6))):
        start = basilar.points[int(share * len(basilar.points))]
        for out in _SIDES:
            tubes += tree(rng, start, _unit(0.0, -0.2, out), radius, _SMALLEST, depth=3)
    return tubes


def _carotid(rng: np.random.Generator, siphon: Segment) -> list[Tube]:
    """The carotid artery below its label, and the ophthalmic artery."""
    out = float(np.sign(siphon.points[0, 2]))
    eye = siphon.points[int(0.8 * len(siphon.points))]
    below = _tail(rng, siphon.points[0], _unit(-0.7, -0.6, 0.4 * out), float(siphon.radii[0]), 25)
    return [below, *tree(rng, eye, _unit(-0.2, 1.0, 0.3 * out), rng.uniform(0.45, 0.6), _SMALLEST, depth=2)]


def _choroidal(rng: np.random.Generator, segment: Segment) -> list[Tube]:
    """The anterior choroidal artery, which leaves beside the Pcom and runs along it."""
    start, out = segment.points[len(segment.points) // 2], float(np.sign(segment.points[0, 2]))
    return tree(rng, start, _unit(0.1, -1.0, 0.35 * out), rng.uniform(0.35, 0.5), _SMALLEST, depth=2)


def _veins(rng: np.random.Generator, out: float) -> list[Tube]:
    """Middle cerebral vein beside the M1, and basal vein around the midbrain to the midline."""
    front, back = _jittered(rng, (2, 8, 15 * out), 1), _jittered(rng, (14, -22, 1.5 * out), 0.5)
    side = _jittered(rng, (-3, 13, 32 * out), 1.5)
    courses = [(side, front, (0, -1, 0)), (front, back, (0, 0, out)), (back, back + np.array([8, -16, 0]), (1, 0, 0))]
    tubes = []
    for (start, end, bow), radius in zip(courses, (0.9, 1.0, 1.6), strict=True):
        points = bent(start, end, 1.12 * float(np.linalg.norm(end - start)), np.array(bow, dtype=float))
        tubes.append(Tube(points, np.full(len(points), radius * rng.uniform(0.85, 1.15)), _VEIN))
    return tubes


def _blob(rng: np.random.Generator, centre: tuple[float, float, float], radius: float, signal: float) -> Tube:
    """A short thick piece that no vessel would be taken for in three dimensions, but in one slice."""
    middle, reach = _jittered(rng, centre, 1.5), _unit(*rng.normal(size=3)) * rng.uniform(2, 5)
    points = middle + np.linspace(-1, 1, 9)[:, None] * reach
    return Tube(points, radius * rng.uniform(0.7, 1.2) * np.hanning(11)[1:-1].clip(0.5), signal)
