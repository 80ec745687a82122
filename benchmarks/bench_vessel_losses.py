"""What does a loss that looks at topology cost on the CPU, beside nnU-Net's Dice + CE and MONAI's clDice?

Forward and backward, skeletons and radii found anew in every call. The labels are artificial circles of Willis, the
prediction is the truth moved by one voxel plus noise. All candidates take turns, process CPU time of one thread counts,
the median is reported. MONAI's losses keep every step of their poolings for the way back: with many classes they
are measured in a smaller cube and scaled up by the number of voxels (marked with a tilde).
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_losses as common  # before torch: it sets the number of threads
import torch
from _machine import describe_machine, machine_lines
from _vessel_classes import vessel_patch
from monai.losses import SoftclDiceLoss, SoftDiceclDiceLoss
from torch import Tensor
from torch.nn import functional as F

from nnunet_imbal import build_loss

OURS = (
    "radius_dice",
    "skeleton_recall",
    "cldice",
    "clce",
    "breakage_cldice",
    "cbdice",
    "scnp",
    "agtal",
)
PEERS = ("MONAI SoftclDice", "MONAI SoftDiceclDice")
CUBE, SMALL, QUICK = (128, 128, 128), (64, 64, 64), (24, 24, 24)
CLASSES = (3, 13, 20)
LARGE_LOSSES = (common.UNIT, "cldice", "agtal")
LARGE, LARGE_CLASSES = (80, 192, 160), 13  # nnU-Net's patch for the challenge TopCoW
LIMIT_GB, CLASSIC_ITERATIONS = 8, 10
FITS_GB = 8  # what a peer may take before it is scaled up instead
RESULT = Path(__file__).with_name("results") / "losses_vessels.json"


def make_case(shape: tuple[int, int, int], classes: int) -> tuple[Tensor, Tensor]:
    """Logits (2, classes + 1, *shape) of a prediction that is one voxel off, and labels (2, 1, *shape)."""
    labels = torch.stack([torch.from_numpy(vessel_patch(shape, index, classes))[None] for index in range(2)])
    noise = torch.randn(2, classes + 1, *shape, generator=torch.Generator().manual_seed(1))
    moved = labels.roll(1, dims=-1).long()
    return (noise + 6 * F.one_hot(moved[:, 0], classes + 1).movedim(-1, 1)).requires_grad_(), labels


def make_losses(classes: int) -> dict[str, common.Loss]:
    """Every loss as a trainer would use it; AG-TAL-R with all pairs of classes forbidden, its dearest case."""
    options = {"agtal": {"forbidden": (1 - torch.eye(classes)).tolist()}}
    ours = {name: build_loss(name, softmax=True, to_onehot_y=True, **options.get(name, {})) for name in OURS}
    return {common.UNIT: common.nnunet_loss(), **ours}


def make_peers() -> dict[str, common.Loss]:
    """MONAI's losses with their default of three iterations."""
    options = {"softmax": True, "to_onehot_y": True, "include_background": False}
    return {"MONAI SoftclDice": SoftclDiceLoss(**options), "MONAI SoftDiceclDice": SoftDiceclDiceLoss(**options)}


def chain_gigabytes(shape: Sequence[int], classes: int, iterations: int) -> float:
    """What a soft skeleton made of poolings keeps for the way back: 64 + 128 k bytes per voxel and class."""
    return (64 + 128 * iterations) * 2 * classes * math.prod(shape) / 1e9


def measure(shape: tuple[int, int, int], classes: int, rounds: int) -> dict[str, Any]:
    """Seconds of all losses on one setting, and their peak bytes by a small cube; what does not fit is scaled up."""
    losses, peers, small = make_losses(classes), make_peers(), make_case(SMALL, classes)
    factor = math.prod(shape) / math.prod(SMALL)
    row: dict[str, Any] = {"shape": list(shape), "classes": classes, "rounds": rounds, "scaled": []}
    row["bytes"] = {name: round(factor * peak) for name, peak in peaks(losses | peers, small).items()}
    if chain_gigabytes(shape, classes, 3) <= FITS_GB:
        return row | {"seconds": turns(losses | peers, make_case(shape, classes), rounds)}
    seconds = turns(losses, make_case(shape, classes), rounds)
    scaled = turns(peers, small, rounds)
    seconds |= {name: [factor * value for value in values] for name, values in scaled.items()}
    return row | {"seconds": seconds, "scaled": list(peers)}


def turns(losses: Mapping[str, common.Loss], case: tuple[Tensor, Tensor], rounds: int) -> dict[str, list[float]]:
    """Median, lowest and highest seconds of each loss; they take turns."""
    runs = {name: common.step(loss, *case) for name, loss in losses.items()}
    times = [{name: common.cpu_seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    columns = {name: [each[name] for each in times] for name in runs}
    return {name: [statistics.median(values), min(values), max(values)] for name, values in columns.items()}


def peaks(losses: Mapping[str, common.Loss], case: tuple[Tensor, Tensor]) -> dict[str, int]:
    """Peak of what one call allocates, in bytes; each loss runs twice, so kernels are loaded afterwards."""
    return {name: common.peak_bytes(loss, *case) for name, loss in losses.items()}


def large_case() -> dict[str, Any]:
    """Peak bytes in a batch that the chain of poolings cannot do."""
    losses = {name: loss for name, loss in make_losses(LARGE_CLASSES).items() if name in LARGE_LOSSES}
    return {
        "shape": list(LARGE),
        "classes": LARGE_CLASSES,
        "bytes": peaks(losses, make_case(LARGE, LARGE_CLASSES)),
        "classic_gb": chain_gigabytes(LARGE, LARGE_CLASSES, CLASSIC_ITERATIONS),
    }


def markdown(result: dict[str, Any]) -> str:
    """Page of the results."""
    rows = result["rows"]
    return "\n".join(
        [
            "# Losses for vessels: time and memory",
            "",
            "Made by `python benchmarks/bench_vessel_losses.py`; do not edit. Seconds of process CPU time for forward",
            "and backward, two samples, one thread; in brackets the multiple of nnU-Net's Dice + CE. Then the peak of",
            "what a call allocates, torch and NumPy added, in GB, measured in a cube of 64³ and multiplied by 8; in",
            "brackets its multiple of the logits.",
            "",
            *_table(rows),
            "",
            "- ~ timed in a cube of 64³ and multiplied by 8: as it is, it would not fit into the machine",
            "- MONAI's losses take three iterations, their default; ours count for each case how many it needs",
            "- agtal with all pairs of classes forbidden; 13 classes are an artificial circle of Willis; for 20 the",
            "  largest vessels were cut in two, for 3 they share names",
            "- interleaved rounds, each loss having run before: "
            + ", ".join(f"{row['rounds']} with {row['classes']} classes" for row in rows),
            *machine_lines(result["machine"]),
            "",
            *(_large_lines(result["large"]) if "large" in result else ()),
            "",
        ]
    )


def _table(rows: list[dict[str, Any]]) -> list[str]:
    heads = [f"{' x '.join(map(str, row['shape']))}, {row['classes']} classes" for row in rows]
    lines = ["| loss | " + " | ".join([*heads, *(f"GB, {row['classes']} classes" for row in rows)]) + " |"]
    lines.append("|---" * (2 * len(rows) + 1) + "|")
    for name in (common.UNIT, *OURS, *PEERS):
        cells = [_time(row, name) for row in rows] + [_memory(row, name) for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _time(row: dict[str, Any], name: str) -> str:
    seconds, tilde = row["seconds"][name][0], "~ " if name in row["scaled"] else ""
    return f"{tilde}{seconds:.3g} ({seconds / row['seconds'][common.UNIT][0]:.3g}x)"


def _memory(row: dict[str, Any], name: str) -> str:
    logits = 4 * 2 * (row["classes"] + 1) * math.prod(row["shape"])
    return f"{row['bytes'][name] / 1e9:.2f} ({row['bytes'][name] / logits:.1f}x)"


def _large_lines(large: dict[str, Any]) -> list[str]:
    worst = max(large["bytes"], key=large["bytes"].get)
    peak = large["bytes"][worst] / 1e9
    verdict = "met" if peak < LIMIT_GB else "missed"
    sizes = ", ".join(f"{name} {taken / 1e9:.2f}" for name, taken in large["bytes"].items())
    return [
        f"## {large['classes']} classes, two patches of {' x '.join(map(str, large['shape']))}",
        "",
        f"- bar: less than {LIMIT_GB} GB for each: {verdict}; most takes {worst} with {peak:.2f} GB",
        f"- peak in GB, measured at this size: {sizes}",
        f"- a soft skeleton of {CLASSIC_ITERATIONS} iterations made of poolings keeps {large['classic_gb']:.0f} GB, by "
        "formula (64 + 128 k bytes per voxel and class); it was not run",
    ]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds with 3 classes (default: %(default)s)")
    parser.add_argument("--few-rounds", type=int, default=1, help="rounds with more classes (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small patches only, to see it run")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON to write, Markdown beside it")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure; rows and the large case that the output already holds are kept."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    stored, shape = arguments.output, QUICK if arguments.quick else CUBE
    result = json.loads(stored.read_text()) if stored.is_file() else {"machine": describe_machine(), "rows": []}
    for classes in CLASSES[len(result["rows"]) :]:
        rounds = arguments.rounds if classes == CLASSES[0] else arguments.few_rounds
        result["rows"].append(measure(shape, classes, rounds))
        common.write(result, stored, markdown(result))
    if "large" not in result:
        result["large"] = large_case()
        common.write(result, stored, markdown(result))
    print(stored.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
