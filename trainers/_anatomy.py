"""What some terms want to know of the training labels: contacts, thickness, nested regions, class frequencies."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunet_imbal.adjacency import learn_adjacency, learn_radius_range
from nnunet_imbal.config import ImbalConfig
from nnunet_imbal.errors import DataError
from nnunet_imbal.frequencies import measure_prior
from nnunet_imbal.losses import FocalCELoss, nested_pairs
from nnunet_imbal.registry import get_loss
from trainers._adapter import ActiveTerm, label_spec

__all__ = ["LEARNABLE", "learn_anatomy", "learn_frequencies", "tell_guarded", "wanted"]

LEARNABLE = ("forbidden", "frequencies", "implications", "radius_range")
BATCHES = 50  # a fifth of an epoch


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
        words: some of `LEARNABLE`; `learn_frequencies` is for ``frequencies``.
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
    if "implications" in words and labels.has_regions:
        learned["implications"] = [list(pair) for pair in nested_pairs(labels.foreground_regions)]
        say(f"Read from dataset.json: regions nested as (outer, inner) {learned['implications']}.")
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


def learn_frequencies(
    loader: Iterable[Any], labels: LabelManager, device: torch.device, say: Callable[[str], None]
) -> list[float]:
    """Share of each class, or region, in training patches as they are drawn; the same on all ranks.

    Args:
        loader: nnU-Net's training batches, of which some are used up.
        labels: tells channels and which label to ignore.
        device: of the training, where ranks can talk to each other.
        say: takes the message.
    """
    channels = labels.num_segmentation_heads
    shares = measure_prior(_targets(loader, device), channels, label_spec(labels))
    listed = ", ".join(f"{share:.3g}" for share in shares)
    say(f"Measured on {BATCHES} batches as they are drawn: share of the voxels of each channel {listed}.")
    missing = [channel for channel, share in enumerate(shares) if not share]
    if missing:
        say(f"WARNING: the channels {missing} were in none of them and are taken for very rare.")
    return shares


def tell_guarded(terms: Sequence[ActiveTerm], say: Callable[[str], None]) -> None:
    """Say of which classes the focal loss lets go, because it would hide rare ones."""
    for term in terms:
        if isinstance(term.loss, FocalCELoss) and term.loss.guarded:
            exponents = torch.as_tensor(term.loss.exponents).tolist()
            say(f"{term.name} would hide rare classes; to be safe, gamma of each class is {exponents} instead.")


def _targets(loader: Iterable[Any], device: torch.device) -> Iterator[torch.Tensor]:
    for _, batch in zip(range(BATCHES), loader, strict=False):
        target = batch["target"]
        yield (target[0] if isinstance(target, list) else target).to(device)


def _label_map(cases: nnUNetBaseDataset, case: str, ignore: int | None) -> NDArray[Any]:
    labels = np.asarray(cases.load_case(case)[1][0])
    return np.where((labels < 0) | (labels == ignore), 0, labels)
