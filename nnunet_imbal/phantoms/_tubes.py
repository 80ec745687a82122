"""Curved tubes: centrelines of a wanted length, branching trees, and their way onto a voxel grid."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation

from nnunet_imbal.phantoms._image import pool

__all__ = ["Canvas", "Points", "Tube", "bent", "brightness", "fork", "length_of", "line_voxels", "tree"]

_SAMPLES = 97  # of a curve while its length is being adjusted
_STEP_MM = 0.25  # between the points of a finished centreline

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Tube:
    """A vessel: balls along a centreline.

    Attributes:
        points: Centreline, mm, float64, shape (N, 3) in Z, Y, X, N at least 2.
        radii: Radius at each point, mm, float64, shape (N,).
        signal: Brightness of the lumen.
        number: Number in the instance map; 0 for a vessel without a label.
    """

    points: Points
    radii: NDArray[np.float64]
    signal: float
    number: int = 0

    def moved(self, turn: Rotation, shift: Points) -> "Tube":
        """Return the same tube, turned about the origin and then shifted."""
        return replace(self, points=turn.apply(self.points) + shift)

    def dense(self) -> tuple[Points, NDArray[np.float64]]:
        """Return points and radii so close together that the balls look like a tube (ripple 0.5 % of r)."""
        along = _arc(self.points)
        count = math.ceil(along[-1] / (0.2 * self.radii.min())) + 1
        at = np.linspace(0, along[-1], count)
        return _at(self.points, along, at), np.interp(at, along, self.radii)


def length_of(points: Points) -> float:
    """Length of a polyline, mm."""
    return float(_arc(points)[-1])


def bent(start: Points, end: Points, length: float, bow: Points, sway: float = 0.0) -> Points:
    """Return a smooth curve of exactly ``length`` mm from ``start`` to ``end``.

    The curve leaves the chord by ``h (sin(πt) bow + sway sin(2πt) side)``, where ``bow`` and ``side`` are made
    perpendicular to the chord; the height h follows from the length.

    Args:
        start: First point, mm, shape (3,).
        end: Last point, mm, shape (3,).
        length: Wanted length, mm; a length below the chord gives the chord.
        bow: Direction in which the curve bulges, of any length but not along the chord, shape (3,).
        sway: Share of an S-shaped sideways bend.

    Returns:
        Points at most 0.25 mm apart and evenly spaced, shape (N, 3).
    """
    chord = end - start
    axis = chord / np.linalg.norm(chord)
    up = bow - (bow @ axis) * axis
    up /= np.linalg.norm(up)
    t = np.linspace(0, 1, _SAMPLES)[:, None]
    bulge = np.sin(np.pi * t) * up + sway * np.sin(2 * np.pi * t) * np.cross(axis, up)

    def excess(height: float) -> float:
        return length_of(start + t * chord + height * bulge) - length

    height = brentq(excess, 0, length) if excess(0) < 0 else 0.0
    curve = start + t * chord + height * bulge
    along = _arc(curve)
    return _at(curve, along, np.linspace(0, along[-1], max(math.ceil(along[-1] / _STEP_MM) + 1, 3)))


def tree(
    rng: np.random.Generator, start: Points, direction: Points, radius: float, smallest: float, depth: int
) -> list[Tube]:
    """Grow a vessel without a label, 8 to 15 radii long and 5 % longer than its chord, and its branches.

    Args:
        rng: Random generator.
        start: Where it begins, mm, shape (3,).
        direction: Unit vector, shape (3,).
        radius: At the beginning, mm; it tapers by 10 %.
        smallest: Radius below which nothing is drawn, mm.
        depth: Generations, 1 for a vessel that does not branch.
    """
    if depth == 0 or radius < smallest:
        return []
    chord = radius * rng.uniform(8, 15)
    end = start + direction * chord
    points = bent(start, end, 1.05 * chord, _across(rng, direction), sway=rng.normal(0, 0.5))
    stem = Tube(points, radius * np.linspace(1, 0.9, len(points)), brightness(radius))
    return [stem, *fork(rng, end, direction, 0.9 * radius, smallest, depth - 1)]


def fork(
    rng: np.random.Generator, start: Points, direction: Points, radius: float, smallest: float, depth: int
) -> list[Tube]:
    """Grow both branches of a bifurcation, parameters as in `tree`.

    Radii obey Murray's law r0³ = r1³ + r2³ (1926, doi 10.1073/pnas.12.3.207) with r2 / r1 between 0.6 and 1; angles
    are those of least work (1926, doi 10.1085/jgp.9.6.835). Both are published, the ratio is our assumption.
    """
    ratio, side = rng.uniform(0.6, 1), _across(rng, direction)
    thick = radius / (1 + ratio**3) ** (1 / 3)
    tubes = []
    for own, other, sign in ((thick, ratio * thick, 1), (ratio * thick, thick, -1)):
        cosine = (radius**4 + own**4 - other**4) / (2 * radius**2 * own**2)
        onward = cosine * direction + sign * math.sqrt(1 - cosine**2) * side
        tubes += tree(rng, start, onward, own, smallest, depth)
    return tubes


def brightness(radius: float) -> float:
    """Time-of-flight signal of a vessel: slow flow in thin vessels gives less, 0.55 to 0.95."""
    return 0.55 + 0.4 * (1 - math.exp(-radius / 0.8))


def line_voxels(points: Points, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> NDArray[np.int64]:
    """Return the voxels that a centreline runs through: a 26-connected path, int64, shape (M, 3)."""
    index = points / spacing
    along = _arc(index)
    # Steps of half a voxel change each index by 1 at most.
    steps = _at(index, along, np.linspace(0, along[-1], 2 * math.ceil(along[-1]) + 1))
    voxels = np.rint(steps).astype(np.int64)
    return voxels[((voxels >= 0) & (voxels < shape)).all(axis=1)]


@dataclass(frozen=True)
class Canvas:
    """A voxel grid on which tubes are drawn with ``factor``³ sub-voxels per voxel; see `Canvas.empty`.

    Where labelled tubes meet, a sub-voxel belongs to the one with the smallest ``distance to centreline - radius``:
    a thin branch begins just below the surface of the vessel it leaves. Tubes without a number never take a voxel
    from a labelled one, and of two signals the brighter is seen.
    """

    spacing: tuple[float, float, float]
    factor: int
    level: NDArray[np.float32]  # of the labelled tube at a sub-voxel: distance of its wall in mm, negative inside
    owner: NDArray[np.uint8]  # number of that tube
    signal: NDArray[np.float32]  # of any tube

    @classmethod
    def empty(cls, shape: tuple[int, int, int], spacing: tuple[float, float, float], factor: int) -> "Canvas":
        """Return a canvas of ``shape`` voxels, the centre of the first at 0 mm."""
        fine = tuple(n * factor for n in shape)
        outside = np.full(fine, np.inf, dtype=np.float32)
        return cls(spacing, factor, outside, np.zeros(fine, dtype=np.uint8), np.zeros(fine, dtype=np.float32))

    def draw(self, tube: Tube) -> None:
        """Add the balls of a tube, each within its own small box."""
        axes = [
            ((np.arange(n) + 0.5) / self.factor - 0.5) * s for n, s in zip(self.level.shape, self.spacing, strict=True)
        ]
        centres, radii = tube.dense()
        edges = [
            np.searchsorted(axis, at + np.array([-radii, radii])).T for axis, at in zip(axes, centres.T, strict=True)
        ]
        for centre, radius, *ranges in zip(centres, radii, *edges, strict=True):
            box = tuple(slice(first, last) for first, last in ranges)
            z, y, x = (axis[part] - at for axis, part, at in zip(axes, box, centre, strict=True))
            self._add_ball(box, np.sqrt((z * z)[:, None, None] + (y * y)[:, None] + x * x) - radius, tube)

    def _add_ball(self, box: tuple[slice, ...], wall: NDArray[np.float64], tube: Tube) -> None:
        signal = self.signal[box]
        np.maximum(signal, tube.signal, out=signal, where=wall <= 0)
        if tube.number:
            nearer = wall < np.minimum(self.level[box], 0)
            self.level[box][nearer] = wall[nearer]
            self.owner[box][nearer] = tube.number

    def numbers(self, tubes: Iterable[Tube]) -> NDArray[np.uint8]:
        """Return the number of the labelled tube in each voxel, uint8, shape (Z, Y, X); 0 is none.

        A voxel belongs to a tube if the labelled tubes fill at least half of it. Every tube of ``tubes`` stays in
        one piece, however thin it is, because the 26-connected voxel path of its centreline is given to it
        wherever the voxel belongs to no other.
        """
        filled = pool(self.level <= 0, self.factor) >= 0.5
        numbers = np.where(filled, _deepest(self.level, self.owner, self.factor), np.uint8(0))
        for tube in tubes:
            path = tuple(line_voxels(tube.points, numbers.shape, self.spacing).T)
            numbers[path] = np.where(numbers[path] == 0, np.uint8(tube.number), numbers[path])
        return numbers

    def lumen(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the share of each voxel that is lumen, 0 to 1, and its signal times that share, shape (Z, Y, X)."""
        return pool(self.signal > 0, self.factor), pool(self.signal, self.factor)


def _deepest(level: NDArray[np.float32], owner: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Owner of the sub-voxel that lies deepest in a labelled tube, for each voxel."""
    z, y, x = (n // factor for n in level.shape)
    blocks = (z, factor, y, factor, x, factor)
    parts = [array.reshape(blocks).transpose(0, 2, 4, 1, 3, 5).reshape(z, y, x, -1) for array in (level, owner)]
    deepest = parts[0].argmin(axis=-1)
    return np.take_along_axis(parts[1], deepest[..., None], axis=-1)[..., 0]


def _arc(points: Points) -> NDArray[np.float64]:
    """Distance along a polyline at each of its points."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])


def _at(points: Points, along: NDArray[np.float64], where: NDArray[np.float64]) -> Points:
    """Points of a polyline at given distances along it."""
    return np.column_stack([np.interp(where, along, column) for column in points.T])


def _across(rng: np.random.Generator, direction: Points) -> Points:
    """Random unit vector perpendicular to ``direction``."""
    side = np.cross(direction, rng.normal(size=3))
    return side / np.linalg.norm(side)
