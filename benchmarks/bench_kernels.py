"""How long do the CPU kernels take beside cc3d, edt, scipy, scikit-image, SimpleITK, MONAI and plain loops?

One thread; all candidates of a row take turns (A, B, A, B, ...) and process CPU time counts, so that what else the
machine does hits all alike. Whoever is quick runs twice at each turn: the first time in memory that others used before,
the second time in memory that it just gave back. The first one counts for the targets. Keeps the numbers in
benchmarks/results/kernels-<processor>.json and writes docs/benchmarks.md from them. Peers: pip install
"nnunet-imbal[bench]".
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(variable, "1")

import _kernel_inputs as inputs  # noqa: E402  the number of threads is read at import
import numba  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from _kernel_page import page  # noqa: E402
from _kernel_rows import Row, other_rows, target_rows  # noqa: E402
from _machine import describe_machine  # noqa: E402

import numba_kernels  # noqa: E402
from nnunet_imbal.ops import _run, cell_overlap, component_cells, component_labels  # noqa: E402

PEERS = ("connected-components-3d", "edt", "scipy", "scikit-image", "SimpleITK", "monai", "torch")
SLOW_MS = 500.0  # a candidate that takes longer runs in fewer rounds
FEW_ROUNDS = 3
FOLDER = Path(__file__).parents[1]

Result = dict[str, Any]
Times = dict[str, list[float]]


def process_milliseconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def wall_milliseconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def take_turns(
    candidates: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[Callable[[], Any]], float]
) -> tuple[Times, Times]:
    """Milliseconds of each candidate in each round, the first and the second time in a row.

    A round before all others warms up and shows who is slow; the slow ones do not run a second time.
    """
    warm = {name: clock(run) for name, run in candidates.items()}
    first: Times = {name: [] for name in candidates}
    again: Times = {name: [] for name in candidates if warm[name] < SLOW_MS}
    for turn in range(rounds):
        for name, run in candidates.items():
            if turn < FEW_ROUNDS or name in again:
                first[name].append(clock(run))
            if name in again:
                again[name].append(clock(run))
    return first, again


def load_average() -> float | None:
    """Processes that wanted to run in the last minute: what the caches were shared with."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def measure(row: Row, size: int, rounds: int) -> Result:
    candidates = {"ours": row.ours, **{name: peer.run for name, peer in row.peers.items()}}
    first, again = take_turns(candidates, rounds, process_milliseconds)
    return {
        "job": row.job,
        "input": row.input,
        "size": size,
        "note": row.note,
        "targets": {name: peer.target for name, peer in row.peers.items() if peer.target is not None},
        "times": {name: peer.times for name, peer in row.peers.items() if peer.times != 1},
        "milliseconds": first,
        "milliseconds_again": again,
        "load_average": load_average(),
    }


def measure_threads(size: int, rounds: int) -> list[Result]:
    """The operators on a batch of 2 samples x 4 classes, with one thread and with two."""
    volumes = np.stack([inputs.lesions(size, seed=seed) for seed in range(8)]).reshape(2, 4, size, size, size)
    masks = torch.from_numpy(volumes > 0)
    probs, cells = torch.rand(masks.shape), component_cells(masks)
    items = [volume > 0 for volume in volumes.reshape(8, size, size, size)]
    work: dict[str, Callable[[], Any]] = {
        "component_labels": lambda: component_labels(masks),
        "component_cells": lambda: component_cells(masks),
        "cell_overlap": lambda: cell_overlap(probs, masks, cells),
        "skeletonize": lambda: _run.for_each(lambda i: numba_kernels.skeletonize(items[i]), range(8)),
    }
    results = []
    for name, run in work.items():
        candidates = {str(threads): _with_threads(run, threads) for threads in (1, 2)}
        times, _ = take_turns(candidates, rounds, wall_milliseconds)
        results.append({"operator": name, "items": len(items), "size": size, "milliseconds": times})
    return results


def _with_threads(run: Callable[[], Any], threads: int) -> Callable[[], Any]:
    def limited() -> None:
        before = numba.config.NUMBA_NUM_THREADS
        numba.config.NUMBA_NUM_THREADS = threads
        try:
            run()
        finally:
            numba.config.NUMBA_NUM_THREADS = before

    return limited


def measure_memory(size: int, iterations: int) -> Result | None:
    """Peak memory of the soft skeleton in a process of its own; only Linux tells it."""
    if not Path("/proc/self/clear_refs").is_file():
        return None
    used = {}
    for name in ("ours", "MONAI"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            used[name] = pool.submit(soft_skeleton_memory, name, size, iterations).result()
    return {"size": size, "iterations": iterations, "target": 20, "bytes": used}


def soft_skeleton_memory(name: str, size: int, iterations: int) -> int:
    """Bytes that forward and backward add to what the process holds before."""
    from monai.losses.cldice import soft_skel

    def run(probs: np.ndarray[Any, np.dtype[np.float32]], steps: int) -> None:
        if name == "MONAI":
            tensor = torch.from_numpy(probs)[None, None].requires_grad_()
            soft_skel(tensor, steps).sum().backward()
        else:
            numba_kernels.soft_skeleton(probs, steps)
            numba_kernels.soft_skeleton_backward(np.ones_like(probs), probs, steps)

    run(np.zeros((4, 4, 4), np.float32), 1)
    probs = np.random.default_rng(0).random((size,) * 3, np.float32)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _status_bytes("VmRSS")
    run(probs, iterations)
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return 1024 * int(found[1])


def count_skeletons(folder: Path) -> Result:
    """Lesions of real patients, and the pieces that their skeletons have."""
    import SimpleITK as sitk
    from skimage import morphology

    counts = {"patients": 0, "lesions": 0, "skimage": 0, "ours": 0}
    for path in sorted(folder.glob("patient*_gold.nii.gz")):
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0.5
        skeletons = {"skimage": morphology.skeletonize(mask, method="lee"), "ours": numba_kernels.skeletonize(mask)}
        counts["patients"] += 1
        for name, volume in {"lesions": mask, **skeletons}.items():
            counts[name] += numba_kernels.connected_components(volume)[1]
    return counts


def processor_slug(machine: Result) -> str:
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", str(machine["processor"]).lower()))
    return "-".join(words)


def run_benchmark(options: argparse.Namespace) -> Result:
    torch.set_num_threads(1)
    result: Result = {
        "machine": describe_machine(),
        "peers": {name: version(name) for name in PEERS},
        "settings": {
            "sizes": options.size,
            "rounds": options.rounds,
            "few_rounds": min(FEW_ROUNDS, options.rounds),
            "slow_ms": SLOW_MS,
        },
        **{"rows": [], "threads": [], "memory": None, "patients": None},
    }
    for size in options.size:
        _measure_all(target_rows(size), size, options, result)
    _measure_all(other_rows(options.size[0]), options.size[0], options, result)
    result["threads"] = measure_threads(options.size[0], options.rounds)
    result["memory"] = measure_memory(options.memory_size, iterations=50)
    result["patients"] = count_skeletons(options.data) if options.data else None
    write_results(result, options.output)
    return result


def _measure_all(rows: Iterator[Row], size: int, options: argparse.Namespace, result: Result) -> None:
    for row in rows:
        if options.only in f"{row.job}, {row.input}":
            result["rows"].append(measure(row, size, options.rounds))
            print(_line(result["rows"][-1]), flush=True)
    write_results(result, options.output)


def write_results(result: Result, folder: Path) -> None:
    """Write numbers and page; called after every part, so that an interrupted run loses little."""
    name = f"kernels-{processor_slug(result['machine'])}.json"
    write(folder / "benchmarks" / "results" / name, json.dumps(result, indent=1) + "\n")
    write(folder / "docs" / "benchmarks.md", page(result))


def _line(row: Result) -> str:
    medians = {
        name: statistics.median(times) * row["times"].get(name, 1) for name, times in row["milliseconds"].items()
    }
    ours = medians["ours"]
    ratios = ", ".join(f"{name} {value / ours:.3g}x" for name, value in medians.items() if name != "ours")
    return f"{row['size']}³ {row['job']}, {row['input']}: {ours:.3g} ms; {ratios}"


def write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[128, 192],
        help="voxels along each axis; targets at each size, all else at the first",
    )
    parser.add_argument("--rounds", type=int, default=9, help="times that each candidate runs (default: 9)")
    parser.add_argument("--only", default="", help="only rows whose job or input holds this text")
    parser.add_argument("--data", type=Path, help="folder with patient*_gold.nii.gz of open_ms_data")
    parser.add_argument("--quick", action="store_true", help="tiny volumes, two rounds: shows that all runs, no more")
    parser.add_argument("--output", type=Path, default=FOLDER, help="checkout to write into (default: this one)")
    options = parser.parse_args(words)
    options.memory_size = 64
    if options.quick:
        options.size, options.rounds, options.memory_size = [32], 2, 16
    return options


def main(words: Sequence[str] | None = None) -> None:
    run_benchmark(parse_arguments(words))


if __name__ == "__main__":
    main()
