"""Are the GPU kernels worth it? Their time against the ways around them: through the CPU, torch's own operators, CuPy.

The floor is the time in which the GPU copies as many bytes as an operator reads and writes at the very least.
Needs an NVIDIA GPU, and numba-cuda: pip install "nnunet-imbal[cuda12]" (or cuda13, as torch was built).
"""

import argparse
import importlib
import json
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import describe_machine, machine_lines
from torch import Tensor
from torch.nn.functional import max_pool3d

from nnunet_imbal import _cuda_backend as gpu
from nnunet_imbal.ops import _run, overlap

soft_skeleton = importlib.import_module("nnunet_imbal.ops.soft_skeleton")  # its function has the same name

Ways = dict[str, Callable[[], Any]]

OURS, CPU, FLOOR = "GPU kernels", "through the CPU", "floor: copy of as many bytes"
SPACING = [1.0, 1.0, 1.0]
CONNECTIVITY = 26
ITERATIONS = 10
RADIUS = 2


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128], help="edges of the cubes in voxels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 14])
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


def variants(probs: Tensor, mask: Tensor) -> dict[str, Ways]:
    """Operator -> way of doing it -> function to time; the floor comes last."""
    return {**lesion_variants(probs, mask), **vessel_variants(probs, mask)}


def lesion_variants(probs: Tensor, mask: Tensor) -> dict[str, Ways]:
    """What losses that count lesions need."""
    cells = gpu.component_cells(mask, SPACING, CONNECTIVITY)
    grad = gpu.cell_overlap(probs, mask, cells)
    return {
        "component_labels": {
            OURS: lambda: gpu.component_labels(mask, CONNECTIVITY),
            CPU: lambda: _run.through_host(torch.ops.imbal.component_labels, mask, CONNECTIVITY),
            **with_cupy("label", mask, structure=np.ones((3, 3, 3))),
            FLOOR: copy_of(mask, cells),
        },
        "component_cells": {
            OURS: lambda: gpu.component_cells(mask, SPACING, CONNECTIVITY),
            CPU: lambda: _run.through_host(torch.ops.imbal.component_cells, mask, SPACING, CONNECTIVITY),
            FLOOR: copy_of(mask, cells),
        },
        "cell_overlap": {
            OURS: lambda: gpu.cell_overlap(probs, mask, cells),
            "torch index_add": lambda: overlap._overlap_by_index_add(probs, mask, cells),
            FLOOR: copy_of(probs, mask, cells),
        },
        "cell_overlap backward": {
            OURS: lambda: gpu.cell_overlap_backward(grad, mask, cells),
            "torch gather": lambda: overlap._overlap_backward_by_gather(grad, mask, cells),
            FLOOR: copy_of(mask, cells, probs),
        },
    }


def vessel_variants(probs: Tensor, mask: Tensor) -> dict[str, Ways]:
    """What losses that follow vessels need."""
    counts = torch.full(mask.shape[:2], ITERATIONS)
    labels = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device).view(1, -1, 1, 1, 1)).amax(1, keepdim=True)
    num_classes = mask.shape[1] + 1
    leaf = probs.clone().requires_grad_()
    return {
        "distance": {
            OURS: lambda: gpu.distance(mask, SPACING),
            CPU: lambda: _run.through_host(torch.ops.imbal.distance, mask, SPACING),
            **with_cupy("distance_transform_edt", mask),
            FLOOR: copy_of(mask, probs),
        },
        "local_thickness": {
            OURS: lambda: gpu.local_thickness(mask, SPACING),
            CPU: lambda: _run.through_host(torch.ops.imbal.local_thickness, mask, SPACING),
            FLOOR: copy_of(mask, probs),
        },
        "skeletonize": {
            OURS: lambda: gpu.skeletonize(mask),
            CPU: lambda: _run.through_host(torch.ops.imbal.skeletonize, mask),
            FLOOR: copy_of(mask, mask),
        },
        "skeletonize a label map": {
            OURS: lambda: gpu.skeletonize(labels),
            CPU: lambda: _run.through_host(torch.ops.imbal.skeletonize, labels),
            FLOOR: copy_of(labels, labels),
        },
        "tube": {
            OURS: lambda: gpu.tube(mask, RADIUS),
            CPU: lambda: _run.through_host(torch.ops.imbal.tube, mask, RADIUS),
            "torch max_pool3d": lambda: dilate(mask, RADIUS),
            FLOOR: copy_of(mask, mask),
        },
        "soft_skeleton": {
            OURS: lambda: gpu.soft_skeleton(probs, counts),
            CPU: lambda: _run.through_host(torch.ops.imbal.soft_skeleton, probs, counts),
            "torch max_pool3d": lambda: soft_skeleton._by_pooling(probs, counts),
            FLOOR: copy_of(probs, probs),
        },
        "soft_skeleton, forward and backward": {
            OURS: lambda: (gpu.soft_skeleton(probs, counts), gpu.soft_skeleton_backward(probs, probs, counts)),
            CPU: lambda: (
                _run.through_host(torch.ops.imbal.soft_skeleton, probs, counts),
                _run.through_host(torch.ops.imbal.soft_skeleton_backward, probs, probs, counts),
            ),
            "torch max_pool3d": lambda: torch.autograd.grad(soft_skeleton._by_pooling(leaf, counts), leaf, probs),
            FLOOR: copy_of(*[probs] * 5),
        },
        "class_contacts": {
            OURS: lambda: gpu.class_contacts(labels, num_classes, CONNECTIVITY),
            CPU: lambda: _run.through_host(torch.ops.imbal.class_contacts, labels, num_classes, CONNECTIVITY),
            "torch bincount": lambda: count_contacts(labels, num_classes),
            FLOOR: copy_of(labels),
        },
    }


def copy_of(*tensors: Tensor) -> Callable[[], Tensor]:
    """A copy that reads and writes as many bytes as these tensors have together."""
    volume = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    source = torch.empty(volume // 2, dtype=torch.uint8, device=tensors[0].device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def with_cupy(name: str, mask: Tensor, **options: Any) -> Ways:
    """The function of this name for images in CuPy, one item after the other, if CuPy is installed."""
    try:
        cupy, ndimage = importlib.import_module("cupy"), importlib.import_module("cupyx.scipy.ndimage")
    except ImportError:
        return {}
    items = [cupy.from_dlpack(item.to(torch.uint8)) for item in mask.flatten(0, 1)]
    settings = {key: cupy.asarray(value) for key, value in options.items()}
    return {f"CuPy {name}": lambda: [getattr(ndimage, name)(item, **settings) for item in items]}


def dilate(mask: Tensor, radius: int) -> Tensor:
    """A tube by pooling: one step along each axis at a time."""
    volume = mask.float()
    for _ in range(radius):
        lines = ((3, 1, 1), (1, 3, 1), (1, 1, 3))
        volume = torch.stack([max_pool3d(volume, line, 1, tuple(n // 2 for n in line)) for line in lines]).amax(0)
    return volume > 0


def count_contacts(labels: Tensor, num_classes: int) -> Tensor:
    """Contacts by comparing each label map with its 13 shifted copies."""
    contacts = torch.zeros(labels.shape[0], num_classes**2, dtype=torch.int64, device=labels.device)
    for z, y, x in product((-1, 0, 1), repeat=3):
        if (z, y, x) > (0, 0, 0):
            pairs = crop(labels, -z, -y, -x) * num_classes + crop(labels, z, y, x)
            for item, codes in enumerate(pairs.flatten(1)):
                contacts[item] += torch.bincount(codes, minlength=num_classes**2)
    square = contacts.view(-1, num_classes, num_classes)
    return (square + square.mT) * (1 - torch.eye(num_classes, dtype=torch.int64, device=labels.device))


def crop(labels: Tensor, z: int, y: int, x: int) -> Tensor:
    """The voxels that have a neighbour at minus this step."""
    for axis, step in zip((2, 3, 4), (z, y, x), strict=True):
        labels = labels.narrow(axis, max(step, 0), labels.shape[axis] - abs(step))
    return labels


def measure(ways: Ways, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each way, in turns, with the clock waiting for the GPU; none for a way without enough memory."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    tired = set()
    for repeat in range(repeats + 3):
        for name, way in ways.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            try:
                if name not in tired:
                    way()
            except torch.OutOfMemoryError:
                tired.add(name)
            torch.cuda.synchronize()
            if repeat >= 3 and name not in tired:  # compilation and memory come first
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| operator | volume | classes | way | median ms | quartiles |", "|---|---|---|---|---|---|"]
    for row in rows:
        what = f"| {row['operator']} | {row['size']}³ | {row['classes']} | {row['way']} |"
        if row["milliseconds"]:
            low, middle, high = np.quantile(row["milliseconds"], [0.25, 0.5, 0.75])
            lines.append(f"{what} {middle:.2f} | {low:.2f} to {high:.2f} |")
        else:
            lines.append(f"{what} out of memory | |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    options = parse_arguments(words)
    if not torch.cuda.is_available():
        raise SystemExit("bench_cuda.py needs an NVIDIA GPU that torch can use; torch sees none here")
    for operator in sorted(set(gpu.__all__) - {"TorchDevice", "find_obstacle"}):
        if obstacle := gpu.find_obstacle(operator, options.device):
            raise SystemExit(f"the GPU kernels do not run here: {obstacle}")
    rows = []
    for size, classes in product(options.size, options.classes):
        probs, mask = (each.to(options.device) for each in make_batch(options.batch, classes, size))
        for operator, ways in variants(probs, mask).items():
            for way, times in measure(ways, options.repeats).items():
                rows.append({"operator": operator, "size": size, "classes": classes, "way": way, "milliseconds": times})
    machine = describe_machine(options.device)
    print("\n".join([*machine_lines(machine), f"- batch {options.batch}", "", table(rows)]))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
