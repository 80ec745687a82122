"""Organs of the abdomen as bodies of balls and ellipsoids: where they lie, how large they are, what they touch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from nnunet_imbal.phantoms._tubes import Points

__all__ = [
    "BODY_MM",
    "CAVITY_MM",
    "LESIONS",
    "MEASURED_ML",
    "ORGANS",
    "Ellipsoids",
    "Lesion",
    "Organ",
    "draw_shape",
    "spine",
]

# Of one CT, TotalSegmentator's test case at 3 mm; several organs leave its field of view, so these are sizes of this
# scan and not norms. Of adrenals and ribs the range is known, 4.5 to 5.7 and 1.8 to 6.2; which is which is our choice.
# Order is that of drawing: what comes first is there when later ones fill the room around it.
MEASURED_ML: Mapping[str, float] = MappingProxyType(
    {
        "aorta": 50.0,
        "iliac_artery_right": 18.0,
        "iliac_artery_left": 20.0,
        "inferior_vena_cava": 61.0,
        "portal_vein": 29.0,
        "adrenal_right": 4.5,
        "adrenal_left": 5.7,
        "kidney_right": 193.0,
        "kidney_left": 137.0,
        "pancreas": 19.0,
        "gallbladder": 36.0,
        "duodenum": 63.0,
        "prostate": 15.0,
        "rib_10_right": 6.2,
        "rib_10_left": 6.2,
        "rib_11_right": 4.0,
        "rib_11_left": 4.0,
        "rib_12_right": 1.8,
        "rib_12_left": 1.8,
        "bladder": 479.0,
        "spleen": 261.0,
        "stomach": 131.0,
        "liver": 1126.0,
        "colon": 1619.0,
        "small_bowel": 532.0,
    }
)
"""Median volumes, ml."""

BODY_MM = (120.0, 168.0)  # half axes Y, X of the skin
CAVITY_MM = (100.0, 146.0)  # of the room that the muscles leave to organs


class Organ(NamedTuple):
    """What is drawn as one class.

    Attributes:
        hu: Mean grey value, Hounsfield units.
        paths: Lines of balls, each (K, 4): Z, Y, X in mm from the middle of the body, and the radius of the ball.
        hollow: Its filling differs from patient to patient, so its volume varies more.
        shape: Half axes of the balls along Z, Y, X as multiples of their radius.
        wall: Lies in the wall of the body and not in its cavity.
    """

    hu: float
    paths: tuple[Sequence[Sequence[float]], ...]
    hollow: bool = False
    shape: tuple[float, float, float] = (1.0, 1.0, 1.0)
    wall: bool = False


class Lesion(NamedTuple):
    """A class inside other organs: which ones, median volume in ml, Hounsfield units."""

    hosts: tuple[str, ...]
    millilitres: float
    hu: float


def _rib(out: float, top: float, degrees: float) -> Organ:
    """A rib from the spine around the flank and down; ``out`` is the sign of X."""
    share = np.linspace(0, 1, 7)
    angle = np.radians(-72 + degrees * share)
    height = top - degrees / 2 * share
    points = np.column_stack([height, 110 * np.sin(angle), out * 157 * np.cos(angle), np.full(7, 3.5)])
    return Organ(300, (points.tolist(),), wall=True)


# Hounsfield units of liver, spleen, aorta and adrenals were measured in TotalSegmentator's DICOM test case; the others,
# and all places and courses, are our assumptions. X grows to the patient's right as in the other phantoms.
# fmt: off
ORGANS: Mapping[str, Organ] = MappingProxyType({
    "aorta": Organ(177, ([(165, -48, -10, 9), (90, -44, -12, 9), (0, -42, -10, 8), (-44, -42, -4, 8)],)),
    "iliac_artery_right": Organ(
        165, ([(-44, -42, 2, 5), (-80, -38, 30, 5), (-120, -15, 55, 5), (-150, 20, 72, 4.5)],)),
    "iliac_artery_left": Organ(
        165, ([(-44, -42, -8, 5), (-80, -38, -38, 5), (-120, -15, -60, 5), (-150, 20, -75, 4.5)],)),
    "inferior_vena_cava": Organ(
        130, ([(150, -28, 34, 10), (90, -32, 26, 10), (20, -40, 18, 9), (-45, -42, 14, 9)],)),
    "portal_vein": Organ(150, (
        [(40, -8, 14, 6), (62, -2, 30, 6.5), (85, 8, 58, 6)],
        [(55, -6, 18, 5), (72, -25, -40, 4.5), (85, -38, -88, 4)])),
    "adrenal_right": Organ(
        44, ([(56, -42, 52, 4), (76, -46, 44, 3)], [(56, -58, 58, 3), (70, -48, 48, 3)]), shape=(1.4, 1, 0.55)),
    "adrenal_left": Organ(
        44, ([(68, -40, -50, 4), (88, -44, -46, 3)], [(68, -58, -56, 3), (82, -48, -49, 3)]), shape=(1.4, 1, 0.55)),
    "kidney_right": Organ(160, ([(-8, -52, 74, 27), (15, -56, 66, 30), (40, -60, 60, 26)],), shape=(1, 0.85, 0.85)),
    "kidney_left": Organ(160, ([(8, -54, -72, 25), (30, -58, -66, 28), (54, -62, -60, 24)],), shape=(1, 0.85, 0.85)),
    "pancreas": Organ(85, ([(28, 8, 44, 10), (45, 16, 14, 7), (58, 2, -28, 6), (72, -22, -70, 7)],)),
    "gallbladder": Organ(10, ([(34, 56, 86, 16), (56, 40, 76, 12)],), hollow=True),
    "duodenum": Organ(
        45, ([(66, 34, 36, 12), (40, 10, 60, 12), (5, -4, 56, 11), (-4, -16, 10, 10), (26, 2, -26, 9)],), hollow=True),
    "prostate": Organ(45, ([(-150, 14, 0, 15)],)),
    **{
        f"rib_{number}_{side}": _rib(out, top, degrees)
        for number, top, degrees in ((10, 118, 95), (11, 88, 60), (12, 58, 30))
        for side, out in (("right", 1.0), ("left", -1.0))
    },
    "bladder": Organ(8, ([(-102, 36, 0, 46), (-106, 36, 0, 46)],), hollow=True, shape=(1, 0.9, 1.15)),
    "spleen": Organ(80, ([(66, -38, -116, 30), (96, -46, -106, 38), (126, -40, -96, 28)],), shape=(1, 1.1, 0.75)),
    "stomach": Organ(
        40, ([(126, -10, -72, 32), (98, 18, -80, 32), (76, 46, -40, 24), (68, 42, 16, 16)],), hollow=True),
    "liver": Organ(89, (
        [(112, -5, 84, 72), (66, -5, 100, 50)], [(108, 20, 70, 50), (112, 40, 30, 46), (118, 48, -20, 34)]),
        shape=(0.95, 1, 0.9)),
    "colon": Organ(30, (
        [(-95, 8, 100, 30), (-40, -2, 112, 28), (15, 6, 112, 26), (22, 56, 66, 25), (4, 70, 0, 25), (28, 52, -66, 25),
         (48, 4, -112, 25), (-20, -10, -118, 24), (-80, 0, -104, 24), (-100, -20, -50, 24), (-90, -45, 0, 24),
         (-130, -56, 2, 24), (-160, -50, 0, 22)],), hollow=True),
    "small_bowel": Organ(45, (
        [(-5, 42, -48, 18), (-12, 38, 50, 18), (-38, 60, 58, 18), (-42, 60, -50, 18), (-35, 20, -62, 18),
         (-38, 8, 52, 18), (-68, 22, 70, 17), (-70, 2, -10, 17)],), hollow=True),
})
# fmt: on

LESIONS: Mapping[str, Lesion] = MappingProxyType(
    {"liver_tumour": Lesion(("liver",), 8.0, 55.0), "kidney_cyst": Lesion(("kidney_right", "kidney_left"), 4.0, 8.0)}
)


@dataclass(frozen=True)
class Ellipsoids:
    """A body of overlapping ellipsoids, all with the same half axes but for their size.

    Attributes:
        centres: mm, float64, shape (N, 3) in Z, Y, X.
        radii: mm, float64, shape (N,).
        shape: Half axes along Z, Y, X as multiples of the radius.
    """

    centres: Points
    radii: NDArray[np.float64]
    shape: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def level(
        self, axes: tuple[NDArray[np.float64], ...], reach: float
    ) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
        """Return a box of the grid and in it how deep each point lies: 0 at a centre, 1 on the surface.

        Args:
            axes: Coordinates of the grid along Z, Y, X, mm.
            reach: Level up to which points are looked at; beyond it is infinity.
        """
        half = reach * self.radii[:, None] * self.shape
        low = [np.searchsorted(axis, c - h) for axis, c, h in zip(axes, self.centres.T, half.T, strict=True)]
        high = [np.searchsorted(axis, c + h) for axis, c, h in zip(axes, self.centres.T, half.T, strict=True)]
        first = [int(edge.min()) for edge in low]
        found = np.full([int(edge.max()) - start for edge, start in zip(high, first, strict=True)], np.inf, np.float32)
        for number, (centre, radius) in enumerate(zip(self.centres, self.radii, strict=True)):
            spans = [(int(a[number]), int(b[number])) for a, b in zip(low, high, strict=True)]
            z, y, x = (
                ((axis[a:b] - c) / (radius * s)).astype(np.float32) ** 2
                for axis, (a, b), c, s in zip(axes, spans, centre, self.shape, strict=True)
            )
            part = found[tuple(slice(a - start, b - start) for (a, b), start in zip(spans, first, strict=True))]
            np.minimum(part, z[:, None, None] + y[:, None] + x, out=part)
        box = tuple(slice(start, start + n) for start, n in zip(first, found.shape, strict=True))
        return box, np.sqrt(found)


def draw_shape(rng: np.random.Generator, organ: Organ, scale: float) -> Ellipsoids:
    """Draw the shape of one organ: its lines are bent and shifted a little.

    Args:
        rng: Random generator.
        organ: What to draw.
        scale: Size of the patient; 1 is that of `ORGANS`.
    """
    shift = rng.normal(0, 0 if organ.wall else 3, 3)
    centres, radii = zip(
        *(_dense(rng, np.array(path, dtype=np.float64), organ.wall) for path in organ.paths), strict=True
    )
    return Ellipsoids(scale * (np.concatenate(centres) + shift), scale * np.concatenate(radii), organ.shape)


def spine(scale: float) -> Ellipsoids:
    """Return the vertebral column, which has no label."""
    heights = np.arange(-180.0, 181.0, 10.0)
    centres = np.column_stack([heights, np.full_like(heights, -80), np.zeros_like(heights)])
    return Ellipsoids(scale * centres, np.full(len(heights), scale * 21.0))


def _dense(rng: np.random.Generator, path: Points, rigid: bool) -> tuple[Points, NDArray[np.float64]]:
    """Balls along a smooth curve through jittered points, a quarter of a radius apart."""
    if len(path) == 1:
        return path[:, :3], path[:, 3]
    path = path.copy()
    path[:, :3] += rng.normal(0, 0 if rigid else 0.12, (len(path), 3)) * path[:, 3:]
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path[:, :3], axis=0), axis=1))])
    count = math.ceil(length[-1] / (0.25 * path[:, 3].min())) + 1
    curve = CubicSpline(length, path)(np.linspace(0, length[-1], count))
    return curve[:, :3], np.maximum(curve[:, 3], 1.0)
