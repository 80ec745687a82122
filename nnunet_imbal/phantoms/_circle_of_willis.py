"""The circle of Willis as a graph of measured vessels: sizes, variants and courses of its segments."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation

from nnunet_imbal.phantoms._tubes import Points, Tube, bent, brightness

__all__ = ["CLASSES", "PUBLISHED", "VARIANTS", "Anatomy", "Segment", "Size", "Spread", "draw_anatomy", "draw_links"]

# Names and order of the TopCoW challenge (arXiv 2312.17670); it gives 15 to the last one, nnU-Net wants 13.
CLASSES = (
    "BA", "R-PCA", "L-PCA", "R-ICA", "R-MCA", "L-ICA", "L-MCA", "R-Pcom", "L-Pcom", "Acom", "R-ACA", "L-ACA", "3rd-A2",
)  # fmt: skip


class Spread(NamedTuple):
    """A normal distribution cut to a range, mm."""

    mean: float
    sd: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one value."""
        while True:
            value = float(rng.normal(self.mean, self.sd))
            if self.low <= value <= self.high:
                return value


class Size(NamedTuple):
    """Diameter and length of a vessel segment."""

    diameter: Spread
    length: Spread


# Mean, SD, least and largest value of 513 adults on time-of-flight angiography (Shatri 2017, table 1,
# doi 10.3889/oamjms.2017.160). The length of the Acom is taken as the free length from wall to wall.
PUBLISHED: Mapping[str, Size] = MappingProxyType(
    {
        "BA": Size(Spread(3.27, 0.33, 1.9, 4.15), Spread(30.2, 1.88, 23.6, 35.6)),
        "M1": Size(Spread(3.35, 0.31, 2.45, 4.34), Spread(15.75, 1.15, 13.2, 21.6)),
        "A1": Size(Spread(2.09, 0.27, 1.1, 2.93), Spread(13.96, 1.40, 9.9, 21.0)),
        "P1": Size(Spread(1.99, 0.31, 0.9, 2.8), Spread(6.59, 1.09, 3.2, 9.9)),
        "Pcom": Size(Spread(1.22, 0.20, 0.9, 2.1), Spread(12.93, 0.92, 10.0, 16.4)),
        "Acom": Size(Spread(1.50, 0.22, 0.9, 2.4), Spread(2.74, 0.62, 0.9, 4.9)),
    }
)
# Lengths of the ICA (its diameter is published there), of A2 and P2, and the third A2: our assumptions.
_ICA_DIAMETER = Spread(3.79, 0.19, 2.81, 4.2)
_SIZES: Mapping[str, Size] = MappingProxyType(
    {
        **PUBLISHED,
        "C6": Size(_ICA_DIAMETER, Spread(13, 1, 10, 16)),
        "C7": Size(_ICA_DIAMETER, Spread(7, 0.7, 5, 9)),
        "A2": Size(PUBLISHED["A1"].diameter, Spread(12, 1, 9, 15)),
        "P2": Size(PUBLISHED["P1"].diameter, Spread(11, 1, 8, 14)),
        "3rd-A2": Size(Spread(1.4, 0.15, 1.0, 1.8), Spread(11, 1, 8, 14)),
    }
)
_HYPOPLASTIC = (0.5, 0.85)  # diameter, mm; published is "below 1 mm"
_TAPER = 0.04  # a segment begins this much wider than its mean and ends this much narrower

# Which links of the circle are missing or thinner than 1 mm, and how often. From 1,864 people (Hindenes 2020,
# doi 10.1371/journal.pone.0241373): none 11.9 %, both Pcom 27.8 %, the five most frequent 68.5 %. From 1,667 people of
# the same survey (Hindenes 2023, hdl.handle.net/10037/30716): all three communicating arteries or one P1 15.4 %. From
# 513 adults (doi 10.5603/FM.a2018.0095): one A1 5.65 %. Our assumptions: how these sums are divided, that sides are
# equally frequent, and that these 19 stand for the 47 variants that were seen.
VARIANTS: Mapping[tuple[str, ...], float] = MappingProxyType(
    {
        (): 0.119,
        ("R-Pcom", "L-Pcom"): 0.278,
        ("Acom", "R-Pcom", "L-Pcom"): 0.103,
        ("R-Pcom",): 0.0925,
        ("L-Pcom",): 0.0925,
        ("R-P1",): 0.0255,
        ("L-P1",): 0.0255,
        ("R-P1", "L-Pcom"): 0.045,
        ("L-P1", "R-Pcom"): 0.045,
        ("Acom", "R-Pcom"): 0.025,
        ("Acom", "L-Pcom"): 0.025,
        ("Acom",): 0.0295,
        ("R-P1", "L-P1"): 0.02,
        ("Acom", "R-P1", "L-Pcom"): 0.009,
        ("Acom", "L-P1", "R-Pcom"): 0.009,
        ("R-A1", "R-Pcom", "L-Pcom"): 0.0125,
        ("L-A1", "R-Pcom", "L-Pcom"): 0.0125,
        ("R-A1",): 0.01575,
        ("L-A1",): 0.01575,
    }
)


class _Course(NamedTuple):
    """Class of a segment, its first and last node, and where it bulges to (Z, Y, X).

    A node is named after the segment that begins there.
    """

    label: str
    start: str
    end: str
    bow: tuple[float, float, float]


def _courses(side: str, out: float) -> dict[str, _Course]:
    """Return the segments of one side; ``out`` is the sign of X away from the midline."""
    return {
        f"{side}-C6": _Course(f"{side}-ICA", f"{side}-siphon", f"{side}-C7", (0.0, 1.0, 0.3 * out)),
        f"{side}-C7": _Course(f"{side}-ICA", f"{side}-C7", f"{side}-ICA-top", (0.0, -0.6, 0.6 * out)),
        f"{side}-M1": _Course(f"{side}-MCA", f"{side}-ICA-top", f"{side}-M2", (1.0, 0.5, 0.0)),
        f"{side}-A1": _Course(f"{side}-ACA", f"{side}-ICA-top", f"{side}-A2", (1.0, 0.2, 0.0)),
        f"{side}-A2": _Course(f"{side}-ACA", f"{side}-A2", f"{side}-A3", (0.0, 1.0, 0.3 * out)),
        f"{side}-P1": _Course(f"{side}-PCA", "BA-top", f"{side}-P2", (0.5, 0.8, 0.0)),
        f"{side}-P2": _Course(f"{side}-PCA", f"{side}-P2", f"{side}-P3", (0.2, 0.0, 1.0 * out)),
        f"{side}-Pcom": _Course(f"{side}-Pcom", f"{side}-P2", f"{side}-C7", (-0.5, 0.0, -0.8 * out)),
        f"{side}-Acom": _Course("Acom", "Acom-middle", f"{side}-A2", (0.0, 1.0, 0.0)),
    }


_SIDES = MappingProxyType({"R": 1.0, "L": -1.0})  # X grows to the patient's right, as in NIfTI's RAS
_COURSES: Mapping[str, _Course] = MappingProxyType(
    {
        "BA": _Course("BA", "BA-origin", "BA-top", (0.0, 1.0, 0.0)),
        **_courses("R", 1.0),
        **_courses("L", -1.0),
        "3rd-A2": _Course("3rd-A2", "Acom-middle", "3rd-A3", (-1.0, 0.5, 0.0)),
    }
)


@dataclass(frozen=True)
class Segment:
    """One edge of the centreline graph.

    Attributes:
        name: Anatomical name, for example ``R-P1``; ``R-Acom`` and ``L-Acom`` are the halves of the Acom.
        label: Its class, one of `CLASSES`.
        start: Node at the first point.
        end: Node at the last point.
        points: Centreline, mm, float64, shape (N, 3) in Z, Y, X.
        radii: Radius at each point, mm, float64, shape (N,).
    """

    name: str
    label: str
    start: str
    end: str
    points: Points
    radii: NDArray[np.float64]

    @property
    def volume_mm3(self) -> float:
        """Volume of the tube without its ends: the integral of πr² along the centreline, mm³."""
        area = np.pi * self.radii**2
        return float(np.sum((area[1:] + area[:-1]) / 2 * np.linalg.norm(np.diff(self.points, axis=0), axis=1)))


@dataclass(frozen=True)
class Anatomy:
    """A circle of Willis: its graph, and the sizes it was made from.

    Attributes:
        links: For each link of the circle and the third A2 ``"present"``, ``"hypoplastic"`` or ``"absent"``.
        diameters: Mean diameter of every segment, mm, also of absent ones.
        lengths: Length of every segment, mm; ``"Acom"`` is its free length from wall to wall, as published.
        segments: Segments that exist, with their courses.
        contacts: Names of segments that touch without being joined.
    """

    links: Mapping[str, str]
    diameters: Mapping[str, float]
    lengths: Mapping[str, float]
    segments: tuple[Segment, ...]
    contacts: tuple[tuple[str, str], ...] = ()

    def tubes(self) -> list[Tube]:
        """Return what is drawn; segments are numbered from 1."""
        return [
            Tube(segment.points, segment.radii, brightness(float(segment.radii.mean())), number)
            for number, segment in enumerate(self.segments, start=1)
        ]

    def moved(self, turn: Rotation, shift: Points) -> "Anatomy":
        """Return the same vessels, turned about the origin and then shifted."""
        segments = [replace(segment, points=turn.apply(segment.points) + shift) for segment in self.segments]
        return replace(self, segments=tuple(segments))


def draw_links(rng: np.random.Generator, hypoplastic_share: float, third_a2_share: float) -> dict[str, str]:
    """Draw which segments are ``"present"``, ``"hypoplastic"`` (thinner than 1 mm) or ``"absent"``.

    Args:
        rng: Random generator.
        hypoplastic_share: Share of the missing links that are drawn thin instead of left out, 0 to 1.
        third_a2_share: Probability of a third A2 if there is an Acom from which it can leave, 0 to 1.
    """
    missing = list(VARIANTS)[rng.choice(len(VARIANTS), p=list(VARIANTS.values()))]
    links = dict.fromkeys(["Acom", *(f"{side}-{link}" for side in _SIDES for link in ("A1", "P1", "Pcom"))], "present")
    for name in missing:
        links[name] = "hypoplastic" if rng.random() < hypoplastic_share else "absent"
    third = links["Acom"] != "absent" and rng.random() < third_a2_share
    return {**links, "3rd-A2": "present" if third else "absent"}


def draw_anatomy(rng: np.random.Generator, links: Mapping[str, str], min_gap_mm: float) -> Anatomy:
    """Draw one circle of Willis; the top of the basilar artery lies at the origin.

    Args:
        rng: Random generator.
        links: Which segments there are, from `draw_links`.
        min_gap_mm: Least distance between the walls of the two anterior cerebral arteries.
    """
    diameters, lengths = _draw_sizes(rng, links, min_gap_mm)
    nodes = _place_nodes(rng, lengths)
    segments = [
        _draw_segment(rng, name, nodes, lengths[name], diameters[name])
        for name in _COURSES
        if links.get("Acom" if name.endswith("Acom") else name) != "absent"
    ]
    return Anatomy(links, diameters, lengths, tuple(segments))


def _draw_sizes(
    rng: np.random.Generator, links: Mapping[str, str], min_gap_mm: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Draw diameter and length of every segment, mm."""
    sizes = {name: _SIZES.get(name) or _SIZES[name.split("-")[1]] for name in ("Acom", *_COURSES)}
    diameters = {name: size.diameter.draw(rng) for name, size in sizes.items()}
    lengths = {name: size.length.draw(rng) for name, size in sizes.items()}
    for side in _SIDES:
        for onward, first in (("C6", "C7"), ("A2", "A1"), ("P2", "P1")):  # one artery under two names
            diameters[f"{side}-{onward}"] = diameters[f"{side}-{first}"]
        if links[f"{side}-P1"] != "present":  # fetal type: the Pcom feeds the posterior cerebral artery
            diameters[f"{side}-Pcom"] = diameters[f"{side}-P2"]
    for name, state in links.items():
        if state == "hypoplastic":
            diameters[name] = float(rng.uniform(*_HYPOPLASTIC))
    lengths["Acom"] = max(lengths["Acom"], min_gap_mm)
    for side in _SIDES:
        diameters[f"{side}-Acom"] = diameters["Acom"]
        lengths[f"{side}-Acom"] = lengths["Acom"] / 2 + (diameters["R-A2"] + diameters["L-A2"]) / 4
    return diameters, lengths


def _place_nodes(rng: np.random.Generator, lengths: Mapping[str, float]) -> dict[str, Points]:
    """Place the ends of all segments so that no chord is longer than its segment. The directions are ours."""

    def away(start: str, segment: str, *direction: float) -> Points:
        course = np.array(direction) + rng.normal(0, 0.06, 3)
        return nodes[start] + course / np.linalg.norm(course) * lengths[segment] / rng.uniform(1.02, 1.08)

    nodes = {"BA-top": np.zeros(3)}
    nodes["BA-origin"] = away("BA-top", "BA", -0.95, -0.25, 0.0)
    for side, out in _SIDES.items():
        nodes[f"{side}-P2"] = away("BA-top", f"{side}-P1", 0.25, 0.35, 0.9 * out)
        nodes[f"{side}-P3"] = away(f"{side}-P2", f"{side}-P2", 0.25, -0.8, 0.5 * out)
        nodes[f"{side}-C7"] = _carotid(rng, nodes[f"{side}-P2"], lengths[f"{side}-Pcom"], out)
        nodes[f"{side}-siphon"] = away(f"{side}-C7", f"{side}-C6", -0.9, 0.25, 0.1 * out)
        nodes[f"{side}-ICA-top"] = away(f"{side}-C7", f"{side}-C7", 0.97, 0.15, 0.0)
        nodes[f"{side}-M2"] = away(f"{side}-ICA-top", f"{side}-M1", -0.05, 0.1, 1.0 * out)
    nodes["Acom-middle"] = _midline(nodes, lengths)
    nodes["3rd-A3"] = away("Acom-middle", "3rd-A2", 0.35, 0.95, 0.0)
    for side, out in _SIDES.items():
        nodes[f"{side}-A2"] = nodes["Acom-middle"] + (0.0, 0.0, out * lengths[f"{side}-Acom"])
        nodes[f"{side}-A3"] = away(f"{side}-A2", f"{side}-A2", 0.9, 0.3, 0.2 * out)
    return nodes


def _carotid(rng: np.random.Generator, junction: Points, length: float, out: float) -> Points:
    """Place the origin of the Pcom: 17 to 20 mm between both sides, and in front of the junction with the PCA."""
    z, x = rng.normal(0.5, 0.5), out * rng.uniform(8.5, 10)
    aside = (z - junction[0]) ** 2 + (x - junction[2]) ** 2
    return np.array([z, junction[1] + np.sqrt(max((length / rng.uniform(1.02, 1.06)) ** 2 - aside, 0.0)), x])


def _midline(nodes: Mapping[str, Points], lengths: Mapping[str, float]) -> Points:
    """Place the middle of the Acom as far in front as the tighter of the two A1 reaches."""
    back = (nodes["R-ICA-top"] + nodes["L-ICA-top"]) / 2 * (1, 1, 0)
    forward = np.array([0.35, 0.94, 0.0])

    def tightness(way: float) -> float:
        ends = {side: back + way * forward + (0, 0, out * lengths[f"{side}-Acom"]) for side, out in _SIDES.items()}
        chords = {side: np.linalg.norm(ends[side] - nodes[f"{side}-ICA-top"]) for side in _SIDES}
        return float(1.04 * max(chords[side] / lengths[f"{side}-A1"] for side in _SIDES) - 1)

    return back + forward * (brentq(tightness, 0, 40) if tightness(0) < 0 else 0.0)


def _draw_segment(
    rng: np.random.Generator, name: str, nodes: Mapping[str, Points], length: float, diameter: float
) -> Segment:
    course = _COURSES[name]
    bow = np.array(course.bow) + rng.normal(0, 0.3, 3)
    points = bent(nodes[course.start], nodes[course.end], length, bow, sway=rng.normal(0, 0.15))
    taper = 1 + _TAPER * np.cos(np.linspace(0, np.pi, len(points)))
    return Segment(name, course.label, course.start, course.end, points, diameter / 2 * taper)
