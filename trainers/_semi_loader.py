"""nnU-Net's data loader with labelled and unlabelled patches in one batch."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from trainers._loader import InstanceBalancedLoader, PatchRecipe

__all__ = [
    "Mix",
    "SemiInstanceBalancedLoader",
    "SemiLoader",
    "describe_mix",
    "forced_share",
    "mix_patches",
    "slot_chances",
    "training_loader",
]


@dataclass(frozen=True)
class Mix:
    """Which patches of a batch come from unlabelled cases.

    Attributes:
        cases: the unlabelled ones, at least one.
        chances: for each patch of a batch on this rank, how likely it is unlabelled.
        forced: share of the labelled patches that are forced to show foreground.
        ignore: label of the voxels that nobody annotated; None with regions, where it is the last channel.
        labelled: patches of a rank that are labelled, on average over ranks and batches; None in a single process.
    """

    cases: tuple[str, ...]
    chances: tuple[float, ...]
    forced: float
    ignore: int | None
    labelled: float | None = None

    def weight(self, unlabelled: int) -> float:
        """Of the loss on labelled patches, so that the mean over ranks is the mean over labelled patches.

        Args:
            unlabelled: patches in the batch of this rank.
        """
        return 1.0 if self.labelled is None else (len(self.chances) - unlabelled) / self.labelled


class SemiLoader(nnUNetDataLoader):
    """nnU-Net's loader whose batches hold unlabelled patches, first, and labelled ones after them.

    A patch of an unlabelled case is drawn at random, never for its foreground, and its target is ``ignore`` in every
    voxel (at every resolution; with regions: the last channel is 1, the others 0), also where the patch sticks out of
    the image. Labelled patches are drawn as without unlabelled cases.

    Args:
        data: nnU-Net's dataset of the labelled training cases; it can load the unlabelled ones, too.
        mix: which patches are unlabelled.
        args: nnU-Net's own.
        kwargs: nnU-Net's own.
    """

    get_do_oversample: Callable[[int], bool]
    has_ignore: bool

    def __init__(self, data: nnUNetBaseDataset, mix: Mix, *args: Any, **kwargs: Any) -> None:
        super().__init__(data, *args, **kwargs)
        self.mix = mix
        self._is_forced_at = self.get_do_oversample
        self.get_do_oversample = self._begin_slot
        self._unlabelled: list[bool] = []
        self._anywhere = False

    def get_indices(self) -> list[str]:
        """Cases of the next batch."""
        keys = [str(key) for key in super().get_indices()]
        self._unlabelled = [bool(np.random.uniform() < chance) for chance in self.mix.chances]  # noqa: NPY002  # nnU-Net's own numbers
        return [
            str(np.random.choice(self.mix.cases)) if unlabelled else key  # noqa: NPY002
            for key, unlabelled in zip(keys, self._unlabelled, strict=True)
        ]

    def get_bbox(
        self, data_shape: Any, force_fg: bool, class_locations: Any, overwrite_class: Any = None, verbose: bool = False
    ) -> tuple[list[int], list[int]]:
        """Place of the patch of `get_do_oversample`'s latest answer; anywhere in an unlabelled case."""
        if not self._anywhere:
            return super().get_bbox(data_shape, force_fg, class_locations, overwrite_class, verbose)
        has_ignore, self.has_ignore = self.has_ignore, False  # or nnU-Net looks for annotated voxels
        try:
            return nnUNetDataLoader.get_bbox(self, data_shape, False, None)
        finally:
            self.has_ignore = has_ignore

    def generate_train_batch(self) -> dict[str, Any]:
        """The next batch; nobody knows anything of its unlabelled patches."""
        batch: dict[str, Any] = super().generate_train_batch()
        rows = [row for row, unlabelled in enumerate(self._unlabelled) if unlabelled]
        levels = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
        for level in levels:
            self._hide(level, rows)
        return batch

    def _hide(self, target: torch.Tensor, rows: list[int]) -> None:
        if self.mix.ignore is None:
            target[rows, :-1], target[rows, -1:] = 0, 1
        else:
            target[rows] = self.mix.ignore

    def _begin_slot(self, number: int) -> bool:
        forced = self._is_forced_at(number)
        self._anywhere = self._unlabelled[number]
        return bool(forced) and not self._anywhere


class SemiInstanceBalancedLoader(SemiLoader, InstanceBalancedLoader):
    """`SemiLoader` whose labelled patches are balanced over instances."""


def training_loader(
    data: nnUNetBaseDataset, recipe: PatchRecipe | None, mix: Mix | None, *args: Any, **kwargs: Any
) -> nnUNetDataLoader:
    """The loader for a choice of patches.

    Args:
        data: nnU-Net's dataset of the labelled training cases.
        recipe: balances labelled patches over instances; None: nnU-Net's own choice.
        mix: adds unlabelled patches; None: there are none.
        args: nnU-Net's own.
        kwargs: nnU-Net's own.
    """
    if mix is None:
        if recipe is None:
            return nnUNetDataLoader(data, *args, **kwargs)
        return InstanceBalancedLoader(data, recipe, *args, **kwargs)
    # Which patch of a batch is labelled changes, so each one is forced by chance, not the last ones.
    kwargs |= {"probabilistic_oversampling": True, "oversample_foreground_percent": mix.forced}
    if recipe is None:
        return SemiLoader(data, mix, *args, **kwargs)
    return SemiInstanceBalancedLoader(data, mix, replace(recipe, forced=mix.forced), *args, **kwargs)


def mix_patches(
    cases: Collection[str], share: float, batch_size: int, rank: int, ranks: int, forced: float, ignore: int | None
) -> Mix:
    """Decide which patches of a rank's batches come from unlabelled cases.

    Args:
        cases: see `Mix`.
        share: see `slot_chances`.
        batch_size: see `slot_chances`.
        rank: see `slot_chances`.
        ranks: see `slot_chances`.
        forced: see `Mix`.
        ignore: see `Mix`.
    """
    chances = [slot_chances(share, batch_size, each, ranks) for each in range(ranks)]
    labelled = (batch_size - sum(map(sum, chances))) / ranks if ranks > 1 else None
    return Mix(tuple(sorted(cases)), chances[rank], forced, ignore, labelled)


def slot_chances(share: float, batch_size: int, rank: int = 0, ranks: int = 1) -> tuple[float, ...]:
    """How likely each patch of a rank's batch is unlabelled.

    Over all ranks, ``n = share * batch_size`` patches are unlabelled: the first ones of each rank, the next ones of
    each rank, ..., and one by chance if ``n`` is no whole number. Two patches or more hold a labelled one, on each
    rank that has two; a single patch is unlabelled by chance.

    Args:
        share: of unlabelled patches that is wanted; less where each batch would be unlabelled.
        batch_size: of all ranks together.
        rank: of this process.
        ranks: number of processes; nnU-Net spreads the batch evenly over them, the first ones get what is left over.

    Example:
        >>> slot_chances(0.5, 2), slot_chances(0.25, 2), slot_chances(0.8, 2)
        ((1.0, 0.0), (0.5, 0.0), (1.0, 0.0))
        >>> [slot_chances(0.5, 2, rank, 2) for rank in (0, 1)]
        [(1.0,), (0.0,)]
    """
    unlabelled = min(share * batch_size, batch_size - 1) if batch_size > 1 else share
    own = range(rank, batch_size, ranks)  # patches of all ranks are counted in turn
    chances = [float(min(max(unlabelled - number, 0), 1)) for number in own]
    if len(chances) > 1:
        chances[-1] = 0.0
    return tuple(chances)


def forced_share(forced: float, batch_size: int, coin: bool) -> float:
    """Share of patches that nnU-Net really forces to show foreground: with whole batches it rounds.

    Args:
        forced: share that is wanted.
        batch_size: of all ranks together.
        coin: each patch is decided by chance, without rounding.

    Example:
        >>> forced_share(0.33, 2, False)
        0.5
    """
    return forced if coin else 1 - round(batch_size * (1 - forced)) / batch_size


def describe_mix(cases: int, share: float, cascaded: bool) -> str:
    """One line for the training log."""
    if not cases:
        return f"no case, though unlabelled_share is {share:g}" if share else "no case"
    if cascaded:
        return f"{cases} cases, left out because nnU-Net predicts only labelled ones for the next stage"
    if not share:
        return f"{cases} cases, left out because unlabelled_share is 0"
    return f"{cases} cases, {share:g} of the training patches"
