"""Do our topology metrics give the numbers of the TopCoW challenge's own evaluation code?

The peer needs old versions of its libraries, so it has an environment of its own. Nothing of the peer is part of this
project (it carries no licence); only numbers are kept, and the cases that gave them are made here from a seed:

    git clone https://github.com/CoWBenchmark/TopCoW_Eval_Metrics topcow      # commit 25ca839
    python3.11 -m venv peer
    peer/bin/pip install numpy==1.25.2 pandas==2.0.3 scikit-image==0.21.0 SimpleITK==2.2.1 scikit-learn pyyaml
    peer/bin/python benchmarks/golden_topology.py ask topcow --out tests/metrics/golden/topology.json
    peer/bin/python benchmarks/golden_topology.py ask topcow --test-cases --out peer_own_cases.json
    python benchmarks/golden_topology.py compare tests/metrics/golden/topology.json
    python benchmarks/golden_topology.py compare peer_own_cases.json --source topcow
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]
Case = tuple[str, Labels, Labels, tuple[float, float, float]]  # name, prediction, truth, spacing
PEER = "CoWBenchmark/TopCoW_Eval_Metrics@25ca839"

# Where each vessel of the circle starts and ends (z, y, x), in 24ths of the volume; x grows to the patient's left.
COURSES = {
    1: ((2, 16, 12), (10, 16, 12)),
    2: ((10, 16, 12), (14, 20, 4)),
    3: ((10, 16, 12), (14, 20, 20)),
    4: ((2, 8, 7), (16, 8, 7)),
    5: ((16, 8, 7), (18, 8, 1)),
    6: ((2, 8, 17), (16, 8, 17)),
    7: ((16, 8, 17), (18, 8, 23)),
    8: ((12, 8, 7), (13, 19, 6)),
    9: ((12, 8, 17), (13, 19, 18)),
    10: ((17, 4, 10), (17, 4, 14)),
    11: ((16, 8, 7), (22, 3, 10)),
    12: ((16, 8, 17), (22, 3, 14)),
    15: ((17, 4, 12), (22, 2, 12)),
}


def circle(seed: int, absent: tuple[int, ...] = (), shape: tuple[int, int, int] = (30, 34, 38)) -> Labels:
    """Straight vessels with trembling ends; integer arithmetic only, so that every NumPy gives the same voxels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for label, ends in COURSES.items():
        start, stop = (np.array(end) * shape // 24 + rng.integers(-1, 2, 3) for end in ends)
        radius = int(rng.integers(0, 2)) if label in (8, 9, 10, 15) else int(rng.integers(1, 3))
        if label in absent:
            continue
        for t in range(65):
            centre = start + (stop - start) * t // 64
            box = tuple(slice(max(c - radius, 0), c + radius + 1) for c in centre.tolist())
            labels[box] = label
    return labels


def disturbed(ref: Labels, seed: int) -> Labels:
    """Shift a vessel, cut one, lose one, mix two up and add stray voxels."""
    rng = np.random.default_rng(seed)
    pred = ref.copy()
    shifted, cut, lost, mixed, into = (int(label) for label in rng.choice(list(COURSES), 5, replace=False))
    moved = np.roll(ref == shifted, int(rng.integers(1, 4)), axis=int(rng.integers(0, 3)))
    pred[pred == shifted] = 0
    pred[moved] = shifted
    plane = int(np.median(np.nonzero(ref == cut)[0])) if (ref == cut).any() else 0
    pred[plane][pred[plane] == cut] = 0
    if seed % 2:
        pred[pred == lost] = 0
    if seed % 3 == 0:
        pred[pred == mixed] = into
    for _ in range(int(rng.integers(0, 4))):
        pred[tuple(rng.integers(0, ref.shape))] = int(rng.choice(list(COURSES)))
    return pred


def toy() -> tuple[Labels, Labels]:
    """A thick vessel, a thin one with a gap, and a stray voxel of a third."""
    ref = np.zeros((5, 5, 10), np.uint8)
    ref[1:4, 1:4, 1:5], ref[2, 2, 5:9] = 1, 2
    pred = ref.copy()
    pred[2, 2, 6], pred[0, 0, 9] = 0, 3
    return pred, ref


def cases() -> Iterator[Case]:
    """Circles with and without the vessels that people lack, good and bad predictions, and the edges."""
    absences = [(), (15,), (8, 15), (9, 10, 15), (8, 9, 15), (10,), (11, 15), (2, 15)]
    for seed, absent in enumerate(absences * 2):
        ref = circle(seed, absent)
        yield f"circle {seed}", disturbed(ref, seed), ref, (0.6, 0.35, 0.4)
    ref = circle(0, (15,))
    yield "same", ref, ref, (0.5, 0.5, 0.5)
    yield "mirrored", np.ascontiguousarray(ref[:, :, ::-1]), ref, (0.5, 0.5, 0.5)
    yield "empty prediction", np.zeros_like(ref), ref, (0.5, 0.5, 0.5)
    yield "empty truth", ref, np.zeros_like(ref), (0.5, 0.5, 0.5)
    yield "both empty", np.zeros_like(ref), np.zeros_like(ref), (0.5, 0.5, 0.5)
    yield "toy", *toy(), (1.0, 1.0, 1.0)
    noise = np.random.default_rng(9).choice(np.array([0, 0, 0, 4, 6, 11, 12], np.uint8), (2, 9, 8, 7))
    yield "noise", noise[0], noise[1], (3.0, 0.79, 0.8512)


def checksum(pred: Labels, ref: Labels) -> str:
    return hashlib.sha256(pred.tobytes() + ref.tobytes()).hexdigest()[:16]


# ----------------------------------------------------------------------------------------------- in the peer's place


def ask(source: Path, pairs: Iterator[tuple[str, Any, Any]]) -> dict[str, Any]:
    """Have the peer score every pair of SimpleITK images, then sum them up."""
    sys.path.insert(0, str(source))
    from pandas import Series
    from topcow24_eval.aggregate.aggregate_all_detection_dicts import aggregate_all_detection_dicts
    from topcow24_eval.aggregate.aggregate_all_graph_dicts import aggregate_all_graph_dicts
    from topcow24_eval.aggregate.aggregate_all_topo_dicts import aggregate_all_topo_dicts

    answers = {name: ask_one(pred, ref) for name, pred, ref in pairs}
    together = {
        key: Series([each.pop(key) for each in answers.values()]) for key in ("_detection", "_graph", "_topology")
    }
    detection = aggregate_all_detection_dicts(together["_detection"])
    summary = {
        "detection_f1": {label: detection[label]["f1_score"] for label in ("8", "9", "10", "15")},
        "mean_detection_f1": float(detection["f1_score"]["mean"]),
        "variant_accuracy": aggregate_all_graph_dicts(together["_graph"]),
        "topology_match": aggregate_all_topo_dicts(together["_topology"]),
    }
    return {"peer": PEER, "cases": answers, "summary": summary}


def ask_one(pred: Any, ref: Any) -> dict[str, Any]:
    import SimpleITK as sitk
    from topcow24_eval.metrics.seg_metrics.clDice import clDice
    from topcow24_eval.metrics.seg_metrics.cls_avg_b0 import betti_number_error_all_classes
    from topcow24_eval.metrics.seg_metrics.cls_avg_dice import dice_coefficient_all_classes
    from topcow24_eval.metrics.seg_metrics.cls_avg_hd95 import hd95_all_classes
    from topcow24_eval.metrics.seg_metrics.detection_grp2_labels import detection_grp2_labels
    from topcow24_eval.metrics.seg_metrics.graph_classification.graph_classification import graph_classification
    from topcow24_eval.metrics.seg_metrics.topology_matching.topology_matching import topology_matching

    arrays = sitk.GetArrayFromImage(pred), sitk.GetArrayFromImage(ref)
    images = {"gt": ref, "pred": pred}
    detection, graph, topology = (f(**images) for f in (detection_grp2_labels, graph_classification, topology_matching))
    labels = [label for label in np.union1d(*arrays).tolist() if label]
    return {
        "checksum": checksum(*arrays),
        "dice": scores(dice_coefficient_all_classes(**images), "Dice"),
        "b0_error": scores(betti_number_error_all_classes(**images), "B0err"),
        "hd95_mm": scores(hd95_all_classes(**images), "HD95"),
        "cldice": {
            "merged": float(clDice(v_p_pred=arrays[0], v_l_gt=arrays[1])),
            "vessels": {
                str(k): float(clDice(v_p_pred=(arrays[0] == k) * 1, v_l_gt=(arrays[1] == k) * 1)) for k in labels
            },
        },
        "detection": {label: found["Detection"] for label, found in detection.items()},
        **{
            region: {
                "reference": graph[region]["gt_graph"],
                "prediction": graph[region]["pred_graph"],
                "topology_matches": topology["match_verdict"][region],
            }
            for region in ("anterior", "posterior")
        },
        "_detection": detection,
        "_graph": graph,
        "_topology": topology,
    }


def scores(answer: dict[str, Any], metric: str) -> dict[str, Any]:
    vessels = {label: float(found[metric]) for label, found in answer.items() if label.isdigit()}
    mean = float(answer[f"ClsAvg{metric}"][metric])
    return {"vessels": vessels, "merged": float(answer["MergedBin"][metric]), "mean": mean}


def seeded_pairs() -> Iterator[tuple[str, Any, Any]]:
    import SimpleITK as sitk

    for name, *maps, spacing in cases():
        images = [sitk.GetImageFromArray(labels) for labels in maps]
        for image in images:
            image.SetSpacing(spacing[::-1])
        yield name, *images


def own_pairs(source: Path) -> Iterator[tuple[str, Any, Any]]:
    """Every two volumes of the peer's own test files that share one grid, in both roles."""
    import SimpleITK as sitk

    folder = source / "test_assets" / "seg_metrics"
    known = {0, *COURSES}
    images = {}
    for path in sorted(folder.rglob("*.nii.gz")):
        image = sitk.ReadImage(str(path))
        if image.GetDimension() == 3 and set(np.unique(sitk.GetArrayFromImage(image)).tolist()) <= known:
            images[str(path.relative_to(folder))] = sitk.Cast(image, sitk.sitkUInt8)
    for (name, pred), (other, ref) in itertools.product(images.items(), repeat=2):
        if pred.GetSize() == ref.GetSize() and np.allclose(pred.GetSpacing(), ref.GetSpacing()):
            yield f"{name} | {other}", pred, ref


# ------------------------------------------------------------------------------------------------------ in our place


def ours(pred: Labels, ref: Labels, spacing: tuple[float, ...]) -> tuple[Any, dict[str, Any]]:
    """Our scores, as they come and in the form of the golden file."""
    from nnunet_imbal.metrics import topcow_scores

    result = topcow_scores(pred, ref, spacing)
    flat = {
        metric: {
            "vessels": {str(int(k)): float(v) for k, v in found.vessels.items()},
            "merged": float(found.merged),
            "mean": found.mean,
        }
        for metric in ("dice", "b0_error", "hd95_mm", "cldice")
        for found in [getattr(result, metric)]
    }
    del flat["cldice"]["mean"]  # the challenge has none
    regions = {
        name: {
            "reference": [int(part) for part in region.reference],
            "prediction": [int(part) for part in region.prediction],
            "topology_matches": region.topology_matches,
        }
        for name, region in (("anterior", result.anterior), ("posterior", result.posterior))
    }
    detection = {str(int(k)): v for k, v in result.detection.items()}
    return result, {"checksum": checksum(pred, ref), **flat, "detection": detection, **regions}


def our_summary(results: list[Any]) -> dict[str, Any]:
    from nnunet_imbal.metrics import topcow_summary

    summary = topcow_summary(results)
    halves = {"anterior": summary.anterior, "posterior": summary.posterior}
    return {
        "detection_f1": {str(int(k)): v for k, v in summary.detection_f1.items()},
        "mean_detection_f1": summary.mean_detection_f1,
        "variant_accuracy": {name: half.variant_accuracy for name, half in halves.items()},
        "topology_match": {name: half.topology_match for name, half in halves.items()},
    }


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every leaf and how far it is off; anything but numbers must be equal."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), (path, ours, theirs)
        for key in theirs:
            yield from differences(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(theirs, float):
        yield path, abs(ours - theirs)
    else:
        yield path, 0.0 if ours == theirs else float("inf")


def compare(golden: dict[str, Any], pairs: Iterator[tuple[str, Any, Any]]) -> None:
    import SimpleITK as sitk

    results, worst, leaves = [], ("nothing", 0.0), 0
    for name, pred, ref in pairs:
        arrays = sitk.GetArrayFromImage(pred), sitk.GetArrayFromImage(ref)
        result, answer = ours(*arrays, ref.GetSpacing()[::-1])
        results.append(result)
        off = list(differences(answer, golden["cases"][name], name))
        leaves, worst = leaves + len(off), max([worst, *off], key=lambda each: each[1])
        for path, distance in off:
            if distance > 1e-4:
                print(f"{path}: off by {distance:g}")
    off = list(differences(our_summary(results), golden["summary"], "summary"))
    worst = max([worst, *off], key=lambda each: each[1])
    print(f"{len(results)} cases, {leaves + len(off)} numbers; largest difference {worst[1]:.3g} at {worst[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    asking = commands.add_parser("ask", help="write the peer's numbers; runs in the peer's environment")
    asking.add_argument("source", type=Path, help="folder of the peer's repository")
    asking.add_argument("--test-cases", action="store_true", help="the peer's own test files instead of seeded cases")
    asking.add_argument("--out", type=Path, required=True)
    comparing = commands.add_parser("compare", help="compare our numbers; runs in our environment")
    comparing.add_argument("golden", type=Path)
    comparing.add_argument("--source", type=Path, help="folder of the peer's repository, for its own test files")
    given = parser.parse_args()
    if given.command == "ask":
        pairs = own_pairs(given.source) if given.test_cases else seeded_pairs()
        with contextlib.redirect_stdout(io.StringIO()):  # the peer tells every step
            answer = ask(given.source, pairs)
        given.out.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    else:
        golden = json.loads(given.golden.read_text(encoding="utf-8"))
        compare(golden, own_pairs(given.source) if given.source else seeded_pairs())


if __name__ == "__main__":
    main()
