"""Artificial angiographies of the circle of Willis, of which the topology is known exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.spatial.transform import Rotation

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics.betti import BettiNumbers, betti_numbers
from nnunet_imbal.phantoms._case import Case, generator
from nnunet_imbal.phantoms._circle_of_willis import CLASSES, Anatomy, draw_anatomy, draw_links
from nnunet_imbal.phantoms._graph import betti_of_graph
from nnunet_imbal.phantoms._image import acquire, smooth_noise
from nnunet_imbal.phantoms._look_alikes import look_alikes
from nnunet_imbal.phantoms._tubes import Canvas, Points, length_of
from nnunet_imbal.phantoms._unusual_vessels import with_aneurysm, with_kissing_arteries

__all__ = ["VesselPhantom"]

_CENTRE_MM = (-3.5, 12.0, 0.0)  # of the labelled vessels, measured from the top of the basilar artery
_LEAST_MM = (62.0, 52.0, 68.0)
_ATTEMPTS = 20
_TISSUE, _CSF = 0.33, 0.18


@dataclass(frozen=True)
class VesselPhantom:
    """Time-of-flight angiographies of the circle of Willis with the 13 classes of the TopCoW challenge.

    A few arteries are labelled: the circle, and the vessels that feed it and leave it up to their next bifurcation.
    Everything else that is bright is there to be mistaken for them: the branching arteries beyond, the cerebellar
    and choroidal arteries beside them, veins, the cavernous sinus, fat. Diameters and lengths are those of 513
    adults (Shatri 2017, doi 10.3889/oamjms.2017.160). Missing links of the circle are as frequent as in 1,864
    people (Hindenes 2020, doi 10.1371/journal.pone.0241373): the circle is complete in 11.9 %, both posterior
    communicating arteries are missing in 27.8 %. Our assumptions are the courses, the brightness, the lengths of
    ICA, A2 and P2, and how often the less frequent variants occur.

    The truth is the graph from which a case was drawn: nodes, segments with centreline and radius, and the Betti
    numbers of every class and of all classes together: a complete circle has one loop, a broken one none. The
    label map has the same numbers, with 26-connected vessels. This is checked when it is made, and about one case
    in 20 is drawn again, with the same links. For the same reason the Acom is at least 1.5 voxels long.
    ``instances`` numbers the segments.

    Left and right are different classes. `ImbalTrainer` exchanges their names when it flips a patch; train others
    without mirroring. These are artificial images: a good score says that a method works, not that it works on
    patients.

    Attributes:
        shape: Voxels (Z, Y, X).
        spacing: Millimetres per voxel (Z, Y, X); may be anisotropic. ``shape * spacing`` is at least
            (62, 52, 68) mm.
        hypoplastic_share: Share of the missing links that are thin (0.5 to 0.85 mm) and labelled; the others are
            absent. Published is the sum of both.
        third_a2_share: Probability of a third A2 if there is an Acom; published is 2.1 % of all
            (doi 10.5603/FM.a2018.0095).
        aneurysm_share: Probability of an aneurysm, 3 to 8 mm wide, with the label of the artery from which it grows.
        kissing_share: Probability that the right and the left A2 touch halfway up without being joined, if there is
            no third A2 between them. Of all classes together the contact is a connection, as in any label map, so
            that it adds a loop or joins two pieces; ``contacts`` of the truth names it.
        noise: Standard deviation of the Rician noise; tissue is 0.33, a large artery 0.9.
        supersampling: Sub-voxels per axis for partial volume, 1 to 4.

    Raises:
        ConfigError: A number is out of range; when a case is drawn: the voxels are too coarse for the vessels.

    Example:
        >>> case = VesselPhantom(shape=(64, 54, 70), spacing=(1.0, 1.0, 1.0)).training_case(seed=0, index=0)
        >>> case.truth["betti"]["BA"]
        [1, 0, 0]
    """

    shape: tuple[int, int, int] = (80, 96, 128)
    spacing: tuple[float, float, float] = (0.8, 0.6, 0.6)
    hypoplastic_share: float = 0.3
    third_a2_share: float = 0.021
    aneurysm_share: float = 0.0
    kissing_share: float = 0.0
    noise: float = 0.04
    supersampling: int = 2

    title: ClassVar[str] = "PhantomVessels"
    channel: ClassVar[str] = "TOF_MRA"
    licence: ClassVar[str] = "Apache-2.0 (made by a formula)"
    labels: ClassVar[Mapping[str, int]] = {"background": 0, **{name: n for n, name in enumerate(CLASSES, start=1)}}
    description: ClassVar[str] = (
        "Artificial angiographies of the circle of Willis with TopCoW's 13 classes, made by a formula; the truth "
        "folder holds the centreline graph and the Betti numbers of every case. Left and right are different "
        "classes, so a trainer that mirrors must exchange them. Results on them show that the software works and "
        "compare methods; they say nothing about patients."
    )

    def __post_init__(self) -> None:
        """Refuse numbers from which no image could be made."""
        size = [n * s for n, s in zip(self.shape, self.spacing, strict=True)]
        rules = {
            "spacing": min(self.spacing) > 0,
            "shape": all(have >= need for have, need in zip(size, _LEAST_MM, strict=True)),
            "hypoplastic_share": 0 <= self.hypoplastic_share <= 1,
            "third_a2_share": 0 <= self.third_a2_share <= 1,
            "aneurysm_share": 0 <= self.aneurysm_share <= 1,
            "kissing_share": 0 <= self.kissing_share <= 1,
            "noise": self.noise >= 0,
            "supersampling": 1 <= self.supersampling <= 4,
        }
        wrong = [name for name, good in rules.items() if not good]
        if wrong:
            got = ", ".join(f"{name}={getattr(self, name)}" for name in wrong)
            raise ConfigError(f"VesselPhantom cannot use {got}; its docstring gives the ranges.")

    def training_case(self, seed: int, index: int) -> Case:
        """Return training case number ``index``."""
        return self._case(generator(seed, 3, index), seed)

    def test_case(self, seed: int, index: int) -> Case:
        """Return test case number ``index``; no training case is made from the same numbers."""
        return self._case(generator(seed, 4, index), seed)

    def _case(self, rng: np.random.Generator, seed: int) -> Case:
        anatomy, numbers, canvas = self._draw(rng)
        share, glow = canvas.lumen()
        tissue = _tissue(rng, self.shape, self.spacing, basilar_top=anatomy.segments[0].points[-1])
        image = acquire(rng, tissue * (1 - share) + glow, self.noise)
        return Case(
            image=np.rint(1000 * image).astype(np.int16).T,
            label=_classes(anatomy)[numbers].T,
            instances=numbers.astype(np.uint16).T,
            affine=np.diag([*self.spacing[::-1], 1.0]),
            truth={
                "seed": seed,
                "axes": "Z, Y, X; mm from the centre of the first voxel; X grows to the patient's right",
                "shape": list(self.shape),
                "spacing_mm": list(self.spacing),
                **_truth(anatomy, numbers),
            },
        )

    def _draw(self, rng: np.random.Generator) -> tuple[Anatomy, NDArray[np.uint8], Canvas]:
        """Draw vessels until the voxels have the topology of the graph; 19 times of 20 the first ones do."""
        # Drawn once, so that no variant becomes rarer because its voxels are more often wrong.
        links = draw_links(rng, self.hypoplastic_share, self.third_a2_share)
        aneurysm, kissing = self._draw_unusual(rng, links)
        for _ in range(_ATTEMPTS):
            anatomy = draw_anatomy(rng, links, min_gap_mm=1.5 * max(self.spacing))
            anatomy = with_kissing_arteries(anatomy) if kissing else anatomy
            anatomy = with_aneurysm(rng, anatomy) if aneurysm else anatomy
            pose = self._pose(rng)
            placed = anatomy.moved(*pose)
            canvas, numbers = self._label(placed)
            if self._fits(placed) and _betti_of_label(_classes(placed)[numbers]) == _betti_of_graph(placed):
                for tube in look_alikes(rng, anatomy):
                    canvas.draw(tube.moved(*pose))
                return placed, numbers, canvas
        raise ConfigError(
            f"No label map with the topology of the vessels was found with spacing={self.spacing} mm in "
            f"{_ATTEMPTS} attempts; the voxels are too coarse. Use 2 mm or less."
        )

    def _draw_unusual(self, rng: np.random.Generator, links: Mapping[str, str]) -> tuple[bool, bool]:
        """Whether there is an aneurysm, and a contact; with shares of 0 no number is drawn, so old cases stay."""
        aneurysm = self.aneurysm_share > 0 and rng.random() < self.aneurysm_share
        kissing = self.kissing_share > 0 and rng.random() < self.kissing_share
        return aneurysm, kissing and links["3rd-A2"] == "absent"

    def _label(self, anatomy: Anatomy) -> tuple[Canvas, NDArray[np.uint8]]:
        canvas, tubes = Canvas.empty(self.shape, self.spacing, self.supersampling), anatomy.tubes()
        for tube in tubes:
            canvas.draw(tube)
        return canvas, canvas.numbers(tubes)

    def _pose(self, rng: np.random.Generator) -> tuple[Rotation, NDArray[np.float64]]:
        """Draw how the head lies: turned by a few degrees, vessels in the middle of the image."""
        turn = Rotation.from_rotvec(rng.normal(0, 4, 3), degrees=True)
        middle = (np.array(self.shape) - 1) * self.spacing / 2
        return turn, middle - turn.apply(_CENTRE_MM) + rng.normal(0, 0.7, 3)

    def _fits(self, anatomy: Anatomy) -> bool:
        last = (np.array(self.shape) - 1) * self.spacing
        return all((part.points >= 0).all() and (part.points <= last).all() for part in anatomy.segments)


def _classes(anatomy: Anatomy) -> NDArray[np.uint8]:
    """Class of each segment number; number 0 is background."""
    return np.array([0, *(CLASSES.index(segment.label) + 1 for segment in anatomy.segments)], dtype=np.uint8)


def _betti_of_graph(anatomy: Anatomy) -> dict[str, BettiNumbers]:
    """Betti numbers of all classes together and of each class, as the anatomy says."""
    edges = {
        name: [(s.start, s.end) for s in anatomy.segments if name in ("merged", s.label)]
        for name in ("merged", *CLASSES)
    }
    start = {segment.name: segment.start for segment in anatomy.segments}
    # For the numbers it does not matter where along two edges a third one joins them.
    edges["merged"] += [(start[one], start[other]) for one, other in anatomy.contacts]
    return {name: betti_of_graph(own) for name, own in edges.items()}


def _betti_of_label(label: NDArray[np.uint8]) -> dict[str, BettiNumbers]:
    """The same, as the voxels say."""
    found = {"merged": betti_numbers(label > 0)}
    boxes = [*find_objects(label), *[None] * len(CLASSES)]
    for value, name in enumerate(CLASSES, start=1):
        box = boxes[value - 1]
        found[name] = BettiNumbers(0, 0, 0) if box is None else betti_numbers(label[box] == value)
    return found


def _tissue(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float], basilar_top: Points
) -> NDArray[np.float64]:
    """Brain around a dark cistern in which the circle of Willis lies."""
    middle, half = basilar_top + np.array([2, 8, 0]), (12, 14, 17)
    axes = [(np.arange(n) * s - c) / h for n, s, c, h in zip(shape, spacing, middle, half, strict=True)]
    z, y, x = np.ix_(*axes)
    level = np.sqrt(z**2 + y**2 + x**2) + 0.25 * smooth_noise(rng, shape, 4.0)
    brain = 1 / (1 + np.exp(-8 * (level - 1)))
    return _CSF + (_TISSUE - _CSF) * brain + 0.02 * smooth_noise(rng, shape, 2.0)


def _truth(anatomy: Anatomy, numbers: NDArray[np.uint8]) -> dict[str, Any]:
    voxels = np.bincount(numbers.ravel(), minlength=len(anatomy.segments) + 1)
    nodes = {name: at for s in anatomy.segments for name, at in ((s.start, s.points[0]), (s.end, s.points[-1]))}
    return {
        "links": dict(anatomy.links),
        "betti": {name: list(betti) for name, betti in _betti_of_graph(anatomy).items()},
        "contacts": [list(pair) for pair in anatomy.contacts],
        "nodes": {name: _rounded(at) for name, at in nodes.items()},
        "segments": [
            {
                "id": number,
                "name": segment.name,
                "class": segment.label,
                "start": segment.start,
                "end": segment.end,
                "length_mm": length_of(segment.points),
                "diameter_mm": float(2 * segment.radii.mean()),
                "volume_mm3": segment.volume_mm3,
                "voxels": int(voxels[number]),
                "points_mm": _rounded(segment.points),
                "radius_mm": _rounded(segment.radii),
            }
            for number, segment in enumerate(anatomy.segments, start=1)
        ],
    }


def _rounded(values: NDArray[np.float64]) -> Any:
    """Micrometres are enough."""
    return np.round(values, 3).tolist()
