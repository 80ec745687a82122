"""How long lesion-wise metrics take beside the packages that define them.

Needs an environment with those packages and this project:

    pip install panoptica==2.1.7 brats-evaluation==0.0.10 ccmetrics==0.0.3 nnunet-imbal
    OMP_NUM_THREADS=1 python benchmarks/bench_metrics.py --source BraTS-2023-Metrics

``BraTS-2023-Metrics`` is a clone of rachitsaluja/BraTS-2023-Metrics; with it the whole takes some minutes.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from _machine import describe_machine, machine_lines
from _metric_cases import Case, large_case

from nnunet_imbal.metrics import (
    BRATS2023_RULES,
    cc_dice,
    lesionwise_brats2023,
    lesionwise_brats_mets2026,
    panoptic_quality,
)

RESULTS = Path(__file__).with_name("results")
PEERS = ("panoptica", "brats-evaluation", "ccmetrics", "connected-components-3d", "scipy")
Run = Callable[[], float]


def panoptica_peer(case: Case) -> Run:
    import panoptica

    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.NaiveThresholdMatching(),
        instance_metrics=[panoptica.Metric.IOU, panoptica.Metric.DSC],
        global_metrics=[],
    )
    pair = case.pred.astype(np.uint8), case.ref.astype(np.uint8)
    return lambda: float(next(iter(evaluator.evaluate(*pair, verbose=False).values())).pq)


def mets_peer(case: Case) -> Run:
    """What the evaluator of 2026 spends on one region before its parser averages."""
    import brats_evaluation
    import panoptica

    config = Path(brats_evaluation.__file__).parent / "configs" / "config_mets.yaml"
    evaluator = panoptica.Panoptica_Evaluator.load_from_config(str(config))
    pair = [mask.astype(np.uint8) * 3 for mask in (case.pred, case.ref)]
    others = ["rc", "tc", "wt"]

    def run() -> float:
        results = evaluator.evaluate(*pair, voxelspacing=case.spacing, skip_groups=others, verbose=False)
        return float(results["et"].to_dict(True)["sq_dsc"])

    return run


def ccmetrics_peer(case: Case) -> Run:
    import torch
    from CCMetrics import CCDiceMetric

    pred, ref = (torch.from_numpy(np.stack([~mask, mask])[None].astype(np.uint8)) for mask in (case.pred, case.ref))

    def run() -> float:
        metric = CCDiceMetric(cc_reduction="patient")
        metric(y_pred=pred, y=ref)
        return float(metric.cc_aggregate()[0])

    return run


def brats2023_peer(case: Case, source: Path) -> Run:
    """The lesion-wise scores of one region, without reading and writing files."""
    vars(np)["Inf"] = np.inf  # numpy 2 dropped the name that the evaluator uses
    sys.path.insert(0, str(source))
    import metrics

    class Image:
        def __init__(self, mask: Any) -> None:
            self.mask, self.header = mask, self

        def get_fdata(self) -> Any:
            return self.mask.astype(np.float64) * 3

        def get_zooms(self) -> tuple[float, ...]:
            return case.spacing

    metrics.nib.load = lambda name: Image(getattr(case, name))
    return lambda: float(len(metrics.get_LesionWiseScores("pred", "ref", "ET", 1)[4]))


def rows(case: Case, source: Path | None) -> dict[str, tuple[Run, str, Run]]:
    """Name of the task -> our function, name of the peer, the peer's."""
    spaced = (case.pred, case.ref, case.spacing)
    found = {
        "panoptic quality": (lambda: panoptic_quality(case.pred, case.ref).pq, "panoptica", panoptica_peer(case)),
        "BraTS-METS 2026": (lambda: lesionwise_brats_mets2026(*spaced).dice, "BraTS-evaluation", mets_peer(case)),
        "CC-Dice": (lambda: cc_dice(case.pred, case.ref).mean(), "CCMetrics", ccmetrics_peer(case)),
    }
    if source is not None:
        rule = BRATS2023_RULES["MET"]
        peer = brats2023_peer(case, source)
        found["BraTS 2023, MET"] = (lambda: lesionwise_brats2023(*spaced, rule).dice, "BraTS-2023-Metrics", peer)
    return found


def seconds(run: Run) -> float:
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        run()
    return time.process_time() - start


def measure(case: Case, rounds: int, source: Path | None) -> list[dict[str, Any]]:
    """Seconds of process CPU time, taking turns; the first round warms up."""
    found = []
    for name, (ours, peer_name, peer) in rows(case, source).items():
        times = [(seconds(ours), seconds(peer)) for _ in range(rounds + 1)][1:]
        mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        row = {"metric": name, "peer": peer_name, "rounds": rounds, "ours_s": mine, "peer_s": theirs}
        found.append(row)
        print(row, flush=True)
    return found


def page(result: dict[str, Any]) -> str:
    """The Markdown page of a result."""
    lines = [
        f"| {row['metric']} | {row['ours_s']:.3f} | {row['peer']} | {row['peer_s']:.2f} "
        f"| {row['peer_s'] / row['ours_s']:.0f}x | {row['rounds']} |"
        for row in result["rows"]
    ]
    peers = ", ".join(f"{name} {number}" for name, number in result["peers"].items())
    return "\n".join(
        [
            "# Lesion-wise metrics beside the packages that define them",
            "",
            "Made by `python benchmarks/bench_metrics.py --source BraTS-2023-Metrics`.",
            f"One class of {' x '.join(map(str, result['shape']))} voxels with {result['lesions']} lesions, "
            f"{result['true_voxels']} true and {result['predicted_voxels']} predicted voxels.",
            "Seconds of process CPU time, one thread, medians of rounds in which ours and the peer take turns,",
            "after one to warm up. Peers get arrays: reading files is not in the times.",
            "",
            *machine_lines(result["machine"]),
            f"- peers: {peers}",
            "",
            "| metric | ours, s | peer | peer, s | peer / ours | rounds |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--source", type=Path, help="clone of BraTS-2023-Metrics; left out without it")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    case = large_case()
    result = {
        "machine": describe_machine(),
        "peers": {name: version(name) for name in PEERS},
        "shape": case.ref.shape,
        "lesions": panoptic_quality(case.ref, case.ref).true_positives,
        "true_voxels": int(case.ref.sum()),
        "predicted_voxels": int(case.pred.sum()),
        "rows": measure(case, arguments.rounds, arguments.source),
    }
    (RESULTS / "metrics.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "metrics.md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
