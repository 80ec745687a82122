"""nnU-Net's data loader with forced patches drawn by `nnunet_imbal.sampling`, and its way into nnU-Net's trainer."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_imbal.config import Sampling
from nnunet_imbal.sampling import Draw, InstanceBalancedSampler, InstanceIndex, Region, cached_index, case_weights

__all__ = ["InstanceBalancedLoader", "PatchRecipe", "dataset_index", "label_file", "loaders_by"]


@dataclass(frozen=True)
class PatchRecipe:
    """What `InstanceBalancedLoader` needs to know beyond nnU-Net's own arguments.

    Attributes:
        sampling: the settings.
        index: instances of the training cases, at least one.
        forced: share of forced patches on this rank.
        rank: of this process in distributed training.
        epoch: in which the training starts or goes on.
    """

    sampling: Sampling
    index: InstanceIndex
    forced: float
    rank: int = 0
    epoch: int = 0


class InstanceBalancedLoader(nnUNetDataLoader):
    """nnU-Net's loader whose forced patches choose an instance first, and with it the case.

    Reading, cropping, padding, cascades, augmentation and the random patches stay nnU-Net's. For each batch nnU-Net
    asks `get_indices` for the cases, then patch by patch `get_do_oversample` and `get_bbox`; the answers all come
    from one plan of the batch.

    Args:
        data: nnU-Net's dataset of the training cases.
        recipe: settings and instances.
        args: nnU-Net's own.
        kwargs: nnU-Net's own.
    """

    def __init__(self, data: nnUNetBaseDataset, recipe: PatchRecipe, *args: Any, **kwargs: Any) -> None:
        super().__init__(data, *args, **kwargs)
        sampling = recipe.sampling
        self.recipe = recipe
        self.oversample_foreground_percent = recipe.forced
        self.flips_coins = sampling.coin or bool(kwargs.get("probabilistic_oversampling")) or self.batch_size == 1
        if sampling.repeat_factor is not None:
            self.sampling_probabilities = _weights_in_order(recipe.index, sampling.repeat_factor, data.identifiers)
        self.sampler = InstanceBalancedSampler(
            recipe.index,
            class_exponent=sampling.class_exponent,
            instance_share=sampling.instance_share,
            offset=sampling.offset,
        )
        self.get_do_oversample = self._begin_patch
        self._plan: list[Draw | None] = []
        self._draw: Draw | None = None
        self._generator: tuple[tuple[int, int], np.random.Generator] | None = None

    def get_indices(self) -> list[str]:
        """Cases of the next batch: nnU-Net's draw, and that of the sampler where a patch is forced."""
        keys = list(super().get_indices())
        rng = self._rng()
        self._plan = [
            self.sampler.draw(self.final_patch_size, rng) if self._is_forced(j, rng) else None for j in range(len(keys))
        ]
        return [str(key) if draw is None else draw.case for key, draw in zip(keys, self._plan, strict=True)]

    def get_bbox(
        self, data_shape: Any, force_fg: bool, class_locations: Any, overwrite_class: Any = None, verbose: bool = False
    ) -> tuple[list[int], list[int]]:
        """Place of the patch of `get_do_oversample`'s latest answer: first voxel, and voxel after the last one."""
        if not force_fg or self._draw is None:
            return super().get_bbox(data_shape, force_fg, class_locations, overwrite_class, verbose)
        begin = [
            min(max(at - size // 2, lowest), highest)
            for at, size, (lowest, highest) in zip(
                self._draw.center, self.patch_size, self._limits(data_shape), strict=True
            )
        ]
        return begin, [int(at + size) for at, size in zip(begin, self.patch_size, strict=True)]

    def _begin_patch(self, number: int) -> bool:
        self._draw = self._plan[number]
        return self._draw is not None

    def _is_forced(self, number: int, rng: np.random.Generator) -> bool:
        if self.flips_coins:
            return bool(rng.random() < self.oversample_foreground_percent)
        return bool(self._oversample_last_XX_percent(number))

    def _limits(self, shape: Any) -> Iterator[tuple[int, int]]:
        """Smallest and largest first voxel of a patch along each axis, as nnU-Net has them for random patches."""
        for length, size, padding in zip(shape, self.patch_size, self.need_to_pad, strict=True):
            pad = max(int(padding), int(size) - int(length))
            yield -pad // 2, int(length) + pad // 2 + pad % 2 - int(size)

    def _rng(self) -> np.random.Generator:
        """This process's own generator: workers are copies of one loader and must not draw the same patches."""
        owner = (os.getpid(), self.thread_id)
        if self._generator is None or self._generator[0] != owner:
            seed = self.recipe.sampling.seed
            entropy = int(np.random.randint(2**31)) if seed is None else seed  # noqa: NPY002  # nnU-Net's own numbers
            seeds = [entropy, self.recipe.rank, self.thread_id, self.recipe.epoch]
            self._generator = owner, np.random.default_rng(seeds)
        return self._generator[1]


@contextmanager
def loaders_by(build: Callable[..., nnUNetDataLoader]) -> Iterator[None]:
    """Inside this context, nnU-Net's trainer gets its loaders from a function.

    nnU-Net names the class of its loaders in the middle of a long function. Changing what that name means for one
    call keeps everything else there upstream's, in this and in later releases.

    Args:
        build: takes what nnU-Net's loader takes.
    """
    stock = trainer_module.nnUNetDataLoader
    trainer_module.nnUNetDataLoader = build
    try:
        yield
    finally:
        trainer_module.nnUNetDataLoader = stock


def dataset_index(
    data: nnUNetBaseDataset, labels: LabelManager, path: Path, min_voxels: int, say: Callable[[str], None]
) -> InstanceIndex:
    """Instances of nnU-Net's training cases, kept in a file; in distributed training only rank 0 does the work.

    Args:
        data: preprocessed training cases.
        labels: tells classes or regions; labels to ignore make no instance.
        path: where to keep the index, not among the cases: nnU-Net allows no other files there.
        min_voxels: smaller instances are left out.
        say: takes the messages.
    """

    def find() -> InstanceIndex:
        return cached_index(path, files, load, _classes(labels), min_voxels=min_voxels, say=say)

    def load(case: str) -> Any:
        return np.asarray(data.load_case(case)[1][0])

    files = {case: label_file(data, case) for case in data.identifiers}
    if not dist.is_initialized():
        return find()
    index = find() if dist.get_rank() == 0 else None
    dist.barrier()
    return find() if index is None else index


def _classes(labels: LabelManager) -> list[Region]:
    found = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    return [tuple(int(x) for x in each) if isinstance(each, tuple | list) else (int(each),) for each in found]


def label_file(data: nnUNetBaseDataset, case: str) -> Path:
    """The file whose age tells whether a case was preprocessed again."""
    folder = Path(data.source_folder)
    blosc2 = folder / f"{case}_seg.b2nd"
    return blosc2 if blosc2.is_file() else folder / f"{case}.npz"


def _weights_in_order(index: InstanceIndex, threshold: float, cases: list[str]) -> list[float]:
    weights = dict(zip(index.cases, case_weights(index, threshold).tolist(), strict=True))
    return [weights[case] for case in cases]
