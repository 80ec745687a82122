"""How long do the CPU kernels take beside scipy, scikit-image, cc3d, SimpleITK, edt and MONAI, on one thread?

All candidates of one row take turns (A, B, A, B, ...) and process CPU time counts, so that what else the machine does
hits all alike. Every table gives the ratio peer / ours: above 1 we are faster, below 1 we lose. Answers are compared
before the clock starts. Peers that are not installed are left out.
"""

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402  the number of threads is read at import
from _machine import describe_machine, machine_lines  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from scipy import ndimage  # noqa: E402

import numba_kernels  # noqa: E402

PEERS = {
    "scipy": "scipy",
    "skimage": "scikit-image",
    "cc3d": "connected-components-3d",
    "SimpleITK": "SimpleITK",
    "edt": "edt",
    "monai": "monai",
}
ANISOTROPIC = (3.0, 0.8, 0.8)
UNEVEN = (3.0, 0.79, 0.8512)  # no whole multiples of one length

Candidates = dict[str, Callable[[], Any]]
RESULT = Path(__file__).with_name("results") / "kernels_cpu.md"


def has(peer: str) -> bool:
    return importlib.util.find_spec(peer) is not None


def vessel(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Three random walks that branch, thinner with every branch: about 2 % of the volume."""
    rng = np.random.default_rng(seed)
    distance_to = np.ones((n, n, n), bool)
    radii = np.zeros((n, n, n), np.float32)
    branches = [(rng.uniform(0.3, 0.7, 3) * n * (0, 1, 1), np.array([1.0, 0, 0]), n / 25, 0) for _ in range(3)]
    while branches:
        place, direction, radius, depth = branches.pop()
        for _ in range(int(n * 0.3 * 0.85**depth)):
            direction = direction + rng.normal(0, 0.1, 3)
            direction /= np.linalg.norm(direction)
            place = place + direction
            voxel = tuple(np.round(place).astype(int))
            if not all(0 <= v < n for v in voxel):
                break
            distance_to[voxel], radii[voxel] = False, max(radii[voxel], radius)
        else:
            if depth < 6:
                branches += [(place, direction + rng.normal(0, 0.6, 3), max(radius * 0.75, 1), depth + 1)] * 2
    distance, nearest = ndimage.distance_transform_edt(distance_to, return_indices=True)
    return (distance <= radii[tuple(nearest)]).astype(np.uint8)


def lesions(n: int, count: int = 200, seed: int = 1) -> NDArray[np.uint8]:
    """Ellipsoids of log-normal size: about 1 % of the volume."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((n, n, n), np.uint8)
    for _ in range(count):
        centre = rng.uniform(0, n, 3)
        radius = np.clip(rng.lognormal(np.log(n / 50), 0.45, 3), 1, n / 12)
        box = tuple(slice(max(int(c - r), 0), int(c + r) + 2) for c, r in zip(centre, radius, strict=True))
        grid = np.ogrid[box]
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) <= 1
        mask[box] |= inside[: mask[box].shape[0], : mask[box].shape[1], : mask[box].shape[2]]
    return mask


def noise(n: int, density: float, seed: int = 2) -> NDArray[np.uint8]:
    """White noise: the worst case for everything that counts pieces."""
    return (np.random.default_rng(seed).random((n, n, n)) < density).astype(np.uint8)


def smooth(n: int, sigma: float, seed: int) -> NDArray[np.float32]:
    field = np.random.default_rng(seed).standard_normal((n, n, n)).astype(np.float32)
    return ndimage.gaussian_filter(field, sigma, mode="wrap")


def blobs(n: int) -> NDArray[np.uint8]:
    """The highest fifth of a smooth random field."""
    field = smooth(n, 3, seed=3)
    return (field > np.quantile(field, 0.8)).astype(np.uint8)


def organs(n: int, classes: int = 15) -> NDArray[np.uint8]:
    """For each voxel the highest of smooth random fields; the background has an advantage."""
    fields = [smooth(n, n / 16, seed=10 + c) for c in range(classes)]
    scores = np.stack([field / field.std() + (1.5 if c == 0 else 0) for c, field in enumerate(fields)])
    return scores.argmax(axis=0).astype(np.uint8)


def masks(n: int) -> dict[str, NDArray[np.uint8]]:
    """``noise 31 %`` and ``noise 10 %`` lie where the 6- and 26-connected pieces just merge."""
    return {
        "vessel": vessel(n),
        "lesions": lesions(n),
        "blobs": blobs(n),
        "noise 31 %": noise(n, 0.312),
        "noise 10 %": noise(n, 0.098),
    }


def component_candidates(mask: NDArray[np.uint8], connectivity: int) -> Candidates:
    rank = {6: 1, 18: 2, 26: 3}[connectivity]
    structure = ndimage.generate_binary_structure(3, rank)
    candidates: Candidates = {"ours": lambda: numba_kernels.connected_components(mask, connectivity)}
    if has("cc3d"):
        import cc3d

        candidates["cc3d"] = lambda: cc3d.connected_components(
            mask, connectivity=connectivity, return_N=True, binary_image=True
        )
    candidates["scipy"] = lambda: ndimage.label(mask, structure)
    if has("skimage"):
        from skimage import measure

        candidates["skimage"] = lambda: measure.label(mask, connectivity=rank, return_num=True)
    if has("SimpleITK") and rank != 2:
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(mask)
        candidates["SimpleITK"] = lambda: sitk.ConnectedComponent(image, rank == 3)
    expected, count = ndimage.label(mask, structure)
    ours, our_count = candidates["ours"]()
    assert our_count == count
    assert np.array_equal(ours, expected)
    return candidates


def class_candidates(labels: NDArray[np.uint8], connectivity: int) -> Candidates:
    candidates: Candidates = {"ours": lambda: numba_kernels.connected_components(labels, connectivity)}
    structure = ndimage.generate_binary_structure(3, {6: 1, 26: 3}[connectivity])
    if has("cc3d"):
        import cc3d

        candidates["cc3d"] = lambda: cc3d.connected_components(labels, connectivity=connectivity, return_N=True)
        assert candidates["cc3d"]()[1] == candidates["ours"]()[1]
    if has("skimage"):
        from skimage import measure

        rank = {6: 1, 26: 3}[connectivity]
        candidates["skimage"] = lambda: measure.label(labels, connectivity=rank, return_num=True)
    candidates["scipy, each class"] = lambda: [
        ndimage.label(labels == c, structure) for c in range(1, int(labels.max()) + 1)
    ]
    return candidates


def stats_candidates(mask: NDArray[np.uint8]) -> Candidates:
    field = np.random.default_rng(0).random(mask.shape, np.float32)
    structure = np.ones((3, 3, 3))
    candidates: Candidates = {"ours": lambda: numba_kernels.component_stats(mask, fields=[field])}

    def scipy_sums() -> Any:
        components, count = ndimage.label(mask, structure)
        numbers = np.arange(1, count + 1)
        return np.bincount(components.ravel()), ndimage.sum_labels(field, components, numbers)

    assert np.allclose(candidates["ours"]().sums[0], scipy_sums()[1], rtol=1e-4)
    if has("cc3d"):
        import cc3d

        def cc3d_sums() -> Any:
            components = cc3d.connected_components(mask, connectivity=26)
            return cc3d.statistics(components), np.bincount(components.ravel(), field.ravel())

        candidates["cc3d + bincount"] = cc3d_sums
    candidates["scipy"] = scipy_sums
    return candidates


def largest_candidates(mask: NDArray[np.uint8]) -> Candidates:
    candidates: Candidates = {"ours": lambda: numba_kernels.largest_component(mask)}
    if has("cc3d"):
        import cc3d

        candidates["cc3d"] = lambda: cc3d.largest_k(mask, k=1, connectivity=26)
        assert np.array_equal(candidates["cc3d"]() > 0, candidates["ours"]())
    if has("monai"):
        import torch
        from monai.transforms.utils import get_largest_connected_component_mask

        tensor = torch.from_numpy(mask)
        candidates["MONAI"] = lambda: get_largest_connected_component_mask(tensor)
    return candidates


def small_candidates(mask: NDArray[np.uint8]) -> Candidates:
    candidates: Candidates = {"ours": lambda: numba_kernels.remove_small_components(mask, 20)}
    if has("cc3d"):
        import cc3d

        candidates["cc3d"] = lambda: cc3d.dust(mask, threshold=20, connectivity=26)
        assert np.array_equal(candidates["cc3d"]() > 0, candidates["ours"]())
    if has("skimage"):
        from skimage import morphology

        foreground = mask > 0
        candidates["skimage"] = lambda: morphology.remove_small_objects(foreground, max_size=19, connectivity=3)
    return candidates


def nearest_candidates(mask: NDArray[np.uint8], spacing: Sequence[float]) -> Candidates:
    labels = numba_kernels.connected_components(mask)[0]
    background = labels == 0

    def scipy_cells() -> Any:
        distance, index = ndimage.distance_transform_edt(background, sampling=spacing, return_indices=True)
        return labels[tuple(index)], distance

    candidates: Candidates = {
        "ours": lambda: numba_kernels.nearest_component(labels, spacing, return_distance=True),
        "ours, cells only": lambda: numba_kernels.nearest_component(labels, spacing),
        "ours, within 10 mm": lambda: numba_kernels.nearest_component(labels, spacing, max_distance=10),
        "scipy": scipy_cells,
        "scipy, distance only": lambda: ndimage.distance_transform_edt(background, sampling=spacing),
    }
    if has("SimpleITK"):
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(mask)
        image.SetSpacing(tuple(spacing)[::-1])
        candidates["SimpleITK, distance only"] = lambda: sitk.SignedMaurerDistanceMap(
            image, squaredDistance=False, useImageSpacing=True
        )
    if has("edt"):
        import edt

        candidates["edt, distance only"] = lambda: edt.edt(background, anisotropy=tuple(spacing), parallel=1)
    assert np.allclose(candidates["ours"]()[1], scipy_cells()[1], rtol=1e-5)
    return candidates


def measure(candidates: Candidates, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of process CPU time of each candidate in each round; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            if turn > 0:
                times[name].append(1e3 * (time.process_time() - start))
    return times


def cell(times: Sequence[float], ours: float) -> str:
    low, middle, high = statistics.quantiles(times, n=4)
    ratio = "" if middle == ours else f" ({middle / ours:.2g}x)"
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]{ratio}"


def table(title: str, rows: dict[str, Candidates], rounds: int) -> tuple[list[str], list[str]]:
    """Markdown lines of one table, and one line for each place where we lose."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"## {title}", "", "| input | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    losses = []
    for row, candidates in rows.items():
        times = measure(candidates, rounds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        cells = [cell(times[name], medians["ours"]) if name in times else "" for name in names]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
        peers = {name: value for name, value in medians.items() if not name.startswith("ours")}
        losses += [
            f"- {title}, {row}: {name} takes {value / medians['ours']:.2f} of our time"
            for name, value in peers.items()
            if value < medians["ours"]
        ]
        print(lines[-1], flush=True)
    return [*lines, ""], losses


def all_tables(n: int) -> dict[str, dict[str, Candidates]]:
    inputs, labels = masks(n), organs(n)
    few = {name: inputs[name] for name in ("vessel", "lesions", "noise 10 %")}
    return {
        "Connected components of a mask": {
            f"{name}, {connectivity} neighbours": component_candidates(mask, connectivity)
            for name, mask in inputs.items()
            for connectivity in (6, 26)
        },
        "Connected components of 14 classes at once": {
            f"organs, {connectivity} neighbours": class_candidates(labels, connectivity) for connectivity in (6, 26)
        },
        "Sizes, boxes, centroids and one sum for each component": {
            name: stats_candidates(inputs[name]) for name in ("lesions", "blobs")
        },
        "Largest component": {name: largest_candidates(inputs[name]) for name in ("lesions", "blobs")},
        "Components of 20 voxels and more": {name: small_candidates(inputs[name]) for name in ("lesions", "blobs")},
        "Nearest component and distance": {
            f"{name}, {' x '.join(map(str, spacing))} mm": nearest_candidates(mask, spacing)
            for name, mask in few.items()
            for spacing in ((1.0, 1.0, 1.0), ANISOTROPIC, UNEVEN)
        },
    }


def page(n: int, rounds: int) -> str:
    machine = describe_machine()
    versions = ", ".join(f"{name} {version(package)}" for name, package in PEERS.items() if has(name))
    lines, losses = [], []
    for title, rows in all_tables(n).items():
        more, lost = table(title, rows, rounds)
        lines += more
        losses += lost
    return "\n".join(
        [
            "# CPU kernels beside their peers",
            "",
            f"Made by `python benchmarks/bench_kernels.py --size {n} --rounds {rounds}`.",
            f"Volumes of {n} x {n} x {n} voxels (uint8), one thread each.",
            f"Milliseconds of process CPU time, median [quartiles] of {rounds} interleaved rounds.",
            "In brackets: peer / ours, so above 1x we are faster. Everybody allocates the output inside the timing.",
            "",
            *machine_lines(machine),
            f"- peers: {versions}",
            "",
            *lines,
            "## Where we lose",
            "",
            *(losses or ["Nowhere in this run."]),
            "",
        ]
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="voxels along each axis (default: 128)")
    parser.add_argument("--rounds", type=int, default=9, help="times that each candidate runs (default: 9)")
    parser.add_argument("--output", type=Path, default=RESULT, help="Markdown file to write (default: %(default)s)")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse_arguments()
    text = page(arguments.size, arguments.rounds)
    temporary = arguments.output.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(arguments.output)


if __name__ == "__main__":
    main()
