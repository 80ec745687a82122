"""What do SCDL and the label proportion add to a training iteration? Time of each beside one of stock nnU-Net.

Each round runs one iteration of nnU-Net (forward, loss, backward, optimiser), then each term on the features and
logits of that iteration: forward, and backward down to them, their gradient added to one that is there already.
Iterations take seconds on a CPU and differ by more than what a term costs, so a term is timed by itself. A mean teacher
makes the iteration longer by a forward pass and more, hence the shares smaller than here.

    python benchmarks/semi_cost.py --patch 64
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from _machine import describe_machine, machine_lines
from iteration_time import STOCK, lesion_labels, make_batch, make_trainer, vessel_labels
from torch import Tensor, nn

from nnunet_imbal.losses import SCDL, LabelProportion
from nnunet_imbal.semi import FeatureTap

LABELS = {"lesions": lesion_labels, "vessels": vessel_labels}
TARGETS = {"SCDL, balanced": 5.0, "SCDL, released": 5.0, "label proportion": 2.0}  # percent
RESULT = Path(__file__).with_name("results") / "semi_cost.json"


def make_terms(channels: int, classes: int) -> dict[str, nn.Module]:
    """The terms with their defaults."""
    torch.manual_seed(0)
    return {
        "SCDL, balanced": SCDL(channels, classes),
        "SCDL, released": SCDL(channels, classes, form="released"),
        "label proportion": LabelProportion(torch.rand(200, classes).softmax(1)),
    }


def run(term: nn.Module, features: Tensor, logits: Tensor, target: Tensor, mask: Tensor) -> None:
    """Forward and backward of a term, whichever it is."""
    loss = term(logits, mask) if isinstance(term, LabelProportion) else term(features, target, mask)
    loss.backward()


def measure(labels: str, patch: int, rounds: int, warm_up: int) -> dict[str, Any]:
    """Milliseconds of each part in each round; the second half of the batch is unlabelled."""
    maps = LABELS[labels](patch, 2)
    trainer = make_trainer(STOCK, maps, "cpu", 0)
    batch = make_batch(maps, trainer._get_deep_supervision_scales(), 0)
    target = batch["target"][0]
    mask = torch.ones_like(target)
    mask[1:] = 0
    layer = trainer.network.decoder.seg_layers[-1]
    tap, logits = FeatureTap(layer), []
    layer.register_forward_hook(lambda module, inputs, output: logits.append(output))
    terms = make_terms(layer.in_channels, layer.out_channels)
    times: dict[str, list[float]] = {name: [] for name in (STOCK, *terms)}
    for _ in range(warm_up + rounds):
        times[STOCK].append(milliseconds(partial(trainer.train_step, batch)))
        taken = [with_gradient(each) for each in (tap.take(), logits.pop())]
        for name, term in terms.items():
            times[name].append(milliseconds(partial(run, term, *taken, target, mask)))
    kept = {name: values[warm_up:] for name, values in times.items()}
    return {"labels": labels, "classes": layer.out_channels, "patch": patch, "ms": kept}


def with_gradient(values: Tensor) -> Tensor:
    """A leaf of these values that has a gradient already, as features and logits have from the network's own loss."""
    leaf = values.detach().clone().requires_grad_()
    leaf.grad = torch.zeros_like(leaf)
    return leaf


def milliseconds(work: Callable[[], object]) -> float:
    """Time of the process, in which the work of others does not show."""
    begin = time.process_time()
    work()
    return 1000 * (time.process_time() - begin)


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    lines = [
        "# What SCDL and the label proportion add to a training iteration",
        "",
        "| patch | channels | term | **added** | aim | ms [IQR] | iteration of nnU-Net, ms [IQR] |",
        "|---|---|---|---|---|---|---|",
        *(line for row in result["rows"] for line in table_lines(row)),
        "",
        "Added: median time of the term (forward, backward to features and logits) over that of an iteration of stock",
        f"nnU-Net on the same two samples, {result['rounds']} rounds in turns, time of the process. Network: what",
        "nnU-Net's planner gives this patch. Tokens of 8³ voxels, embedding 256.",
        "",
        *machine_lines(result["machine"]),
    ]
    return "\n".join([*lines, ""])


def table_lines(row: dict[str, Any]) -> list[str]:
    """One line for each term."""
    host = row["ms"][STOCK]
    lines = []
    for name, aim in TARGETS.items():
        share = 100 * statistics.median(row["ms"][name]) / statistics.median(host)
        verdict = f"{aim:g} %" if share <= aim else f"{aim:g} %, **missed**"
        cells = [f"2 x {row['patch']}³", str(row["classes"]), name, f"**{share:.2f} %**", verdict]
        lines.append("| " + " | ".join([*cells, spread(row["ms"][name]), spread(host)]) + " |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.0f} [{low:.0f}, {high:.0f}]"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="+", default=list(LABELS), choices=LABELS)
    parser.add_argument("--patch", type=int, default=64, help="edge in voxels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(words)


def main() -> None:
    """Measure, then write the numbers and the page."""
    arguments = parse_arguments()
    machine = describe_machine()
    rows = [measure(labels, arguments.patch, arguments.rounds, arguments.warm_up) for labels in arguments.labels]
    result = {"machine": machine, "rounds": arguments.rounds, "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
