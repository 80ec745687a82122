"""What `ImbalTrainer` does when nobody named losses: it measures what is imbalanced, or goes on as a training began."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from nnunet_imbal.errors import DataError
from nnunet_imbal.fingerprint import Fingerprint, find_fingerprint
from nnunet_imbal.recipe import Recipe, choose_recipe

__all__ = ["dataset_recipe", "recipe_entry", "stored_entry"]


def dataset_recipe(
    folder: Path, *, epochs: int, patch_size: Sequence[int], say: Callable[[str], None] = print
) -> Recipe:
    """What fits a preprocessed dataset; in distributed training only rank 0 measures it.

    Args:
        folder: of the dataset in nnUNet_preprocessed.
        epochs: length of the training.
        patch_size: of the configuration.
        say: takes the messages.

    Raises:
        DataError: the fingerprint cannot be measured; says how to go on without it.
    """
    return choose_recipe(_fingerprint(folder, say), epochs=epochs, patch_size=patch_size)


def recipe_entry(recipe: Recipe) -> dict[str, Any]:
    """The entry ``imbal`` that plans and checkpoints keep, with the reasons."""
    return {**recipe.config.to_dict(), "recipe": [asdict(choice) for choice in recipe.choices]}


def stored_entry(filename: str, configuration: str) -> Mapping[str, Any] | None:
    """The entry ``imbal`` in a checkpoint of this training, which nnU-Net is about to load; None if it has none."""
    checkpoint = torch.load(filename, map_location="cpu", weights_only=False, mmap=True)
    entry: Mapping[str, Any] | None = checkpoint["init_args"]["plans"]["configurations"][configuration].get("imbal")
    return entry


def _fingerprint(folder: Path, say: Callable[[str], None]) -> Fingerprint:
    if not dist.is_initialized():
        return _measure(folder, say)
    found: list[Any] = [_measure(folder, say) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)  # not by way of the file: the folder may be one that cannot be written
    return cast(Fingerprint, found[0])


def _measure(folder: Path, say: Callable[[str], None]) -> Fingerprint:
    try:
        return find_fingerprint(folder, say=say)
    except DataError as error:
        raise DataError(
            f"{error}\nImbalTrainer chooses losses and sampling by what is imbalanced in the labels. To go on without, "
            "name them with `nnunet-imbal configure`, or choose a trainer that names them, such as -tr ImbalTrainerCC"
        ) from error
