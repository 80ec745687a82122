"""What a gap in a vessel costs under each loss, and how much of the gradient points at it.

python benchmarks/breakage.py

A volume with a trunk of radius 4 voxels and a branch of radius 0.5 to 3 beside it, one class. The prediction is 0.9 in
the truth and 0.01 or 0.1 outside; a gap of 1 to 5 voxels across the branch is like the outside. Everything is computed,
nothing is trained.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from nnunet_imbal.losses import ClDiceLoss, RadiusDiceLoss, SkeletonRecallLoss
from nnunet_imbal.losses.breakage_cldice import breakage_cldice_loss
from nnunet_imbal.losses.cbdice import cbdice_loss
from nnunet_imbal.losses.radius_dice import radius_weights

FOLDER = Path(__file__).resolve().parent
RADII, GAPS, OUTSIDE = (0.5, 1.0, 2.0, 3.0), (1, 2, 3, 4, 5), (0.01, 0.1)
TRUNK = 4.0
TITLES = {"increase": "Increase of the loss", "gradient": "Share of the gradient in the gap"}


def plain_dice(probs, target):
    return 1 - (2 * (probs * target).sum() + 1e-5) / (probs.sum() + target.sum() + 1e-5)


def agtal(probs, target, form, skeleton, detach, radius_range):
    weights = radius_weights(target, radius_range=radius_range)
    dice = RadiusDiceLoss(radius_range=radius_range)(probs, target)
    words = {"form": form, "skeleton": skeleton, "detach": detach, "voxel_weights": weights, "exclusive": False}
    return dice + 0.5 * breakage_cldice_loss(probs, target, **words)


LOSSES = {
    "Dice": plain_dice,
    "clDice": ClDiceLoss(alpha=1.0),
    "Skeleton Recall": SkeletonRecallLoss(),
    "cbDice": cbdice_loss,
    "AG-TAL, released form": lambda p, y: agtal(p, y, "released", "soft", False, (0.5, TRUNK)),
    "AG-TAL-R": lambda p, y: agtal(p, y, "relative", "thinning", True, (0.5, TRUNK)),
}


def vessels(radius, gap):
    """Truth and the voxels of the gap, both ``(1, 1, 24, 24, 48)`` bool."""
    z, y, x = torch.meshgrid(torch.arange(24), torch.arange(24), torch.arange(48), indexing="ij")
    trunk = (z - 7) ** 2 + (y - 7) ** 2 <= TRUNK**2
    branch = (z - 17) ** 2 + (y - 17) ** 2 <= radius**2
    hole = branch & (x >= 24 - gap // 2) & (x < 24 - gap // 2 + gap)
    return (trunk | branch)[None, None], hole[None, None]


def cost(loss, target, gap, outside):
    """What the gap adds to the loss, and its share of the gradient with respect to the logits."""
    intact = torch.where(target, 0.9, outside)
    logits = torch.logit(torch.where(gap, outside, intact)).requires_grad_()
    value = loss(logits.sigmoid(), target)
    (gradient,) = torch.autograd.grad(value, logits)
    mass = gradient.abs()
    return (value - loss(intact, target)).item(), (mass[gap].sum() / mass.sum()).item()


def measure():
    rows = []
    for outside, radius, gap in itertools.product(OUTSIDE, RADII, GAPS):
        target, hole = vessels(radius, gap)
        costs = {name: cost(loss, target, hole, outside) for name, loss in LOSSES.items()}
        row = {"outside": outside, "radius": radius, "gap": gap, "share_of_truth": (hole.sum() / target.sum()).item()}
        row["increase"] = {name: increase for name, (increase, _) in costs.items()}
        row["gradient"] = {name: share for name, (_, share) in costs.items()}
        rows.append(row)
    return rows


def markdown(rows):
    parts = ["# What a gap in a vessel costs", __doc__.split("\n\n")[2].strip()]
    for outside, (key, title) in itertools.product(OUTSIDE, TITLES.items()):
        lines = [f"## {title}, prediction {outside:g} outside", ""]
        lines += ["| radius | gap | share of truth | " + " | ".join(LOSSES) + " |", "|---" * (3 + len(LOSSES)) + "|"]
        for row in rows:
            if row["outside"] == outside:
                values = " | ".join(f"{row[key][name]:.4f}" for name in LOSSES)
                lines.append(f"| {row['radius']:g} | {row['gap']} | {row['share_of_truth']:.2%} | {values} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def plot(rows, path):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, (key, title) in zip(axes, TITLES.items(), strict=True):
        for name in LOSSES:
            axis.plot(
                RADII,
                [row[key][name] for row in rows if row["gap"] == 2 and row["outside"] == OUTSIDE[0]],
                marker="o",
                label=name,
            )
        axis.set(xlabel="radius of the branch (voxels)", title=f"{title}, gap of 2 voxels", ylim=(0, None))
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "results")
    parser.add_argument("--figure", type=Path, default=FOLDER.parent / "docs" / "figures" / "breakage.png")
    options = parser.parse_args(arguments)
    rows = measure()
    options.out.mkdir(parents=True, exist_ok=True)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    (options.out / "breakage.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    (options.out / "breakage.md").write_text(markdown(rows))
    plot(rows, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
