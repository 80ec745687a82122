"""The page about the kernels, from the numbers that bench_kernels.py keeps."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _machine import machine_lines

__all__ = ["page"]

TRIED = Path(__file__).with_name("kernels_tried.md")

Result = dict[str, Any]


def page(result: Result) -> str:
    """Markdown of docs/benchmarks.md."""
    settings = result["settings"]
    sizes = " and ".join(f"{n}³" for n in settings["sizes"])
    return "\n".join(
        [
            "# Benchmarks of the CPU kernels",
            "",
            "Made by `python benchmarks/bench_kernels.py` (`pip install nnunet-imbal[bench]` brings the peers);",
            "do not edit. Other measurements: [benchmarks/README.md](../benchmarks/README.md).",
            "",
            f"Cubes of {sizes} voxels, one thread, milliseconds of process CPU time. All candidates of a row take",
            f"turns; the median of {settings['rounds']} rounds counts, of {settings['few_rounds']} where a round takes",
            f"more than {settings['slow_ms'] / 1000:g} s. Everybody allocates the output inside the timing. Answers",
            "are compared before the clock starts. Loops over all components run for three of them, and their time",
            "is multiplied (≈). Whoever takes less than that runs twice at each turn; the first time counts, unless a",
            "column says *in a row*: then memory comes back that was used just before. CC-Metrics, blob loss and",
            "Skeleton Recall are our own plain restatements of the published algorithms.",
            "",
            *machine_lines(result["machine"]),
            *_loads(result["rows"]),
            "- peers: " + ", ".join(f"{name} {number}" for name, number in result["peers"].items()),
            "",
            "## Targets",
            "",
            "How many times faster than the peer we want to be, and are.",
            "",
            *_targets(result["rows"]),
            "",
            *_memory(result["memory"]),
            "## All measurements",
            "",
            "Median [quartiles]; in brackets peer / ours: above 1 we are faster.",
            "",
            *_jobs(result["rows"]),
            *_threads(result["threads"]),
            *_patients(result["patients"]),
            "## Where we lose",
            "",
            *(_losses(result["rows"]) or ["Nowhere in this run."]),
            "",
            TRIED.read_text(encoding="utf-8").rstrip(),
            "",
        ]
    )


def _loads(rows: list[Result]) -> list[str]:
    """What else the machine did, as far as rows tell."""
    loads = [row["load_average"] for row in rows if row.get("load_average") is not None]
    if not loads:
        return []
    return [f"- load average of one minute after {len(loads)} of {len(rows)} rows: {min(loads):g} to {max(loads):g}"]


def _median(row: Result, name: str) -> float:
    """Milliseconds of the whole job, also where only a part was run."""
    return statistics.median(row["milliseconds"][name]) * row["times"].get(name, 1)


def _ratio(row: Result, name: str) -> float:
    return _median(row, name) / _median(row, "ours")


def _ratio_in_a_row(row: Result, name: str) -> str:
    again = row.get("milliseconds_again", {})
    if name not in again or "ours" not in again:
        return "-"
    theirs = statistics.median(again[name]) * row["times"].get(name, 1)
    return f"{theirs / statistics.median(again['ours']):.3g}x"


def _peers(row: Result) -> list[str]:
    return [name for name in row["milliseconds"] if name != "ours"]


def _targets(rows: list[Result]) -> Iterator[str]:
    yield "| job | input | voxels | peer | at least | reached | met | in a row |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        for name, target in row["targets"].items():
            reached = _ratio(row, name)
            met = "yes" if reached >= target else "**no**"
            cells = [row["job"], row["input"], f"{row['size']}³", name, f"{target:g}x", f"{reached:.3g}x", met]
            yield f"| {' | '.join([*cells, _ratio_in_a_row(row, name)])} |"


def _memory(memory: Result | None) -> list[str]:
    if memory is None:
        return []
    ours, monai = (max(memory["bytes"][name], 1) for name in ("ours", "MONAI"))
    reached = monai / ours
    met = "yes" if reached >= memory["target"] else "**no**"
    return [
        f"Memory of the soft skeleton, forward and backward, {memory['iterations']} iterations, {memory['size']}³:",
        f"ours {ours / 1e6:.0f} MB, MONAI {monai / 1e6:.0f} MB, {reached:.3g}x less "
        f"(at least {memory['target']}x: {met}).",
        "",
    ]


def _jobs(rows: list[Result]) -> Iterator[str]:
    for job in dict.fromkeys(row["job"] for row in rows):
        own = [row for row in rows if row["job"] == job]
        peers = list(dict.fromkeys(name for row in own for name in _peers(row)))
        yield f"### {job[0].upper()}{job[1:]}"
        yield ""
        yield "| input | voxels | ours | " + " | ".join(peers) + " |"
        yield "|---" * (len(peers) + 3) + "|"
        for row in own:
            cells = [_cell(row, name) for name in ("ours", *peers)]
            yield f"| {row['input']} | {row['size']}³ | " + " | ".join(cells) + " |"
        yield ""
        for note in dict.fromkeys(row["note"] for row in own if row["note"]):
            yield f"{note[0].upper()}{note[1:]}."
            yield ""


def _cell(row: Result, name: str) -> str:
    if name not in row["milliseconds"]:
        return "-"
    times = row["times"].get(name, 1)
    low, _, high = statistics.quantiles(row["milliseconds"][name], n=4, method="inclusive")
    ratio = "" if name == "ours" else f" ({_ratio(row, name):.3g}x)"
    about = "≈ " if times != 1 else ""
    return f"{about}{_median(row, name):.3g} [{low * times:.3g}, {high * times:.3g}]{ratio}"


def _threads(rows: list[Result]) -> Iterator[str]:
    yield "## Two threads"
    yield ""
    yield "Our thread pool over the items of a batch (samples x classes); wall time, because CPU time does not shrink."
    yield ""
    yield "| operator | items | one thread | two threads | faster |"
    yield "|---|---|---|---|---|"
    for row in rows:
        one, two = (statistics.median(row["milliseconds"][threads]) for threads in ("1", "2"))
        yield f"| {row['operator']} | {row['items']} of {row['size']}³ | {one:.3g} | {two:.3g} | {one / two:.2f}x |"
    yield ""


def _patients(counts: Result | None) -> Iterator[str]:
    if counts is not None:
        yield "## Lesions that lose their skeleton"
        yield ""
        yield (
            f"Masks of {counts['patients']} patients with multiple sclerosis (open_ms_data), {counts['lesions']} "
            f"lesions (26 neighbours): scikit-image's skeleton has {counts['skimage']} pieces, ours {counts['ours']}."
        )
        yield ""


def _losses(rows: list[Result]) -> list[str]:
    return [
        f"- {row['job']}, {row['input']}, {row['size']}³: {name} takes {_ratio(row, name):.2f} of our time"
        for row in rows
        for name in _peers(row)
        if _ratio(row, name) < 1
    ]
