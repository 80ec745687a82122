import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_imbal.errors import DataError, GeometryError, LabelError
from nnunet_imbal.metrics import CowVessel, topcow_scores, topcow_summary

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "golden_topology.py"
GOLDEN = json.loads((Path(__file__).parent / "golden" / "topology.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def golden():
    """The script that made the golden file, and with it the cases."""
    spec = importlib.util.spec_from_file_location("golden_topology", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(golden):
    return {name: golden.ours(pred, ref, spacing) for name, pred, ref, spacing in golden.cases()}


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_equals_the_code_of_the_challenge(name, golden, measured):
    off = dict(golden.differences(measured[name][1], GOLDEN["cases"][name]))
    assert max(off.values()) < 1e-5, max(off, key=off.get)


def test_sums_up_like_the_challenge(golden, measured):
    summary = golden.our_summary([result for result, _ in measured.values()])
    assert max(dict(golden.differences(summary, GOLDEN["summary"])).values()) < 1e-12


def test_golden_cases_show_every_verdict():
    cases = GOLDEN["cases"].values()
    assert {found for case in cases for found in case["detection"].values()} == {"TP", "FN", "FP", "TN"}
    for half in ("anterior", "posterior"):
        assert {case[half]["topology_matches"] for case in cases} == {True, False}
        assert any(case[half]["reference"] != case[half]["prediction"] for case in cases)


def half_circle():
    """Right and left carotids with their anterior arteries, joined in the middle; x grows to the left."""
    labels = np.zeros((5, 5, 15), np.uint8)
    for x, carotid, anterior in ((2, CowVessel.R_ICA, CowVessel.R_ACA), (12, CowVessel.L_ICA, CowVessel.L_ACA)):
        labels[:3, 2, x], labels[3:, 2, x] = carotid, anterior
    labels[4, 2, 3:12] = CowVessel.ACOM
    return labels


def test_each_reason_breaks_the_topology_match():
    truth = half_circle()
    broken = {name: truth.copy() for name in ("piece", "contact", "detection")}
    broken["piece"][0, 0, 0] = CowVessel.R_ACA
    broken["contact"][3, 2, 2] = 0
    broken["detection"][4, 2, 4:11] = 0
    broken["sides"] = truth[:, :, ::-1].copy()
    assert topcow_scores(truth, truth, (1, 1, 1)).anterior.topology_matches
    for name, labels in broken.items():
        assert not topcow_scores(labels, truth, (1, 1, 1)).anterior.topology_matches, name
    # judged against itself, the mirrored map fails for its sides alone
    mirrored = topcow_scores(broken["sides"], broken["sides"], (1, 1, 1))
    assert mirrored.dice.mean == 1
    assert not mirrored.anterior.topology_matches


def test_variant_reads_left_to_right():
    truth = half_circle()
    assert topcow_scores(truth, truth, (1, 1, 1)).anterior.reference == (True, True, False, True)
    no_left_a1 = np.where(truth == CowVessel.L_ICA, 0, truth)
    assert topcow_scores(no_left_a1, truth, (1, 1, 1)).anterior.prediction == (False, True, False, True)


def test_a_quarter_of_the_union_is_enough():
    truth = np.zeros((1, 1, 8), np.uint8)
    truth[..., :4] = CowVessel.ACOM
    for shift, expected in ((2, "TP"), (3, "FN")):
        found = np.roll(truth, shift, axis=2)
        assert topcow_scores(found, truth, (1, 1, 1)).detection[CowVessel.ACOM] == expected


def test_spacing_scales_distances_only():
    truth, found = half_circle(), np.roll(half_circle(), 1, axis=1)
    one, two = (topcow_scores(found, truth, (s, s, s)) for s in (1, 2))
    assert two.hd95_mm.mean == 2 * one.hd95_mm.mean > 0
    assert (one.dice, one.cldice, one.b0_error) == (two.dice, two.cldice, two.b0_error)


def test_signed_and_wide_integers_are_labels_too():
    truth = half_circle()
    for dtype in (np.int16, np.int64, ">u2"):
        assert topcow_scores(truth.astype(dtype), truth, (1, 1, 1)).dice.mean == 1


@pytest.mark.parametrize(
    ("pred", "ref", "spacing", "error", "words"),
    [
        (np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), (1, 1, 1), GeometryError, "one shape"),
        (np.zeros((2, 2), int), np.zeros((2, 2), int), (1, 1), GeometryError, "two volumes"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2), int), (1, 1, 1), LabelError, "prediction is float64"),
        (np.zeros((2, 2, 2), int), np.full((2, 2, 2), 13), (1, 1, 1), LabelError, "reference holds the label 13"),
        (np.full((2, 2, 2), -1), np.zeros((2, 2, 2), int), (1, 1, 1), LabelError, "label -1"),
        (np.zeros((2, 2, 2), int), np.zeros((2, 2, 2), int), (1, 1, 0), ValueError, "positive numbers"),
    ],
)
def test_bad_input_is_refused(pred, ref, spacing, error, words):
    with pytest.raises(error, match=words):
        topcow_scores(pred, ref, spacing)


def test_no_patients_are_refused():
    with pytest.raises(DataError, match="no patients"):
        topcow_summary([])
