"""What the focal loss does to class frequencies: worked numbers, properties, and the guarantee of the remedy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.focal_guard import calibrate_focal, focal_guard, focal_optimum, safe_exponents

SIX = (0.3, 0.25, 0.2, 0.15, 0.0999, 0.0001)
ELEVEN = (0.0999,) * 10 + (0.001,)


@pytest.mark.parametrize(
    ("truth", "gamma", "optimum", "level"),
    [
        ((0.9, 0.1), 2, (0.694213, 0.305787), 0.322113),
        ((0.5, 0.3, 0.2), 2, (0.426474, 0.325306, 0.248220), 0.874404),
        ((0.5, 0.3, 0.2), 1, (0.456729, 0.318137, 0.225134), 0.986573),
        ((0.7, 0.2, 0.1), 2, (0.535169, 0.292693, 0.172139), 0.689457),
        (SIX, 2, (0.278439, 0.244694, 0.205902, 0.161132, 0.109743, 0.0000899), 1.114499),
        ((0.45, 0.40, 0.15), (2, 0, 0), (0.397229, 0.438379, 0.164392), 0.912453),
    ],
)
def test_worked_optima(truth, gamma, optimum, level):
    found, found_level = focal_optimum(truth, gamma)
    np.testing.assert_allclose(found, optimum, atol=1e-6)
    assert found_level == pytest.approx(level, abs=1e-6)


def test_a_dominant_class_inflates_the_rare_one():
    assert focal_optimum((0.99, 0.01), 2)[0][1] == pytest.approx(0.153624, abs=1e-6)
    assert focal_optimum((0.99, 0.01), 2)[1] == pytest.approx(0.078339, abs=1e-6)
    assert focal_optimum((1 - 1e-6, 1e-6), 2)[0][1] == pytest.approx(0.007048, abs=1e-6)


def test_the_optimum_is_a_minimum():
    """Against a general minimiser that knows nothing of the formula."""
    truth = np.array([0.4, 0.3, 0.2, 0.1])

    def loss(logits):
        q = np.exp(logits) / np.exp(logits).sum()
        return -(truth * (1 - q) ** 2 * np.log(q)).sum()

    logits = minimize(loss, np.log(truth), tol=1e-12).x
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), focal_optimum(truth, 2)[0], atol=1e-5)


@pytest.mark.parametrize(("gamma", "level", "ratio"), [(2, 1.224244, 0.825045), (5, 1.345710, 0.760512)])
def test_many_equal_classes_hide_a_tiny_one(gamma, level, ratio):
    guard = focal_guard(ELEVEN, gamma)
    assert guard.level == pytest.approx(level, abs=1e-6)
    assert guard.over_suppressed == (10,)
    assert guard.optimum[10] / 0.001 == pytest.approx(ratio, abs=1e-5)
    assert guard.remedy == (0.0,) * 11


def test_the_remedy_on_the_worked_example():
    guard = focal_guard(SIX)
    assert guard.over_suppressed == (5,)
    assert not guard.safe
    assert guard.remedy == (2, 0, 0, 0, 0, 0)
    repaired, level = focal_optimum(SIX, guard.remedy)
    assert level == pytest.approx(0.999062, abs=1e-6)
    np.testing.assert_allclose(repaired / np.array(SIX), [0.997810] + [1.000939] * 5, atol=1e-6)


def test_organs_of_the_abdomen_are_borderline_safe():
    volumes = (200, 150, 150, 30, 20, 1500, 300, 100, 80, 40, 80, 4, 5)
    guard = focal_guard(volumes)
    assert guard.safe
    assert guard.level == pytest.approx(0.927, abs=1e-3)
    assert guard.remedy == (2.0,) * 13


def test_what_it_says():
    guard = focal_guard(SIX)
    assert guard.regimes == ("suppressed", "suppressed", "amplified", "amplified", "amplified", "over-suppressed")
    assert str(guard) == (
        "The focal loss would predict the classes [5] up to 10.1% too rarely (λ = 1.114); "
        "safe: focus the classes [0] only."
    )
    assert str(focal_guard(ELEVEN)).endswith("safe: focus no class.")
    assert str(focal_guard((0.9, 0.1))) == "The focal loss hides no class (λ = 0.322)."
    assert focal_guard((0.3, 0.7, 0.0), 0).regimes == ("kept",) * 3


def test_nothing_is_changed_where_nobody_is_hidden():
    """λ is above 1, but no class is rare enough to suffer."""
    guard = focal_guard((0.3, 0.25, 0.2, 0.15, 0.1))
    assert guard.level > 1.1
    assert guard.safe
    assert guard.remedy == (2.0,) * 5


def test_safe_in_the_patch_and_in_the_body(rng):
    assert safe_exponents((1.0, 0.0, 0.0)) == (2.0,) * 3
    repaired = 0
    for _ in range(150):
        truth = np.exp(rng.uniform(-9, 0, rng.integers(5, 15)))
        truth[0] = rng.choice([0.1, 1, 20]) * truth.sum()
        truth /= truth.sum()
        exponents = np.array(safe_exponents(truth, tolerance=0))
        repaired += exponents.min() == 0
        for part in (slice(0, None), slice(1, None)):
            frequencies = truth[part] / truth[part].sum()
            optimum, level = focal_optimum(frequencies, exponents[part])
            if exponents.min() == 0:
                assert level <= 1 + 1e-9
            assert optimum[frequencies.argmin()] >= frequencies.min() * (1 - 1e-9)
    assert repaired > 20


@pytest.mark.slow
def test_remedy_never_hides_a_class():
    """10,000 frequency vectors over six orders of magnitude."""
    rng = np.random.default_rng(0)
    repaired = 0
    for _ in range(10_000):
        truth = np.exp(rng.uniform(-14, 0, rng.integers(2, 20)))
        truth /= truth.sum()
        gamma = float(rng.choice([0.5, 1, 2, 3, 5]))
        guard = focal_guard(truth, gamma, tolerance=0)
        if guard.safe:
            continue
        repaired += 1
        optimum, level = focal_optimum(truth, guard.remedy)
        assert level <= 1 + 1e-9
        unfocused = np.array(guard.remedy) == 0
        assert (optimum[unfocused] >= truth[unfocused] * (1 - 1e-9)).all()
    assert repaired > 300


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=12), st.floats(0, 6))
def test_calibration_undoes_the_focal_loss(shares, gamma):
    truth = np.array(shares) / np.sum(shares)
    optimum, level = focal_optimum(truth, gamma)
    assert optimum.sum() == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(calibrate_focal(optimum, gamma), truth, rtol=1e-5)
    assert (np.diff(optimum[np.argsort(truth)]) >= -1e-12).all()
    if level <= 1:
        rarest = truth.argmin()
        assert optimum[rarest] >= truth[rarest] * (1 - 1e-9)


def test_no_focus_changes_nothing():
    optimum, level = focal_optimum(SIX, 0)
    np.testing.assert_allclose(optimum, SIX, rtol=1e-9)
    assert level == pytest.approx(1)
    assert focal_guard(SIX, 0).safe


def test_absent_classes_stay_absent():
    optimum, _ = focal_optimum((0.5, 0.0, 0.5), 2)
    np.testing.assert_allclose(optimum, (0.5, 0, 0.5))
    assert focal_optimum((0.0, 1.0), 2)[0].tolist() == [0, 1]
    assert focal_guard((0.0, 1.0), 2).safe


def test_calibration_of_volumes():
    maps = np.random.default_rng(0).dirichlet((1, 1, 1), size=(4, 5))
    assert calibrate_focal(maps, (2, 0, 1)).shape == maps.shape
    np.testing.assert_allclose(calibrate_focal(maps, 2).argmax(-1), maps.argmax(-1))


@pytest.mark.parametrize("frequencies", [(), (0, 0), (-1, 2), (np.nan, 1), ((0.5, 0.5),)])
def test_impossible_frequencies(frequencies):
    with pytest.raises(ConfigError, match="frequencies must be"):
        focal_guard(frequencies)


def test_impossible_gamma():
    with pytest.raises(ConfigError, match="gamma must be"):
        focal_guard(SIX, -1)
