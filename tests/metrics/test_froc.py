import math

import numpy as np
import pytest

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics import froc, match_lesions

LEVELS = (0.2, 0.4, 0.6, 0.8)


def _cases(rng, count=4, shape=(6, 10, 12)):
    cases = []
    for _ in range(count):
        ref = rng.random(shape) < 0.03
        cases.append((np.clip(0.5 * ref + 0.75 * rng.random(shape) ** 4, 0, 1), ref))
    return cases


def test_equals_matching_at_each_threshold():
    cases = _cases(np.random.default_rng(0))
    curve = froc(cases, LEVELS)
    for level, sensitivity, price in zip(LEVELS, curve.sensitivity, curve.false_positives_per_case, strict=True):
        matches = [match_lesions(probs >= level, ref) for probs, ref in cases]
        lesions = [lesion for match in matches for lesion in match.reference]
        assert sensitivity == sum(lesion.detected for lesion in lesions) / len(lesions)
        assert price == sum(len(match.false_positives) for match in matches) / len(cases)
    assert (curve.cases, curve.lesions) == (4, len(lesions))


def test_sensitivity_never_rises_with_the_threshold():
    curve = froc(_cases(np.random.default_rng(1)))
    assert curve.thresholds.size == 19
    assert (np.diff(curve.sensitivity) <= 0).all()


def test_best_threshold_that_one_can_afford():
    ref = np.zeros((1, 12), bool)
    ref[0, [1, 5]] = True
    probs = np.zeros((1, 12))
    probs[0, [1, 3, 5, 7, 9]] = 0.9, 0.7, 0.5, 0.3, 0.1
    curve = froc([(probs, ref)], (0.2, 0.4, 0.8))
    assert curve.false_positives_per_case.tolist() == [2, 1, 0]
    assert [curve.sensitivity_at(price) for price in (0, 0.5, 1, 8)] == [0.5, 0.5, 1, 1]
    assert curve.mean_sensitivity() == (3 * 0.5 + 4 * 1) / 7
    assert curve.mean_sensitivity([0, 1]) == 0.75


def test_no_affordable_threshold_is_no_sensitivity():
    ref = np.array([[True, False, False]])
    assert froc([(np.array([[0.9, 0.0, 0.9]]), ref)], (0.5,)).sensitivity_at(0.5) == 0


def test_without_lesions_there_is_no_sensitivity():
    curve = froc([(np.full((2, 3), 0.6), np.zeros((2, 3), bool))], (0.5, 0.7))
    assert np.isnan(curve.sensitivity).all()
    assert math.isnan(curve.sensitivity_at(8))
    assert curve.false_positives_per_case.tolist() == [1, 0]


def test_cases_are_read_one_by_one():
    alive = []

    def stream():
        for case in _cases(np.random.default_rng(2), 3):
            alive.append(len(alive))
            yield case

    assert froc(stream(), (0.5,)).cases == len(alive) == 3


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.8, 0.2), (0.0, 0.5), (0.5, 1.5), (math.nan,)])
def test_wrong_thresholds(levels):
    with pytest.raises(ConfigError, match="expected ascending probabilities"):
        froc([(np.zeros((2, 2)), np.zeros((2, 2), bool))], levels)


def test_wrong_cases():
    ref = np.zeros((2, 2), bool)
    with pytest.raises(ConfigError, match="no case"):
        froc([])
    with pytest.raises(ValueError, match="one shape"):
        froc([(np.zeros((2, 3)), ref)])
    with pytest.raises(ValueError, match="apply softmax"):
        froc([(np.full((2, 2), 1.5), ref)])
    with pytest.raises(ValueError, match="apply softmax"):
        froc([(np.full((2, 2), math.nan), ref)])
