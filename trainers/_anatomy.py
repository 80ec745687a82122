"""What some terms want to know of the training labels: which classes touch, and how thick the vessels are."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunet_imbal.adjacency import learn_adjacency, learn_radius_range
from nnunet_imbal.config import ImbalConfig
from nnunet_imbal.errors import DataError
from nnunet_imbal.registry import get_loss

__all__ = ["LEARNABLE", "learn_anatomy", "wanted"]

LEARNABLE = ("forbidden", "radius_range")


def wanted(config: ImbalConfig) -> set[str]:
    """Words of the active terms that nobody has set and that can be learned."""
    terms = [term for term in config.terms if term.weight]
    return {word for term in terms for word in LEARNABLE if word in get_loss(term.loss).options()} - {
        word for term in terms for word in term.kwargs
    }


def learn_anatomy(
    words: set[str],
    cases: nnUNetBaseDataset,
    labels: LabelManager,
    spacing: Sequence[float],
    table: Sequence[int] | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Learn from all training cases of a fold.

    Args:
        words: some of `LEARNABLE`.
        cases: nnU-Net's training cases.
        labels: tells the classes and which label to ignore.
        spacing: mm per voxel of the preprocessed cases; 2-D configurations keep the default radii.
        table: label values after a flip that exchanges left and right, if there are such flips.
        say: takes the messages.

    Returns:
        Values for constructor words, as plans hold them.
    """
    maps = [partial(_label_map, cases, case, labels.ignore_label) for case in cases.identifiers]
    learned: dict[str, Any] = {}
    if "forbidden" in words:
        adjacency = learn_adjacency(maps, len(labels.all_labels))
        adjacency = adjacency if table is None else adjacency.with_mirror_image(table)
        learned["forbidden"] = adjacency.forbidden()
        pairs = int(np.triu(learned["forbidden"], 1).sum())
        say(f"Learned from {len(maps)} label maps: {pairs} pairs of classes never touch.")
    if "radius_range" in words and len(spacing) == 3:
        try:
            learned["radius_range"] = list(learn_radius_range(maps, [spacing] * len(maps)))
            say(
                "Learned from {} label maps: radii from {:.3g} to {:.3g} mm.".format(
                    len(maps), *learned["radius_range"]
                )
            )
        except DataError as error:
            say(f"The default range of radii stays: {error}")
    return learned


def _label_map(cases: nnUNetBaseDataset, case: str, ignore: int | None) -> NDArray[Any]:
    labels = np.asarray(cases.load_case(case)[1][0])
    return np.where((labels < 0) | (labels == ignore), 0, labels)
