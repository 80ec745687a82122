"""Left and right: which classes are each other's mirror image, and which axis runs from one side to the other.

A network that sees mirrored images with unmirrored labels learns that left and right look the same.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from nnunet_imbal.errors import LabelError

__all__ = ["lateral_axes", "paired_labels", "swap_table"]

_PAIRS = (
    ("left", "right"),
    ("l", "r"),
    ("lt", "rt"),
    ("lh", "rh"),
    ("sinister", "dexter"),
    ("sin", "dex"),
    ("links", "rechts"),
    ("gauche", "droite"),
)
_OTHER_SIDE = {word: other for pair in _PAIRS for word, other in (pair, pair[::-1])}
# The two halves of the heart carry the names of sides, but neither looks like the other in a mirror.
_CARDIAC = {"atrium", "atrial", "atria", "ventricle", "ventricular", "auricle", "heart", "myocardium"}
_CEREBRAL = {"lateral", "lat", "cerebral", "brain"}


def paired_labels(labels: Mapping[str, int | Sequence[int]]) -> list[tuple[int, int]]:
    """Find the classes that come in left/right pairs, by their names.

    Sides are words of their own: ``left``, ``R``, ``lh``, ``Lt`` and the like, in any case, also as in ``rPCA``;
    ``L1`` is a vertebra. Chambers of the heart are not mirror images and do not count.

    Args:
        labels: the ``labels`` of a dataset.json: name to value, or to the values of a region.

    Returns:
        Pairs of label values in ascending order; empty if no name tells a side.

    Raises:
        LabelError: a name tells a side and nothing is named for the other one, or a region is not made of pairs.

    Example:
        >>> paired_labels({"background": 0, "R-PCA": 2, "L-PCA": 3, "BA": 1})
        [(2, 3)]
        >>> paired_labels({"middle lobe right": 1, "liver": 2})
        Traceback (most recent call last):
        nnunet_imbal.errors.LabelError: 'middle lobe right' has no partner on the other side
    """
    by_words = {_words(name): name for name in labels}
    sided = [name for name in labels if _other_side(_words(name)) is not None]
    partners = {name: by_words.get(_other_side(_words(name)) or ()) for name in sided}
    for name, partner in partners.items():
        if partner is None:
            raise LabelError(f"{name!r} has no partner on the other side")
    pairs = {(_single(labels[a]), _single(labels[b])) for a, b in partners.items() if b is not None}
    single = {(a, b) for a, b in pairs if a is not None and b is not None}
    for name, partner in partners.items():
        _check_region(name, labels[name], labels[partner or name], single)
    return sorted({(min(pair), max(pair)) for pair in single})


def swap_table(pairs: Iterable[tuple[int, int]], largest: int) -> list[int]:
    """Label values 0..largest after exchange of the pairs.

    Example:
        >>> swap_table([(2, 3)], 4)
        [0, 1, 3, 2, 4]
    """
    table = list(range(largest + 1))
    for one, other in pairs:
        table[one], table[other] = other, one
    return table


def lateral_axes(directions: Iterable[ArrayLike]) -> set[int]:
    """Array axes ``(z, y, x)`` = 0, 1, 2 that run from one side of the patient to the other.

    Args:
        directions: one ``(3, 3)`` direction cosine matrix, or affine without its last row and column, per image; the
            first row tells how far each index ``(i, j, k)`` moves along the patient's left-right axis.

    Returns:
        One axis if all images are oriented alike. In an oblique image it is the axis nearest to left-right.

    Example:
        >>> lateral_axes([np.eye(3)])
        {2}
    """
    cosines = (np.asarray(direction, dtype=float) for direction in directions)
    return {2 - int(np.argmax(np.abs(matrix[0]) / np.linalg.norm(matrix, axis=0))) for matrix in cosines}


def _words(name: str) -> tuple[str, ...]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # leftKidney, rPCA
    return tuple(word.lower() for word in re.findall(r"[^\W_]+", spaced))


def _other_side(words: tuple[str, ...]) -> tuple[str, ...] | None:
    if not _OTHER_SIDE.keys() & set(words):
        return None
    if _CARDIAC & set(words) and not _CEREBRAL & set(words):
        return None
    return tuple(_OTHER_SIDE.get(word, word) for word in words)


def _single(value: int | Sequence[int]) -> int | None:
    if isinstance(value, int):
        return value
    return value[0] if len(value) == 1 else None


def _check_region(
    name: str, value: int | Sequence[int], partner: int | Sequence[int], pairs: set[tuple[int, int]]
) -> None:
    mirror = dict(pairs)
    mine, other = ([v] if isinstance(v, int) else list(v) for v in (value, partner))
    if sorted(mirror.get(v, v) for v in mine) != sorted(other):
        raise LabelError(f"the region {name!r} is not the mirror image of the region on the other side")
