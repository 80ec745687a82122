"""Artificial abdominal scans with 27 classes, from a colon of litres to a rib of two millilitres."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.phantoms._abdomen import (
    BODY_MM,
    CAVITY_MM,
    LESIONS,
    MEASURED_ML,
    ORGANS,
    Ellipsoids,
    draw_shape,
    spine,
)
from nnunet_imbal.phantoms._case import Case, generator
from nnunet_imbal.phantoms._image import pool, smooth_noise

__all__ = ["OrganPhantom"]

_CLASSES = (*MEASURED_ML, *LESIONS)
_PREVALENCE = {"gallbladder": 0.85, "prostate": 0.5, "liver_tumour": 0.25, "kidney_cyst": 0.2}
_SPINE, _NODE = 254, 255  # bodies without a label
_NODES = 10
_AIR, _FAT, _MUSCLE, _BONE, _LYMPH = -1000.0, -100.0, 23.0, 180.0, 45.0
_LEAST_MM = (330.0, 255.0, 355.0)
_SOLID_SD, _HOLLOW_SD, _LESION_SD = 0.2, 0.4, 0.8  # of the logarithm of the volume; our assumption
_REACH = 2.2
_KNOT_MM = 25.0  # between the random values that roughen a surface
_ROUGHNESS = 0.06

Grid = tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class OrganPhantom:
    """Abdominal CT with many organs that touch each other: a few fill nearly all the volume, most fill hardly any.

    Median volumes are those of 25 structures in one real CT (TotalSegmentator's test case, 3 mm): 1,619 ml of colon,
    1,126 of liver, 19 of pancreas, 5 of an adrenal, 2 of the twelfth rib. Several of them leave that scan's field of
    view, so they are the sizes of a realistic task and no norms. Around the medians volumes are log-normal with a
    standard deviation of 0.2 (0.4 for hollow organs). Kidneys, adrenals, iliac arteries and ribs 10 to 12 come in left
    and right. A liver tumour and a kidney cyst are classes that most cases lack; gallbladder and prostate are missing
    in some. Adrenals are thin plates, ribs thin arcs, pancreas and duodenum bent tubes.

    An organ takes the sub-voxels that lie deepest in its shape and still belong to nobody, until it has its volume. So
    volumes are exact, nothing overlaps, and neighbours touch. Means of the grey values are those of a second real scan
    for liver (89 HU), spleen (80), aorta (177) and adrenals (44), with noise that lets them overlap; the others, and
    all places, shapes, frequencies and spreads of volumes are our assumptions. Unlabelled spine, muscle and lymph nodes
    are there to be mistaken. These are artificial images: a good score says that a method works, not that it works on
    patients.

    Attributes:
        shape: Voxels (Z, Y, X).
        spacing: Millimetres per voxel (Z, Y, X); may be anisotropic. ``shape * spacing`` is at least
            (330, 255, 355) mm.
        prevalence: For each class its probability to be present, 0 to 1; classes that are not named have 1.
        noise: Standard deviation of the noise, HU.
        supersampling: Sub-voxels per axis for partial volume, 1 to 3.

    Raises:
        ConfigError: A number is out of range, or ``prevalence`` names an unknown class.

    Example:
        >>> case = OrganPhantom(shape=(56, 44, 60), spacing=(6.0, 6.0, 6.0)).training_case(seed=0, index=0)
        >>> case.label.shape, int(case.label.max()) >= 25
        ((60, 44, 56), True)
    """

    shape: tuple[int, int, int] = (112, 88, 120)
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)
    prevalence: Mapping[str, float] = field(default_factory=lambda: dict(_PREVALENCE))
    noise: float = 20.0
    supersampling: int = 2

    title: ClassVar[str] = "PhantomOrgans"
    channel: ClassVar[str] = "CT"
    licence: ClassVar[str] = "Apache-2.0 (made by a formula)"
    labels: ClassVar[Mapping[str, int]] = {"background": 0, **{name: n for n, name in enumerate(_CLASSES, start=1)}}
    description: ClassVar[str] = (
        "Artificial abdominal CT scans with 25 organs and two kinds of lesions, made by a formula; the truth folder "
        "lists the volumes of every case. Left and right are different classes, so a trainer that mirrors must "
        "exchange them. Results on them show that the software works and compare methods; they say nothing about "
        "patients."
    )

    def __post_init__(self) -> None:
        """Refuse numbers from which no image could be made."""
        size = [n * s for n, s in zip(self.shape, self.spacing, strict=True)]
        rules = {
            "spacing": min(self.spacing) > 0,
            "shape": all(have >= need for have, need in zip(size, _LEAST_MM, strict=True)),
            "prevalence": set(self.prevalence) <= set(_CLASSES) and all(0 <= p <= 1 for p in self.prevalence.values()),
            "noise": self.noise >= 0,
            "supersampling": 1 <= self.supersampling <= 3,
        }
        wrong = [name for name, good in rules.items() if not good]
        if wrong:
            got = ", ".join(f"{name}={getattr(self, name)}" for name in wrong)
            raise ConfigError(f"OrganPhantom cannot use {got}; its docstring gives the ranges.")

    def training_case(self, seed: int, index: int) -> Case:
        """Return training case number ``index``."""
        return self._case(generator(seed, 5, index), seed)

    def test_case(self, seed: int, index: int) -> Case:
        """Return test case number ``index``; no training case is made from the same numbers."""
        return self._case(generator(seed, 6, index), seed)

    def draw_volumes(self, rng: np.random.Generator) -> dict[str, float]:
        """Draw which organs and lesions a case has, and their volumes, ml. No organ, no lesion in it."""
        spreads = {name: _HOLLOW_SD if organ.hollow else _SOLID_SD for name, organ in ORGANS.items()}
        medians = {**MEASURED_ML, **{name: lesion.millilitres for name, lesion in LESIONS.items()}}
        volumes = {
            name: median * math.exp(rng.normal(0, spreads.get(name, _LESION_SD))) for name, median in medians.items()
        }
        present = {name: rng.random() < self.prevalence.get(name, 1.0) for name in volumes}
        for name, lesion in LESIONS.items():
            present[name] &= any(present[host] for host in lesion.hosts)
        return {name: volume for name, volume in volumes.items() if present[name]}

    def _case(self, rng: np.random.Generator, seed: int) -> Case:
        volumes = self.draw_volumes(rng)
        scale = float(np.clip(np.exp(rng.normal(0, 0.03)), 0.94, 1.05))
        axes = self._axes()
        owner, hosts = self._fill(rng, axes, volumes, scale)
        image = self._scan(rng, axes, owner, scale)
        label = _largest_share(owner, self.supersampling)
        return Case(
            image=np.rint(image).astype(np.int16).T,
            label=label.T,
            instances=label.astype(np.uint16).T,
            affine=np.diag([*self.spacing[::-1], 1.0]),
            truth={
                "seed": seed,
                "shape": list(self.shape),
                "spacing_mm": list(self.spacing),
                "absent": [name for name in _CLASSES if name not in volumes],
                "lesions": hosts,
                "organs": self._volumes(owner, label),
            },
        )

    def _axes(self) -> Grid:
        """Coordinates of the sub-voxels, mm from the middle of the image."""
        fine = [(n * self.supersampling, s / self.supersampling) for n, s in zip(self.shape, self.spacing, strict=True)]
        return tuple(np.linspace(-(n - 1) / 2 * s, (n - 1) / 2 * s, n) for n, s in fine)

    def _sub_voxel_ml(self) -> float:
        return math.prod(self.spacing) / self.supersampling**3 / 1000

    def _fill(
        self, rng: np.random.Generator, axes: Grid, volumes: Mapping[str, float], scale: float
    ) -> tuple[NDArray[np.uint8], dict[str, str]]:
        """Return the number of the body that owns each sub-voxel, and in which organ each lesion lies."""
        owner = np.zeros([len(axis) for axis in axes], dtype=np.uint8)
        cavity, body = (_ellipse(axes, half, scale) < 1 for half in (CAVITY_MM, BODY_MM))
        _take(owner, axes, spine(scale), _SPINE, math.inf, rng, room=body)
        for name, organ in ORGANS.items():
            shape, room = draw_shape(rng, organ, scale), body & ~cavity if organ.wall else cavity
            if name in volumes:
                _take(owner, axes, shape, self.labels[name], volumes[name] / self._sub_voxel_ml(), rng, room=room)
        for _ in range(_NODES):
            node = Ellipsoids(rng.normal(0, 45, (1, 3)) * (1.5, 1, 1), rng.uniform(3, 7, 1))
            _take(owner, axes, node, _NODE, math.inf, rng, room=cavity)
        hosts = {name: self._add_lesion(rng, axes, owner, name, volumes[name]) for name in LESIONS if name in volumes}
        return owner, hosts

    def _add_lesion(
        self, rng: np.random.Generator, axes: Grid, owner: NDArray[np.uint8], name: str, millilitres: float
    ) -> str:
        """Put a lesion into one of its organs and return which."""
        host = str(rng.choice([name for name in LESIONS[name].hosts if (owner == self.labels[name]).any()]))
        places = np.flatnonzero(owner == self.labels[host])
        index = np.unravel_index(rng.choice(places), owner.shape)
        centre = np.array([[axis[i] for axis, i in zip(axes, index, strict=True)]])
        radius = (1000 * millilitres * 3 / (4 * math.pi)) ** (1 / 3)
        count = min(millilitres / self._sub_voxel_ml(), 0.3 * len(places))
        shape = Ellipsoids(centre, np.array([radius]))
        _take(owner, axes, shape, self.labels[name], count, rng, taken_from=self.labels[host])
        return host

    def _scan(
        self, rng: np.random.Generator, axes: Grid, owner: NDArray[np.uint8], scale: float
    ) -> NDArray[np.float64]:
        """Return Hounsfield units, with partial volume and noise."""
        table = np.zeros(256, dtype=np.float32)
        means = [*(organ.hu for organ in ORGANS.values()), *(lesion.hu for lesion in LESIONS.values())]
        table[1 : len(means) + 1] = means
        table[[_SPINE, _NODE]] = _BONE, _LYMPH
        table += rng.normal(0, 5, 256).astype(np.float32)
        level = _ellipse(axes, BODY_MM, scale)
        muscle = (level < 0.95) & (_ellipse(axes, CAVITY_MM, scale) >= 1)
        around = np.where(level >= 1, _AIR, np.where(muscle, _MUSCLE, _FAT)).astype(np.float32)
        image = pool(np.where(owner > 0, table[owner], around), self.supersampling)
        texture = 6 * smooth_noise(rng, self.shape, 2.0)
        return np.maximum(image + texture + rng.normal(0, self.noise, self.shape), -1024)

    def _volumes(self, owner: NDArray[np.uint8], label: NDArray[np.uint8]) -> list[dict[str, Any]]:
        parts, voxels = (np.bincount(array.ravel(), minlength=256) for array in (owner, label))
        return [
            {"class": name, "id": n, "volume_ml": float(parts[n] * self._sub_voxel_ml()), "voxels": int(voxels[n])}
            for name, n in self.labels.items()
            if n and parts[n]
        ]


def _ellipse(axes: Grid, half_mm: tuple[float, float], scale: float) -> NDArray[np.float64]:
    """Level of an elliptic cylinder along Z, 1 on its surface, shape (1, Y, X)."""
    y, x = (axis / (scale * half) for axis, half in zip(axes[1:], half_mm, strict=True))
    return np.sqrt(y[:, None] ** 2 + x**2)[None]


def _take(
    owner: NDArray[np.uint8],
    axes: Grid,
    shape: Ellipsoids,
    number: int,
    count: float,
    rng: np.random.Generator,
    *,
    room: NDArray[np.bool_] | None = None,
    taken_from: int = 0,
) -> None:
    """Give ``number`` the ``count`` sub-voxels that lie deepest in ``shape``, of those that belong to ``taken_from``.

    An infinite count takes all that lie inside.
    """
    reach = 1.0 if math.isinf(count) else _REACH
    box, level = shape.level(axes, reach)
    if not level.size:
        return
    level += _roughness(rng, level.shape, axes)
    free = (owner[box] == taken_from) & (level < reach)
    if room is not None:
        free &= room[:, box[1], box[2]]
    wanted = level[free]
    if count < len(wanted):
        last = max(round(count) - 1, 0)
        free &= level <= np.partition(wanted, last)[last]
    owner[box][free] = number


def _roughness(rng: np.random.Generator, shape: tuple[int, ...], axes: Grid) -> NDArray[np.float32]:
    step = [axis[1] - axis[0] for axis in axes]
    knots = [max(2, round(n * s / _KNOT_MM)) for n, s in zip(shape, step, strict=True)]
    coarse = rng.normal(0, _ROUGHNESS, knots).astype(np.float32)
    return zoom(coarse, [n / k for n, k in zip(shape, knots, strict=True)], order=1, grid_mode=True, mode="nearest")


def _largest_share(owner: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return the class that owns most of each voxel; what has no label is background."""
    classes = np.where(owner < _SPINE, owner, np.uint8(0))
    z, y, x = (n // factor for n in owner.shape)
    blocks = classes.reshape(z, factor, y, factor, x, factor).transpose(0, 2, 4, 1, 3, 5).reshape(z * y * x, -1)
    winner = blocks[:, 0].copy()
    mixed = np.flatnonzero((blocks != blocks[:, :1]).any(axis=1))  # most voxels belong to one owner
    counts = np.zeros((len(mixed), len(_CLASSES) + 1), dtype=np.uint8)
    for column in blocks[mixed].T:
        counts[np.arange(len(mixed)), column] += 1
    winner[mixed] = counts.argmax(axis=1)
    return winner.reshape(z, y, x)
