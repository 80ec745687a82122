"""Instance losses by the book: one mask per component, one distance map per component, no shortcut.

Each loss takes one class of one sample: ``p`` and ``e`` (probabilities and cross-entropy, float64 tensors), the truth
``y`` and the voxels that count ``valid`` (bool tensors), and gives None where there is no component.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage


class Tie(Exception):
    """A voxel is equally near to two components, so the right answer is a matter of choice."""


RANK = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}


def components(y, connectivity=None):
    rank = y.ndim if connectivity is None else RANK[connectivity]
    labels, count = ndimage.label(y.numpy(), ndimage.generate_binary_structure(y.ndim, rank))
    return [torch.from_numpy(labels == k) for k in range(1, count + 1)]


def cells(parts, spacing=None):
    """One mask per component: the voxels it is nearest to."""
    maps = np.stack([ndimage.distance_transform_edt(~part.numpy(), sampling=spacing) for part in parts])
    nearest = torch.from_numpy(maps.argmin(0))
    close = np.sort(maps, axis=0)
    if len(parts) > 1 and (close[1] <= close[0] * (1 + 1e-9)).any():
        raise Tie
    return [nearest == k for k in range(len(parts))]


def weights(weighting, part, region):
    n, d = part.sum().item(), region.sum().item()
    inside = {"none": 1, "balanced": d / (2 * n), "foreground": d / n}[weighting]
    outside = {"none": 1, "balanced": d / (2 * max(d - n, 1)), "foreground": 1}[weighting]
    return torch.full(part.shape, float(outside), dtype=torch.float64).masked_fill(part, inside) * region


def dice(p, part, region, weighting, smooth):
    w = weights(weighting, part, region)
    return 1 - (2 * (w * p * part).sum() + smooth) / ((w * p).sum() + (w * part).sum() + smooth)


def mean_error(e, part, region, weighting):
    w = weights(weighting, part, region)
    return (w * e).sum() / w.sum()


@dataclass
class Case:
    """One class of one sample."""

    p: torch.Tensor
    e: torch.Tensor
    y: torch.Tensor
    valid: torch.Tensor
    spacing: tuple
    connectivity: int
    weighting: str = "none"
    clip: tuple | None = (1.0, 2e5)
    squared_pred: bool = True
    smooth: float = 1e-5

    def __post_init__(self):
        self.parts = components(self.y, self.connectivity)

    def cells(self):
        found = cells(self.parts, self.spacing) if self.parts else []
        return [(part, cell & self.valid) for part, cell in zip(self.parts, found, strict=True)]

    def blobs(self):
        return [(part, (part | ~self.y) & self.valid) for part in self.parts]

    def dice(self, regions):
        return mean([dice(self.p, *region, self.weighting, self.smooth) for region in regions])

    def errors(self, regions):
        return mean([mean_error(self.e, *region, self.weighting) for region in regions])

    def voxel_weights(self):
        w = torch.zeros(self.y.shape, dtype=torch.float64)
        for part in [self.valid & ~self.y, *self.parts]:
            size = part.sum().item()
            if size:
                value = self.valid.sum().item() / ((len(self.parts) + 1) * size)
                w[part] = value if self.clip is None else min(max(value, self.clip[0]), self.clip[1])
        return w


def mean(values):
    return torch.stack(values).mean() if values else None


def cc_dice(case):
    return case.dice(case.cells())


def cc_ce(case):
    return case.errors(case.cells())


def cc_dice_ce(case):
    return cc_dice(case) + cc_ce(case) if case.parts else None


def blob_dice(case):
    return case.dice(case.blobs())


def blob_ce(case):
    return case.errors(case.blobs())


def instance_ce(case):
    rest = case.valid & ~case.y
    background = case.e[rest].mean() if rest.any() else case.e.sum() * 0
    return mean([(case.e[part].mean() + background) / 2 for part in case.parts])


def inverse_size_ce(case):
    return (case.voxel_weights() * case.e).sum() / case.valid.sum() if case.parts else None


def inverse_size_dice(case):
    if not case.parts:
        return None
    w, p, y = case.voxel_weights(), case.p, case.y
    mass = p * p if case.squared_pred else p
    return 1 - (2 * (w * p * y).sum() + case.smooth) / ((w * mass).sum() + (w * y).sum() + case.smooth)


def cat_tversky(case):
    if not case.parts:
        return None
    p, y = case.p, case.y
    w = torch.full(y.shape, 0.01, dtype=torch.float64)
    for part in case.parts:
        w[part] = 1 / (part.sum().item() + 5)
    hit, alarm, miss = (w * p * y).sum(), (w * p * ~y).sum(), (w * (1 - p) * y).sum()
    return 1 - (hit + case.smooth) / (hit + 0.3 * alarm + 0.7 * miss + case.smooth)


def lesion_mil(case):
    return mean([-case.p[part].max().log() for part in case.parts])


def released_blob(logits, parts, smooth):
    """The authors' loop on one binary sample: hide the other components by logits of 0, then use a global criterion.

    Restated from the description of their code: Dice of a sigmoid with smoothing in both places, and binary
    cross-entropy with logits averaged over all voxels.
    """
    union = torch.stack(parts).any(0)
    dices, entropies = [], []
    for part in parts:
        seen = logits * (part | ~union)
        p, y = torch.sigmoid(seen), part.double()
        dices.append(1 - (2 * (p * y).sum() + smooth) / (p.sum() + y.sum() + smooth))
        entropies.append(torch.nn.functional.binary_cross_entropy_with_logits(seen, y))
    return mean(dices), mean(entropies)


def average(values):
    """Classes that are present, then samples that have any: ``values[b][c]`` is a number or None."""
    samples = [mean([v for v in sample if v is not None]) for sample in values]
    return mean([v for v in samples if v is not None])
