"""What the reference implementations say about the cases of `_metric_cases.py`, for `tests/metrics`.

Each reference wants an environment of its own; this project need not be installed there:

    pip install panoptica==2.1.7 brats-evaluation==0.0.10 ccmetrics==0.0.3
    python benchmarks/golden_metrics.py panoptica --data open_ms_data
    python benchmarks/golden_metrics.py mets2026 --data open_ms_data
    python benchmarks/golden_metrics.py ccmetrics --data open_ms_data

    pip install numpy==1.24.3 pandas==1.3.5 scipy==1.11.1 nibabel==5.1.0 connected-components-3d==3.12.1  # Python 3.10
    python benchmarks/golden_metrics.py brats2023 --data open_ms_data --source BraTS-2023-Metrics

``open_ms_data`` is the folder ``cross_sectional/MNI`` of the public repository muschellij2/open_ms_data,
``BraTS-2023-Metrics`` a clone of rachitsaluja/BraTS-2023-Metrics.
"""

import argparse
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from _metric_cases import PATIENTS, RANDOM_2D, RANDOM_3D, Case, checksum, random_case, real_case

GOLDEN = Path(__file__).parents[1] / "tests" / "metrics" / "golden"
MATCHERS = {
    "greedy": "NaiveThresholdMatching",
    "hungarian": "MaxBipartiteMatching",
    "merge": "MaximizeMergeMatching",
}
MATCHINGS = (
    ("greedy", "iou", 0.5),
    ("greedy", "dsc", 0.5),
    ("greedy", "iou", 0.1),
    ("hungarian", "iou", 0.1),
    ("hungarian", "dsc", 1e-6),
    ("merge", "iou", 0.1),
    ("merge", "dsc", 0.3),
)
Scores = dict[str, Any]


def panoptica(arguments: argparse.Namespace) -> Callable[[Case], Scores]:
    import panoptica as package
    from panoptica import instance_matcher

    metrics = [package.Metric.IOU, package.Metric.DSC]

    def evaluator(matcher: str, metric: str, threshold: float) -> Any:
        kind = getattr(instance_matcher, MATCHERS[matcher])
        return package.Panoptica_Evaluator(
            expected_input=package.InputType.SEMANTIC,
            instance_approximator=package.ConnectedComponentsInstanceApproximator(),
            instance_matcher=kind(
                matching_metric=getattr(package.Metric, metric.upper()), matching_threshold=threshold
            ),
            instance_metrics=metrics,
            global_metrics=[],
        )

    evaluators = {
        f"{name} {metric} {threshold:g}": evaluator(name, metric, threshold) for name, metric, threshold in MATCHINGS
    }

    def score(case: Case) -> Scores:
        pair = case.pred.astype(np.uint8), case.ref.astype(np.uint8)
        scores = {}
        for name, each in evaluators.items():
            (result,) = each.evaluate(*pair, verbose=False).values()
            keys = ("tp", "fp", "fn", "rq", "sq", "pq", "sq_dsc", "pq_dsc")
            scores[name] = {key: _number(getattr(result, key)) for key in keys}
        return scores

    return score


def mets2026(arguments: argparse.Namespace) -> Callable[[Case], Scores]:
    import brats_evaluation
    import pandas as pd
    import panoptica as package
    from brats_evaluation.metrics_parser import parse_mets_results

    config = Path(brats_evaluation.__file__).parent / "configs" / "config_mets.yaml"
    evaluator = package.Panoptica_Evaluator.load_from_config(str(config))
    keys = {
        "dice": "lesionwise_dsc_mean_et",
        "nsd": "lesionwise_nsd_mean_et",
        "hd95_mm": "lesionwise_hd95_mean_et",
        "large_f1": "large_instance_f1_et",
        "small_f1": "small_instance_f1_et",
        "false_positives": "all_instance_fp_et",
    }

    def score(case: Case) -> Scores:
        pair = (mask.astype(np.uint8) * 3 for mask in (case.pred, case.ref))
        results = evaluator.evaluate(*pair, voxelspacing=case.spacing, skip_groups=["rc", "tc", "wt"], verbose=False)
        row = {name: result.to_dict(True) for name, result in results.items()}
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "panoptica.json", Path(folder) / "scores.csv"
            before.write_text(json.dumps({"metrics": [{**row, "subject_name": "case"}], "missings": []}, default=float))
            parse_mets_results(before, 20.0, 0.1, after)
            table = pd.read_csv(after)
        return {name: _number(table[column][0]) for name, column in keys.items()}

    return score


def ccmetrics(arguments: argparse.Namespace) -> Callable[[Case], Scores]:
    import torch
    from CCMetrics import CCDiceMetric

    def score(case: Case) -> Scores:
        pred, ref = (
            torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in (case.pred, case.ref)
        )
        metric = CCDiceMetric(cc_reduction="patient")
        metric(y_pred=pred, y=ref)
        components = [_number(each) for each in metric.get_buffer()[0].ravel()] if case.ref.any() else []
        return {"components": components, "mean": _number(metric.cc_aggregate()[0])}

    return score


def brats2023(arguments: argparse.Namespace) -> Callable[[Case], Scores]:
    import nibabel

    sys.path.insert(0, str(arguments.source))
    from metrics import get_LesionWiseResults

    keys = {
        "dice": "LesionWise_Score_Dice",
        "hd95_mm": "LesionWise_Score_HD95",
        "true_positives": "Num_TP",
        "false_positives": "Num_FP",
        "false_negatives": "Num_FN",
    }

    def score(case: Case) -> Scores:
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / f"{name}.nii.gz") for name in ("pred", "ref")]
            for path, mask in zip(paths, (case.pred, case.ref), strict=True):
                nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8) * 3, np.diag([*case.spacing, 1.0])), path)
            tables = {task: get_LesionWiseResults(*paths, f"BraTS-{task}") for task in ("MET", "MEN", "GLI")}
        rows = {task: table[table["Labels"] == "ET"].iloc[0] for task, table in tables.items()}
        return {task: {name: _number(row[key]) for name, key in keys.items()} for task, row in rows.items()}

    return score


REFERENCES: dict[str, tuple[Callable[[argparse.Namespace], Callable[[Case], Scores]], tuple[str, ...], bool]] = {
    "brats2023": (brats2023, (), False),
    "ccmetrics": (ccmetrics, ("ccmetrics", "monai"), False),
    "mets2026": (mets2026, ("brats-evaluation", "panoptica"), False),
    "panoptica": (panoptica, ("panoptica",), True),
}


def cases(data: Path, flat: bool) -> Iterator[tuple[str, Case]]:
    for seed in (*RANDOM_3D, *(RANDOM_2D if flat else ())):
        yield f"random {seed}", random_case(seed)
    for patient in PATIENTS:
        yield f"patient {patient}", real_case(data, patient)


def _number(value: Any) -> float | None:
    """Nine digits; JSON knows neither nan nor infinity, None stands for nan."""
    number = float(value)
    assert not math.isinf(number)
    return None if math.isnan(number) else float(f"{number:.9g}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", choices=sorted(REFERENCES))
    parser.add_argument("--data", type=Path, required=True, help="folder open_ms_data")
    parser.add_argument("--source", type=Path, help="clone of BraTS-2023-Metrics")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore")
    prepare, packages, flat = REFERENCES[arguments.reference]
    score = prepare(arguments)
    lines = []
    for name, case in cases(arguments.data, flat):
        content = {"checksum": checksum(case), "scores": score(case)}
        lines.append(f"  {json.dumps(name)}: {json.dumps(content)}")
        print(name, flush=True)
    versions = {package: version(package) for package in ("numpy", "scipy", *packages)}
    GOLDEN.mkdir(parents=True, exist_ok=True)
    text = f'{{\n "versions": {json.dumps(versions)},\n "cases": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    (GOLDEN / f"{arguments.reference}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
