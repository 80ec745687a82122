"""Artificial head scans with many small lesions, of which everything is known exactly."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.phantoms._case import Case, generator
from nnunet_imbal.phantoms._image import acquire, pool, smooth_noise, triple

__all__ = ["Lesion", "LesionPhantom"]

_WAVES = 6
_VESSELS = 6
_HEAD, _BRAIN = 0.92, 0.80  # share of half the field of view
_AIR, _SKULL, _CSF, _GREY, _WHITE = 0.02, 0.75, 0.20, 0.42, 0.52


@dataclass(frozen=True)
class Lesion:
    """One lesion: an ellipsoid whose surface is roughened by a few smooth waves.

    A point p lies inside if ``|u| <= 1 + rough(u / |u|)`` with ``u = rotation @ (p - centre) / semi_axes``.
    ``semi_axes_mm`` are scaled so that the volume inside is ``volume_mm3``; all points are (Z, Y, X) in mm from
    the centre of the first voxel.
    """

    centre_mm: tuple[float, float, float]
    semi_axes_mm: tuple[float, float, float]
    volume_mm3: float
    contrast: float
    rotation: tuple[tuple[float, float, float], ...]
    waves: tuple[tuple[float, float, float, float, float], ...]

    @property
    def diameter_mm(self) -> float:
        """Diameter of the ball with the same volume, mm."""
        return float((6 * self.volume_mm3 / math.pi) ** (1 / 3))

    @property
    def reach_mm(self) -> float:
        """Radius of a ball around the centre that surely contains the lesion, mm."""
        return max(self.semi_axes_mm) * (1 + sum(wave[0] for wave in self.waves))

    def level(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return 0 at the centre, 1 on the surface and more outside, for points of shape (..., 3) in mm."""
        scaled = (points_mm - np.asarray(self.centre_mm)) @ np.asarray(self.rotation).T / self.semi_axes_mm
        radius = np.linalg.norm(scaled, axis=-1)
        direction = scaled / np.maximum(radius, 1e-12)[..., None]
        return radius / _rough_radius(direction, self.waves)


@dataclass(frozen=True)
class LesionPhantom:
    """Head scans with lesions as in brain metastases: most are tiny, a few hold nearly all the volume.

    Lesion volumes follow ln V ~ N(ln ``median_mm3``, ``log_sd``), cut to ``volume_range_mm3`` and to 5 % of the
    brain. The defaults are calibrated so that 22 % of the lesions are smaller than 3 mm (as in a cohort of 1,985
    scans) and their mean is about 0.5 cm³; lesions per case are round(exp N(ln 3, 1.37)) within 1 to 60, mean 7
    (BraTS-METS 2023, arXiv 2306.00838: 7.7). Small lesions are fainter, 15 % of those below 5 mm hardly stand
    out of the noise, those above 10 mm have a dark core, and bright vessels look like lesions in a single slice.
    These are artificial images: a good score says that a method works, not that it works on patients.

    Attributes:
        shape: Voxels (Z, Y, X), at least 24 each.
        spacing: Millimetres per voxel (Z, Y, X); may be anisotropic.
        median_mm3: Median lesion volume before the cut, mm³.
        log_sd: Standard deviation of the logarithm of the volume.
        volume_range_mm3: Smallest and largest volume, mm³.
        count_median: Median number of lesions per case before rounding.
        count_log_sd: Standard deviation of the logarithm of that number.
        count_range: Fewest and most lesions of a case that has any.
        empty_share: Probability that a case has no lesion, 0 to 1.
        min_gap: Least gap between two lesions, in voxels of the coarsest axis: no two touch.
        noise: Standard deviation of the Rician noise; white matter is 0.52.
        supersampling: Sub-voxels per axis for partial volume, 1 to 5.

    Raises:
        ConfigError: A number is out of range.

    Example:
        >>> case = LesionPhantom(shape=(32, 32, 32)).training_case(seed=0, index=0)
        >>> int(case.instances.max()) == len(case.truth["lesions"])
        True
    """

    shape: tuple[int, int, int] = (64, 64, 64)
    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    median_mm3: float = 66.0
    log_sd: float = 2.0
    volume_range_mm3: tuple[float, float] = (2.0, 30_000.0)
    count_median: float = 3.0
    count_log_sd: float = 1.37
    count_range: tuple[int, int] = (1, 60)
    empty_share: float = 0.0
    min_gap: int = 2
    noise: float = 0.03
    supersampling: int = 3

    title: ClassVar[str] = "PhantomLesions"
    channel: ClassVar[str] = "MRI"
    licence: ClassVar[str] = "Apache-2.0 (made by a formula)"
    labels: ClassVar[Mapping[str, int]] = {"background": 0, "lesion": 1}
    description: ClassVar[str] = (
        "Artificial head scans with many small lesions, made by a formula; the truth folder lists every lesion. "
        "Results on them show that the software works and compare methods; they say nothing about patients."
    )

    def __post_init__(self) -> None:
        """Refuse numbers from which no image could be made."""
        low, high = self.volume_range_mm3
        rules = {
            "shape": min(self.shape) >= 24,
            "spacing": min(self.spacing) > 0,
            "volume_range_mm3": 0 < low < high and low < self.largest_mm3,
            "median_mm3": self.median_mm3 > 0 and self.log_sd > 0,
            "count_range": 1 <= self.count_range[0] <= self.count_range[1],
            "count_median": self.count_median > 0 and self.count_log_sd >= 0,
            "empty_share": 0 <= self.empty_share <= 1,
            "min_gap": self.min_gap >= 1,
            "noise": self.noise >= 0,
            "supersampling": 1 <= self.supersampling <= 5,
        }
        wrong = [name for name, good in rules.items() if not good]
        if wrong:
            got = ", ".join(f"{name}={getattr(self, name)}" for name in wrong)
            raise ConfigError(f"LesionPhantom cannot use {got}; its docstring gives the ranges.")

    @property
    def largest_mm3(self) -> float:
        """Largest lesion that is drawn, mm³: the upper cut, or 5 % of the brain if that is less."""
        half = [_BRAIN * n * s / 2 for n, s in zip(self.shape, self.spacing, strict=True)]
        return min(self.volume_range_mm3[1], 0.05 * 4 / 3 * math.pi * math.prod(half))

    def training_case(self, seed: int, index: int) -> Case:
        """Return training case number ``index``."""
        return self._case(generator(seed, 0, index), seed)

    def test_case(self, seed: int, index: int) -> Case:
        """Return test case number ``index``; no training case is made from the same numbers."""
        return self._case(generator(seed, 1, index), seed)

    def draw_count(self, rng: np.random.Generator) -> int:
        """Draw the number of lesions of one case."""
        if rng.random() < self.empty_share:
            return 0
        drawn = round(math.exp(rng.normal(math.log(self.count_median), self.count_log_sd)))
        return int(np.clip(drawn, *self.count_range))

    def draw_volume(self, rng: np.random.Generator) -> float:
        """Draw one lesion volume, mm³."""
        while True:
            volume = math.exp(rng.normal(math.log(self.median_mm3), self.log_sd))
            if self.volume_range_mm3[0] <= volume <= self.largest_mm3:
                return volume

    def _case(self, rng: np.random.Generator, seed: int) -> Case:
        anatomy, room_mm = _head(rng, self.shape, self.spacing)
        lesions = self._place(rng, room_mm)
        image, instances = _paint(anatomy, lesions, self.spacing, self.supersampling)
        image = acquire(rng, image, self.noise)
        truth = {
            "seed": seed,
            "axes": "Z, Y, X; mm from the centre of the first voxel",
            "shape": list(self.shape),
            "spacing_mm": list(self.spacing),
            "lesions": _truth(lesions, instances, math.prod(self.spacing)),
        }
        return Case(
            image=np.rint(1000 * image).astype(np.int16).T,
            label=(instances > 0).astype(np.uint8).T,
            instances=instances.T,
            affine=np.diag([*self.spacing[::-1], 1.0]),
            truth=truth,
        )

    def _place(self, rng: np.random.Generator, room_mm: NDArray[np.float64]) -> list[Lesion]:
        """Draw lesions and give each a place, largest first; one that fits nowhere is drawn again, or left out."""
        volumes = sorted((self.draw_volume(rng) for _ in range(self.draw_count(rng))), reverse=True)
        # One voxel more than asked: a lesion below half a voxel is drawn into the nearest voxel.
        gap_mm = (self.min_gap + 1) * max(self.spacing)
        lesions: list[Lesion] = []
        for volume in volumes:
            lesion = self._fit(rng, volume, room_mm)
            if lesion is not None:
                lesions.append(lesion)
                away = _distance_mm(lesion.centre_mm, room_mm.shape, self.spacing) - lesion.reach_mm - gap_mm
                room_mm = np.minimum(room_mm, away)
        return lesions

    def _fit(self, rng: np.random.Generator, volume: float, room_mm: NDArray[np.float64]) -> Lesion | None:
        for _ in range(20):
            lesion = _draw_lesion(rng, volume)
            places = np.flatnonzero(room_mm > lesion.reach_mm)
            if len(places):
                voxel = np.unravel_index(rng.choice(places), room_mm.shape)
                centre = (np.asarray(voxel) + rng.uniform(-0.5, 0.5, 3)) * self.spacing
                return Lesion(**{**_fields(lesion), "centre_mm": triple(centre)})
            volume = self.draw_volume(rng)
        return None


def _fields(lesion: Lesion) -> dict[str, Any]:
    return {name: getattr(lesion, name) for name in Lesion.__dataclass_fields__}


def _draw_lesion(rng: np.random.Generator, volume: float) -> Lesion:
    """Draw shape and contrast of a lesion of ``volume`` mm³, centred at the origin."""
    ratios = np.array([1.0, *rng.uniform(1.0, 1.6, 2)])
    amplitudes = rng.dirichlet(np.ones(_WAVES)) * rng.uniform(0.05, 0.15)
    waves = np.column_stack([amplitudes, rng.normal(0, 2.5, (_WAVES, 3)), rng.uniform(0, 2 * np.pi, _WAVES)])
    wave_tuple = tuple(tuple(float(v) for v in row) for row in waves)
    unit_volume = 4 / 3 * math.pi * float(np.mean(_rough_radius(_sphere(), wave_tuple) ** 3)) * ratios.prod()
    return Lesion(
        centre_mm=(0.0, 0.0, 0.0),
        semi_axes_mm=triple(ratios * (volume / unit_volume) ** (1 / 3)),
        volume_mm3=volume,
        contrast=_draw_contrast(rng, volume),
        rotation=tuple(triple(row) for row in _rotation(rng)),
        waves=wave_tuple,  # type: ignore[arg-type]  # five columns by construction
    )


def _draw_contrast(rng: np.random.Generator, volume: float) -> float:
    diameter = (6 * volume / math.pi) ** (1 / 3)
    if diameter < 5 and rng.random() < 0.15:
        return float(rng.uniform(0.04, 0.08))
    return float(rng.uniform(0.85, 1.15) * (0.18 + 0.27 * diameter / (diameter + 4)))


def _rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


def _rough_radius(direction: NDArray[np.float64], waves: Any) -> NDArray[np.float64]:
    """Radius of the roughened unit ball in each direction: 1 + sum of a cos(k·d + phase)."""
    table = np.asarray(waves)
    return 1 + np.cos(direction @ table[:, 1:4].T + table[:, 4]) @ table[:, 0]


def _sphere(count: int = 2000) -> NDArray[np.float64]:
    """Return ``count`` directions, evenly spread (Fibonacci lattice), shape (count, 3)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    angle = np.pi * (3 - math.sqrt(5)) * np.arange(count)
    ring = np.sqrt(1 - z**2)
    return np.column_stack([z, ring * np.sin(angle), ring * np.cos(angle)])


def _distance_mm(
    centre_mm: tuple[float, float, float], shape: tuple[int, ...], spacing: tuple[float, float, float]
) -> NDArray[np.float64]:
    axes = [np.arange(n) * s - c for n, s, c in zip(shape, spacing, centre_mm, strict=True)]
    z, y, x = np.ix_(*axes)
    return np.sqrt(z**2 + y**2 + x**2)


def _head(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a lesion-free head, and for each voxel the room in mm for a lesion centred there."""
    scale = rng.uniform(0.95, 1.0, 3)
    z, y, x = np.ix_(*[np.linspace(-1, 1, n) / s for n, s in zip(shape, scale, strict=True)])
    radius = np.sqrt(z**2 + y**2 + x**2)
    brain = radius < _BRAIN
    white = 1 / (1 + np.exp(-4 * smooth_noise(rng, shape, 3.0)))
    tissue = _GREY + (_WHITE - _GREY) * white + 0.01 * smooth_noise(rng, shape, 0.8)
    ventricles = (z / 0.3) ** 2 + (y / 0.35) ** 2 + ((np.abs(x) - 0.12) / 0.08) ** 2 < 1
    image = np.select(
        [brain & ~ventricles, brain | (radius < _BRAIN + 0.05), radius < _HEAD], [tissue, _CSF, _SKULL], _AIR
    )
    # No lesion starts in a ventricle, but a large one may fill a part of it, as real ones push it aside.
    room_mm = distance_transform_edt(brain, sampling=spacing) * ~ventricles
    vessels = _vessels(rng, shape, spacing) * brain
    return image + vessels * (0.85 - image), room_mm


def _vessels(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return the share of each voxel that is filled by bright curved tubes."""
    line = np.ones(shape, dtype=bool)
    for _ in range(_VESSELS):
        start, bend, end = rng.uniform(0.15, 0.85, (3, 3)) * shape
        t = np.linspace(0, 1, 4 * max(shape))[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        line[tuple(curve.astype(int).T)] = False
    away = distance_transform_edt(line, sampling=spacing)
    radius = rng.uniform(0.8, 1.4)
    return np.clip((radius - away) / min(spacing) + 0.5, 0, 1)


def _paint(
    image: NDArray[np.float64], lesions: list[Lesion], spacing: tuple[float, float, float], supersampling: int
) -> tuple[NDArray[np.float64], NDArray[np.uint16]]:
    """Add the lesions to the image with partial volume, and number their voxels."""
    image, instances = image.copy(), np.zeros(image.shape, dtype=np.uint16)
    for number, lesion in enumerate(lesions, start=1):
        box, share, core = _rasterise(lesion, image.shape, spacing, supersampling)
        brightness = lesion.contrast * (share - 0.8 * core)
        image[box] = image[box] * (1 - share) + _WHITE * share + brightness
        inside = share >= 0.5
        # Every lesion owns a voxel, however small it is: the fullest one.
        inside.flat[np.argmax(share)] = True
        instances[box][inside] = number
    return image, instances


def _rasterise(
    lesion: Lesion, shape: tuple[int, ...], spacing: tuple[float, float, float], supersampling: int
) -> tuple[tuple[slice, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Return the box around a lesion and the shares of its voxels inside the lesion and inside its dark core."""
    low = [math.floor((c - lesion.reach_mm) / s) for c, s in zip(lesion.centre_mm, spacing, strict=True)]
    high = [math.ceil((c + lesion.reach_mm) / s) + 1 for c, s in zip(lesion.centre_mm, spacing, strict=True)]
    box = tuple(slice(max(a, 0), min(b, n)) for a, b, n in zip(low, high, shape, strict=True))
    fine = (np.arange(supersampling) + 0.5) / supersampling - 0.5
    axes = [(np.arange(b.start, b.stop)[:, None] + fine).ravel() * s for b, s in zip(box, spacing, strict=True)]
    level = lesion.level(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1))
    core = 0.55 if lesion.diameter_mm > 10 else 0.0
    return box, pool(level <= 1, supersampling), pool(level < core, supersampling)


def _truth(lesions: list[Lesion], instances: NDArray[np.uint16], voxel_mm3: float) -> list[dict[str, Any]]:
    voxels = np.bincount(instances.ravel(), minlength=len(lesions) + 1)
    return [
        {
            "id": number,
            **asdict(lesion),
            "diameter_mm": lesion.diameter_mm,
            "voxels": int(voxels[number]),
            "voxel_volume_mm3": float(voxels[number] * voxel_mm3),
        }
        for number, lesion in enumerate(lesions, start=1)
    ]
