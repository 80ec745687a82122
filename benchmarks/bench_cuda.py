"""Are the GPU kernels worth it? Their time against the ways around them: through the CPU, and torch's own operators.

Needs an NVIDIA GPU, and numba-cuda: pip install "nnunet-imbal[cuda12]" (or cuda13, as torch was built).
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import describe_machine, machine_lines
from torch import Tensor

from nnunet_imbal import _cuda_backend
from nnunet_imbal.ops import cells as cells_op
from nnunet_imbal.ops import overlap

SPACING = [1.0, 1.0, 1.0]
CONNECTIVITY = 26


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128], help="edges of the cubes in voxels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    return parser.parse_args(words)


def make_batch(batch: int, classes: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities and masks ``(B, C, Z, Y, X)``: blobs of some voxels to some hundred, rarer from class to class."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, classes, size, size, size, generator=generator)
    smooth = torch.nn.functional.avg_pool3d(noise, 5, 1, 2, count_include_pad=False)
    levels = torch.linspace(0.98, 0.9995, classes)
    limits = torch.stack([smooth[:, c].flatten()[::97].quantile(levels[c]) for c in range(classes)])
    return noise.sigmoid(), smooth > limits.view(1, -1, 1, 1, 1)


def variants(probs: Tensor, mask: Tensor) -> dict[str, dict[str, Callable[[], Any]]]:
    """Operator -> way of doing it -> function to time."""
    cells = _cuda_backend.component_cells(mask, SPACING, CONNECTIVITY)
    grad = _cuda_backend.cell_overlap(probs, mask, cells)
    return {
        "component_cells": {
            "GPU kernels": lambda: _cuda_backend.component_cells(mask, SPACING, CONNECTIVITY),
            "through the CPU": lambda: cells_op._cells_through_host(mask, SPACING, CONNECTIVITY),
        },
        "cell_overlap": {
            "GPU kernels": lambda: _cuda_backend.cell_overlap(probs, mask, cells),
            "torch index_add": lambda: overlap._overlap_by_index_add(probs, mask, cells),
        },
        "cell_overlap backward": {
            "GPU kernels": lambda: _cuda_backend.cell_overlap_backward(grad, mask, cells),
            "torch gather": lambda: overlap._overlap_backward_by_gather(grad, mask, cells),
        },
    }


def measure(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each way, in turns, with the clock waiting for the GPU."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 3):
        for name, way in ways.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            torch.cuda.synchronize()
            if repeat >= 3:  # compilation and memory come first
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| operator | volume | way | median ms | quartiles |", "|---|---|---|---|---|"]
    for row in rows:
        low, middle, high = np.quantile(row["milliseconds"], [0.25, 0.5, 0.75])
        lines.append(f"| {row['operator']} | {row['size']}³ | {row['way']} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    options = parse_arguments(words)
    if not torch.cuda.is_available():
        raise SystemExit("bench_cuda.py needs an NVIDIA GPU that torch can use; torch sees none here")
    if obstacle := _cuda_backend.find_obstacle(options.device):
        raise SystemExit(f"the GPU kernels do not run here: {obstacle}")
    rows = []
    for size in options.size:
        probs, mask = (each.to(options.device) for each in make_batch(options.batch, options.classes, size))
        for operator, ways in variants(probs, mask).items():
            for way, times in measure(ways, options.repeats).items():
                rows.append({"operator": operator, "size": size, "way": way, "milliseconds": times})
    machine = describe_machine(options.device)
    print("\n".join([*machine_lines(machine), f"- batch {options.batch}, classes {options.classes}", "", table(rows)]))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
