import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics import dice, froc, froc_counts, match_lesions

LEVELS = (0.2, 0.4, 0.6, 0.8)
VOLUMES = (0.0, 2.0, 3.5, 8.0)
SPACING = (2.0, 0.5, 0.5)


def _cases(rng, count=4, shape=(6, 10, 12)):
    cases = []
    for _ in range(count):
        ref = rng.random(shape) < 0.03
        cases.append((np.clip(0.5 * ref + 0.75 * rng.random(shape) ** 4, 0, 1).astype(np.float32), ref))
    return cases


def _curve(cases, levels=LEVELS, **options):
    return froc(froc_counts(probs, ref, thresholds=levels, **options) for probs, ref in cases)


def _keep_large(found, least, spacing):
    pieces, number = label(found, np.ones((3,) * found.ndim))
    for piece in range(1, number + 1):
        if (pieces == piece).sum() * math.prod(spacing) < least:
            found = found & (pieces != piece)
    return found


def test_equals_matching_of_filtered_masks_at_each_point():
    for probs, ref in _cases(np.random.default_rng(0)):
        counts = froc_counts(probs, ref, SPACING, thresholds=LEVELS, volumes_mm3=VOLUMES)
        for i, level in enumerate(LEVELS):
            for j, least in enumerate(VOLUMES):
                found = _keep_large(probs > level, least, SPACING)
                match = match_lesions(found, ref)
                assert counts.detected[i, j] == sum(lesion.detected for lesion in match.reference)
                assert counts.components[i, j] == len(match.prediction)
                assert counts.false_positives[i, j] == len(match.false_positives)
                assert counts.dice[i, j] == pytest.approx(dice(found, ref))
        assert counts.lesions == len(match.reference)


def test_the_curve_counts_the_lesions_of_all_cases_together():
    cases = _cases(np.random.default_rng(1))
    counts = [froc_counts(probs, ref, thresholds=LEVELS) for probs, ref in cases]
    curve = froc(counts)
    assert (curve.cases, curve.lesions) == (4, sum(case.lesions for case in counts))
    np.testing.assert_array_equal(curve.sensitivity, sum(case.detected for case in counts) / curve.lesions)
    np.testing.assert_array_equal(curve.false_positives_per_case, sum(case.false_positives for case in counts) / 4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_more_caution_never_finds_more(seed):
    rng = np.random.default_rng(seed)
    curve = _curve(_cases(rng, 2), spacing=SPACING, volumes_mm3=VOLUMES)
    assert (np.diff(curve.sensitivity, axis=0) <= 0).all()
    assert (np.diff(curve.sensitivity, axis=1) <= 0).all()
    assert (np.diff(curve.false_positives_per_case, axis=1) <= 0).all()
    prices, gains = curve.envelope()
    assert (np.diff(prices) > 0).all()
    assert (np.diff(gains) > 0).all()
    for price in (0, 0.5, 3, 100):
        affordable = gains[prices <= price]
        assert curve.sensitivity_at(price) == (affordable[-1] if affordable.size else 0)


def test_thresholds_0_and_1():
    probs, ref = np.array([[0.0, 0.3, 0.0, 1.0, 0.0]]), np.array([[False, True, False, False, False]])
    counts = froc_counts(probs, ref, thresholds=(0, 1))
    assert counts.predicted_voxels[:, 0].tolist() == [2, 0]
    assert counts.detected[:, 0].tolist() == [1, 0]
    assert counts.false_positives[:, 0].tolist() == [1, 0]


def test_best_point_that_one_can_afford():
    ref = np.zeros((1, 12), bool)
    ref[0, [1, 5]] = True
    probs = np.zeros((1, 12))
    probs[0, [1, 3, 5, 7, 9]] = 0.9, 0.7, 0.5, 0.3, 0.1
    curve = _curve([(probs, ref)], (0.2, 0.4, 0.8))
    assert curve.false_positives_per_case[:, 0].tolist() == [2, 1, 0]
    assert [curve.sensitivity_at(price) for price in (0, 0.5, 1, 8)] == [0.5, 0.5, 1, 1]
    assert curve.mean_sensitivity() == (3 * 0.5 + 4 * 1) / 7
    assert curve.mean_sensitivity([0, 1]) == 0.75
    assert [values.tolist() for values in curve.envelope()] == [[0, 1], [0.5, 1]]


def test_a_large_component_finds_a_small_lesion():
    probs, ref = np.array([[0.9, 0.9, 0.9, 0, 0.9]]), np.array([[True, False, False, False, False]])
    counts = froc_counts(probs, ref, thresholds=(0.5,), volumes_mm3=(0, 3, 4))
    assert counts.detected.tolist() == [[1, 1, 0]]
    assert counts.false_positives.tolist() == [[1, 0, 0]]


def test_a_volume_in_mm3_that_voxels_fill_exactly_is_filled():
    ref = np.zeros((1, 1, 5), bool)
    counts = froc_counts(ref + np.array([0.9, 0.9, 0.9, 0, 0]), ref, (0.1, 0.1, 0.1), volumes_mm3=(0.003, 0.0031))
    assert counts.components[-1].tolist() == [0, 0]
    assert counts.components[10].tolist() == [1, 0]


def test_nothing_affordable_is_no_sensitivity():
    ref = np.array([[True, False, False]])
    assert _curve([(np.array([[0.9, 0.0, 0.9]]), ref)], (0.5,)).sensitivity_at(0.5) == 0


def test_without_lesions_there_is_no_sensitivity():
    curve = _curve([(np.full((2, 3), 0.6), np.zeros((2, 3), bool))], (0.5, 0.7))
    assert np.isnan(curve.sensitivity).all()
    assert math.isnan(curve.sensitivity_at(8))
    assert math.isnan(curve.mean_sensitivity())
    assert curve.false_positives_per_case[:, 0].tolist() == [1, 0]
    assert [values.size for values in curve.envelope()] == [0, 0]


def test_an_empty_case():
    counts = froc_counts(np.zeros((2, 3)), np.zeros((2, 3), bool), thresholds=(0.5,))
    assert counts.components.tolist() == counts.detected.tolist() == [[0]]
    assert np.isnan(counts.dice).all()


def test_cases_are_read_one_by_one():
    alive = []

    def stream():
        for probs, ref in _cases(np.random.default_rng(2), 3):
            alive.append(len(alive))
            yield froc_counts(probs, ref, thresholds=(0.5,))

    assert froc(stream()).cases == len(alive) == 3


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.5), (math.nan,)])
def test_wrong_thresholds(levels):
    with pytest.raises(ConfigError, match=r"thresholds .* expected ascending numbers from 0 to 1"):
        froc_counts(np.zeros((2, 2)), np.zeros((2, 2), bool), thresholds=levels)


@pytest.mark.parametrize("volumes", [(), (-1.0,), (2.0, 1.0), (math.inf,)])
def test_wrong_volumes(volumes):
    with pytest.raises(ConfigError, match="volumes_mm3"):
        froc_counts(np.zeros((2, 2)), np.zeros((2, 2), bool), volumes_mm3=volumes)


def test_wrong_cases():
    ref = np.zeros((2, 2), bool)
    with pytest.raises(ConfigError, match="no case"):
        froc([])
    with pytest.raises(ConfigError, match="at the same points"):
        froc(froc_counts(np.zeros((2, 2)), ref, thresholds=(level,)) for level in (0.4, 0.5))
    with pytest.raises(ValueError, match="one shape"):
        froc_counts(np.zeros((2, 3)), ref)
    with pytest.raises(ValueError, match="apply softmax"):
        froc_counts(np.full((2, 2), 1.5), ref)
    with pytest.raises(ValueError, match="apply softmax"):
        froc_counts(np.full((2, 2), math.nan), ref)
    with pytest.raises(ValueError, match="one per axis"):
        froc_counts(np.zeros((2, 2)), ref, (1, 1, 1))
