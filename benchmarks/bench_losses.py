"""What does a loss that counts lesions cost on the CPU, beside nnU-Net's Dice + CE and beside the published loops?

Forward and backward, lesions and cells found anew in every call. The unit is nnU-Net's own DC_and_CE_loss. The three
peers are plain restatements of published algorithms, not their code; they run one class against the rest:

- blob loss, released form: for each lesion a masked copy of all logits, then Dice and binary cross-entropy of it;
- CC-DiceCE, first public form: for each lesion Dice and cross-entropy of its cell, masked out of the whole patch;
- CC-DiceCE, later public form: five sums per cell by scatter_add in float32.

All candidates take turns, process CPU time of one thread counts, the median is reported. The loops run for one
and for four lesions of each class, and the rest is extrapolated (marked with a tilde).
"""

import argparse
import gc
import json
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"

import torch  # noqa: E402  the number of threads is read at import
from _machine import describe_machine, machine_lines  # noqa: E402
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss  # noqa: E402
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss  # noqa: E402
from nnunetv2.utilities.helpers import softmax_helper_dim1  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from nnunet_imbal import build_loss, list_losses  # noqa: E402
from nnunet_imbal.ops import component_cells, component_labels  # noqa: E402

UNIT = "nnU-Net Dice + CE"
FEW = ("cc_dice", "cc_ce", "cc_dice_ce", "blob_dice")
ALL = (*FEW, "blob_ce", "instance_ce", "inverse_size_ce", "inverse_size_dice", "cat_tversky", "lesion_mil")
PEERS = ("CC-DiceCE, scatter", "~ CC-DiceCE, loop", "~ blob loss, loop")
BRAIN, CUBE, SMALL = (128, 160, 112), (128, 128, 128), (48, 48, 48)
# patch, channels, lesions per sample, losses, whether peers take part
SETTINGS = tuple(
    (patch, channels, lesions, ALL if lesions == 64 else FEW, channels == 3 and lesions in (16, 64))
    for patch in (BRAIN, CUBE)
    for channels in (3, 14)
    for lesions in (1, 16, 64, 200)
)
QUICK = ((SMALL, 3, 16, ALL, True),)
RESULT = Path(__file__).with_name("results") / "losses.json"

Loss = Callable[[Tensor, Tensor], Tensor]


def lesion_labels(patch: Sequence[int], channels: int, lesions: int, batch: int = 2) -> Tensor:
    """Boxes of 1 to 6 voxels a side, none touching another, their classes in turn."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(batch, 1, *patch, dtype=torch.uint8)
    sites = torch.cartesian_prod(*(torch.arange(1, n - 8, 8) for n in patch))
    for sample in labels[:, 0]:
        chosen = sites[torch.randperm(len(sites), generator=generator)[:lesions]]
        for k, place in enumerate(chosen.tolist()):
            sides = torch.randint(1, 7, (3,), generator=generator).tolist()
            sample[tuple(slice(a, a + s) for a, s in zip(place, sides, strict=True))] = 1 + k % (channels - 1)
    return labels


def nnunet_loss() -> Loss:
    """nnU-Net's default for exclusive labels."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    assert loss.dc.apply_nonlin is softmax_helper_dim1
    return loss


def _one_vs_rest(logits: Tensor, labels: Tensor):
    """(sample, class) by (sample, class): logits (2, *S) of rest and class, truth (*S)."""
    for sample, truth in zip(logits, labels[:, 0], strict=True):
        for c in range(1, logits.shape[1]):
            if (truth == c).any():
                rest = torch.cat([sample[:c], sample[c + 1 :]]).logsumexp(0)
                yield torch.stack([rest, sample[c]]), truth == c


def blob_loop(logits: Tensor, labels: Tensor, most: int | None = None) -> Tensor:
    """blob loss, released form; ``most`` stops after so many lesions of each class."""
    values = []
    for pair, truth in _one_vs_rest(logits, labels):
        odds = pair[1] - pair[0]
        ids = component_labels(truth[None, None])[0, 0]
        for k in range(1, min(int(ids.max()), most or 10**9) + 1):
            mine = ids == k
            seen = odds * (mine | (ids == 0))
            p, y = torch.sigmoid(seen), mine.float()
            dice = 1 - (2 * (p * y).sum() + 1e-5) / (p.sum() + y.sum() + 1e-5)
            values.append(dice + F.binary_cross_entropy_with_logits(seen, y))
    return torch.stack(values).mean()


def cc_loop(logits: Tensor, labels: Tensor, most: int | None = None) -> Tensor:
    """CC-DiceCE, first public form."""
    values = []
    for pair, truth in _one_vs_rest(logits, labels):
        probs = torch.softmax(pair, 0)
        cells = component_cells(truth[None, None])[0, 0]
        for k in range(1, min(int(cells.max()), most or 10**9) + 1):
            cell = cells == k
            p, y = probs[1] * cell, (truth & cell).float()
            right = torch.where(truth, probs[1], probs[0])
            entropy = -(right.clamp(min=1e-7).log() * cell).sum() / cell.sum()
            values.append(1 - 2 * (p * y).sum() / (p.sum() + y.sum()).clamp(min=1e-7) + entropy)
    return torch.stack(values).mean()


def cc_scatter(logits: Tensor, labels: Tensor) -> Tensor:
    """CC-DiceCE, later public form."""
    values = []
    for pair, truth in _one_vs_rest(logits, labels):
        probs = torch.softmax(pair, 0)
        cells = component_cells(truth[None, None]).flatten().long()
        p, y = probs[1].flatten(), truth.flatten().float()
        right = torch.where(truth, probs[1], probs[0]).flatten()
        quantities = (p * y, p, y, -right.clamp(min=1e-7).log(), torch.ones_like(p))
        bins = p.new_zeros(int(cells.max()) + 1)
        hit, mass, size, entropy, count = (bins.scatter_add(0, cells, q)[1:] for q in quantities)
        values.append((1 - 2 * hit / (mass + size).clamp(min=1e-7) + entropy / count).mean())
    return torch.stack(values).mean()


def cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def step(loss: Loss, logits: Tensor, labels: Tensor) -> Callable[[], None]:
    def run() -> None:
        logits.grad = None
        loss(logits, labels).backward()

    return run


def measure(setting: tuple[Any, ...], rounds: int) -> dict[str, Any]:
    """Seconds of each candidate: medians over interleaved rounds after one to warm up."""
    patch, channels, lesions, names, with_peers = setting
    labels = lesion_labels(patch, channels, lesions)
    logits = torch.randn(2, channels, *patch, generator=torch.Generator().manual_seed(1)).requires_grad_()
    runs = {UNIT: step(nnunet_loss(), logits, labels)}
    runs |= {name: step(build_loss(name, softmax=True, to_onehot_y=True), logits, labels) for name in names}
    if with_peers:
        runs["CC-DiceCE, scatter"] = step(cc_scatter, logits, labels)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            seconds = cpu_seconds(run)
            if turn:
                times[name].append(seconds)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    if with_peers:
        seconds |= loops(logits, labels)
    spread = {name: [min(values), max(values)] for name, values in times.items()}
    print(patch, channels, lesions, {k: round(v, 3) for k, v in seconds.items()}, flush=True)
    return {"patch": patch, "channels": channels, "lesions": lesions, "seconds": seconds, "range": spread}


def loops(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Seconds of the loops over all lesions, from their first lesion and their first four of each class."""
    pairs = [component_labels((labels == c).view(2, 1, *labels.shape[2:])).flatten(1).amax(1) for c in (1, 2)]
    lesions, problems = int(torch.stack(pairs).sum()), 4  # two samples of two classes
    result = {}
    for name, loop in (("~ blob loss, loop", blob_loop), ("~ CC-DiceCE, loop", cc_loop)):
        one, four = (
            statistics.median(
                cpu_seconds(step(lambda z, y, most=most, loop=loop: loop(z, y, most), logits, labels)) for _ in range(3)
            )
            for most in (1, 4)
        )
        each = (four - one) / (3 * problems)
        result[name] = one + each * (lesions - problems)
    return result


def memory() -> dict[str, float]:
    """Peak of extra memory in multiples of the logits, NumPy's included; 16 lesions, 96³ voxels."""
    labels = lesion_labels((96, 96, 96), 3, 16)
    logits = torch.randn(2, 3, 96, 96, 96).requires_grad_()
    losses: dict[str, Loss] = {UNIT: nnunet_loss()}
    losses |= {name: build_loss(name, softmax=True, to_onehot_y=True) for name in ALL}
    losses |= {"CC-DiceCE, scatter": cc_scatter, "blob loss, loop": blob_loop, "CC-DiceCE, loop": cc_loop}
    peak_bytes(losses[UNIT], logits, labels)  # the profiler's first run counts what it imports itself
    return {name: peak_bytes(loss, logits, labels) / (4 * logits.numel()) for name, loss in losses.items()}


def peak_bytes(loss: Loss, logits: Tensor, labels: Tensor) -> int:
    """Torch's and NumPy's highest marks of one call, added: an upper bound."""
    run = step(loss, logits, labels)
    run()
    logits.grad = None  # else it would be freed inside the measurement and hide as much of what is taken there
    gc.collect()
    tracemalloc.start()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    of_numpy = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak + of_numpy


def markdown(result: dict[str, Any]) -> str:
    """Page of the results."""
    patches = dict.fromkeys((tuple(row["patch"]), row["channels"]) for row in result["rows"])
    return "\n".join(
        [
            "# Losses that count lesions: time and memory",
            "",
            "Made by `python benchmarks/bench_losses.py`; do not edit. Seconds of process CPU time for forward and",
            "backward, two samples, K lesions in each, one thread; in brackets the multiple of nnU-Net's Dice + CE.",
            "Finding the lesions (and cells) is included. Peers are our own plain restatements of published",
            "algorithms; a loop marked ~ ran for few lesions and was extrapolated.",
            "",
            *(line for patch, channels in patches for line in _times(result["rows"], patch, channels)),
            "## Memory",
            "",
            "Peak of what a call allocates, in multiples of the logits, 16 lesions in 96³ voxels, 3 channels.",
            "",
            "| loss | memory |",
            "|---|---|",
            *(f"| {name} | {times:.1f} |" for name, times in result["memory"].items()),
            "",
            "## How it was measured",
            "",
            f"- median of {result['rounds']} interleaved rounds after one to warm up; of three for the loops",
            *machine_lines(result["machine"]),
            "",
            "## Against our own bars",
            "",
            *verdicts(result),
            "",
        ]
    )


def _times(rows: Sequence[dict[str, Any]], patch: Sequence[int], channels: int) -> list[str]:
    """One table: losses by number of lesions."""
    chosen = [row for row in rows if tuple(row["patch"]) == tuple(patch) and row["channels"] == channels]
    lines = [
        f"## {_patch(chosen[0])} voxels, {channels} channels",
        "",
        "| loss | " + " | ".join(f"K = {row['lesions']}" for row in chosen) + " |",
        "|---" * (len(chosen) + 1) + "|",
    ]
    for name in (UNIT, *ALL, *PEERS):
        if any(name in row["seconds"] for row in chosen):
            lines.append(f"| {name} | " + " | ".join(_cell(row["seconds"], name) for row in chosen) + " |")
    return [*lines, ""]


def _patch(row: dict[str, Any]) -> str:
    return " x ".join(map(str, row["patch"]))


def _cell(seconds: dict[str, float], name: str) -> str:
    if name not in seconds:
        return ""
    return f"{seconds[name]:.3g} ({seconds[name] / seconds[UNIT]:.2g}x)"


def verdicts(result: dict[str, Any]) -> list[str]:
    """Whether each bar is met, with the number."""
    ratios = {
        (name, _patch(r), r["channels"], r["lesions"]): r["seconds"][name] / r["seconds"][UNIT]
        for r in result["rows"]
        for name in r["seconds"]
        if name in ALL
    }
    (worst, patch, channels, lesions), ratio = max(ratios.items(), key=lambda item: item[1])
    lines = [
        f"- at most 2x nnU-Net's Dice + CE: {'met' if ratio <= 2 else 'missed'}; the dearest is {worst} with "
        f"{ratio:.2f}x ({patch}, {channels} channels, K = {lesions})"
    ]
    for row in result["rows"]:
        seconds = row["seconds"]
        for ours, loop in (("cc_dice_ce", "~ CC-DiceCE, loop"), ("blob_dice", "~ blob loss, loop")):
            if loop in seconds and row["lesions"] >= 64:
                gain = seconds[loop] / seconds[ours]
                lines.append(
                    f"- at least 50x faster than the loop at K = {row['lesions']}, {_patch(row)}: "
                    f"{'met' if gain >= 50 else 'missed'}; {ours} {gain:.0f}x"
                )
    return lines


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small patch only, to see it run")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON to write, Markdown beside it")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    assert set(ALL) <= set(list_losses())
    result = {"machine": describe_machine(), "rounds": arguments.rounds, "memory": memory(), "rows": []}
    for setting in QUICK if arguments.quick else SETTINGS:
        result["rows"].append(measure(setting, arguments.rounds))
        write(result, arguments.output, markdown(result))


def write(result: dict[str, Any], output: Path, page: str) -> None:
    """Both files, atomically."""
    for path, text in ((output, json.dumps(result, indent=1) + "\n"), (output.with_suffix(".md"), page)):
        temporary = path.with_suffix(path.suffix + ".part")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


if __name__ == "__main__":
    main()
