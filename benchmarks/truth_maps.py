"""Where should a loss for vessels get its maps of the truth from: the loader's worker, or the training process?

python benchmarks/truth_maps.py

Tubes around centre lines, radii and junctions of the same patches are made once by a loader's worker, which sends them
along with the labels, and once by the training process, which gets the labels alone. Both take turns on one thread
each. What counts is the processor time that a patch costs either process; the maps are the same.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np
import torch
from _machine import describe_machine, machine_lines
from _vessel_classes import vessel_patch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nnunet_imbal.labels import to_one_hot
from nnunet_imbal.losses import junction_mask
from nnunet_imbal.losses.skeleton_recall import skeleton_tubes
from nnunet_imbal.ops import local_thickness

BATCH = 2
PLACES = ("labels alone", "worker", "training process")


def truth_maps(labels: Tensor, classes: int) -> dict[str, Tensor]:
    """The maps as small as they can be sent: ``(B, 1, *S)`` each; a tube carries the number of its class."""
    target = to_one_hot(labels, classes + 1)[:, 1:]
    numbers = torch.arange(1, classes + 1, dtype=torch.uint8).view(1, -1, 1, 1, 1)
    return {
        "tubes": (skeleton_tubes(target) * numbers).amax(1, keepdim=True),
        "radius": local_thickness(target.any(1, keepdim=True)),
        "junctions": junction_mask(target),
    }


class Patches(Dataset[dict[str, Any]]):
    """Label maps in turn, for ever; with maps or without. ``seconds`` is what an item cost the worker."""

    def __init__(self, patches: Sequence[NDArray[np.uint8]], classes: int, with_maps: bool, length: int) -> None:
        self.patches = patches
        self.classes = classes
        self.with_maps = with_maps
        self.length = length

    def __len__(self) -> int:
        """How many items are asked for in all."""
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A patch, its maps if wanted, and the processor time they took."""
        start = time.process_time()
        labels = torch.from_numpy(self.patches[index % len(self.patches)])[None].clone()
        item = {"labels": labels}
        if self.with_maps:
            item |= {name: values[0] for name, values in truth_maps(labels[None], self.classes).items()}
        return {**item, "seconds": time.process_time() - start}


def fetch(batches: Iterator[dict[str, Any]], classes: int, make: bool) -> tuple[float, float]:
    """Processor seconds a patch costs the training process and the worker."""
    start = time.process_time()
    batch = next(batches)
    if make:
        batch |= truth_maps(batch["labels"], classes)
    seconds = time.process_time() - start
    return seconds / BATCH, float(batch["seconds"].mean())


def soft_dice(labels: Tensor, classes: int) -> float:
    """Processor seconds of the plainest loss for a patch, as a unit."""
    target, logits = to_one_hot(labels, classes + 1), torch.zeros(*labels.shape[:1], classes + 1, *labels.shape[2:])
    start = time.process_time()
    probs = logits.requires_grad_().softmax(1)
    (1 - (2 * (probs * target).sum() + 1) / (probs.sum() + target.sum() + 1)).backward()
    return (time.process_time() - start) / len(labels)


def measure(shape: tuple[int, int, int], classes: int, rounds: int) -> dict[str, Any]:
    """Medians over the rounds, in seconds a patch, and bytes sent for a patch."""
    patches = [vessel_patch(shape, index, classes) for index in range(BATCH)]
    both = torch.from_numpy(np.stack(patches))[:, None]
    maps = truth_maps(both, classes)  # also compiles the kernels, before the workers start
    words = {"batch_size": BATCH, "num_workers": 1, "prefetch_factor": 1, "multiprocessing_context": "fork"}
    length = BATCH * (rounds + 2)
    sources = {name: iter(DataLoader(Patches(patches, classes, name == "worker", length), **words)) for name in PLACES}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PLACES}
    unit = []
    for number in range(rounds + 1):
        for name, batches in sources.items():
            seconds = fetch(batches, classes, make=name == "training process")
            if number:  # the first round waits for the workers
                times[name].append(seconds)
        unit.append(soft_dice(both, classes))
    return {
        "shape": list(shape),
        "classes": classes,
        "rounds": rounds,
        "seconds": {
            name: dict(
                zip(("training process", "worker"), map(statistics.median, zip(*rows, strict=True)), strict=True)
            )
            for name, rows in times.items()
        },
        "soft_dice": statistics.median(unit),
        "bytes": {"labels": both[0].nbytes, **{name: values[0].nbytes for name, values in maps.items()}},
    }


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# Maps of the truth: in the worker or in the training process?",
        "",
        "Tubes around centre lines, radii and junctions of artificial circles of Willis, in batches of two patches.",
        "Processor time for a patch, one thread in each process, median; one worker, places in turn. In brackets:",
        "multiples of a soft Dice loss, forward and backward, on the same patch.",
        "",
        "| patch | classes | maps made in | training process, ms | worker, ms | sent for a patch, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        shape, sizes = " x ".join(map(str, row["shape"])), row["bytes"]
        for place, seconds in row["seconds"].items():
            sent = sum(sizes.values()) if place == "worker" else sizes["labels"]
            cells = [f"{1000 * s:.1f} ({s / row['soft_dice']:.2f})" for s in seconds.values()]
            name = place.replace("labels alone", "none, labels alone")
            lines.append(f"| {shape} | {row['classes']} | {name} | {' | '.join(cells)} | {sent / 1e6:.2f} |")
    return "\n".join([*lines, "", "## Measured on", "", *machine_lines(result["machine"])]) + "\n"


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 13, 20])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "truth_maps.json")
    return parser.parse_args(words)


def main() -> None:
    """Measure and write the numbers and the page."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    machine = describe_machine()
    rows = [measure(tuple(arguments.patch), classes, arguments.rounds) for classes in arguments.classes]
    result = {"machine": machine, "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
