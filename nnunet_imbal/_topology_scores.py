"""The topological part of an evaluation: scores of one class, or of all together, as JSON-ready dictionaries."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_imbal._lesion_scores import Entry, number
from nnunet_imbal.metrics import betti_errors, cldice, match_contacts
from nnunet_imbal.metrics._masks import Mask

__all__ = ["topology_entry", "vessel_tree_entry"]


def topology_entry(pred: Mask, ref: Mask, corner: Sequence[int]) -> Entry:
    """ClDice and Betti errors of one class; None if it is in neither map, so that absent classes leave the means.

    ``corner`` is the voxel of the image at which the two masks were cut out. Thinning visits even and odd voxels in
    turn and takes one slice for a picture: with a frame that keeps even even, the cut changes nothing.
    """
    frame = [(2 + start % 2, 1) for start in corner]
    pred, ref = np.pad(pred, frame), np.pad(ref, frame)
    lines, errors = cldice(pred, ref), betti_errors(pred, ref)
    present = bool(pred.any() or ref.any())
    return {
        "cldice": number(lines.score),
        "cldice_precision": number(lines.precision),
        "cldice_sensitivity": number(lines.sensitivity),
        **{f"{name}_error": float(error) if present else None for name, error in errors._asdict().items()},
    }


def vessel_tree_entry(pred: NDArray[Any], ref: NDArray[Any]) -> Entry:
    """The same for all classes merged, and whether the same classes touch."""
    contacts = match_contacts(pred, ref)
    shares = {name: number(getattr(contacts, name)) for name in ("recall", "precision", "f1")}
    return {
        **topology_entry(pred != 0, ref != 0, [0] * ref.ndim),
        **{f"contact_{name}": value for name, value in shares.items()},
    }
