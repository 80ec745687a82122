import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels import _elementary, one_vs_rest_cross_entropy, one_vs_rest_cross_entropy_backward


def case(channels, first, voxels, scale, seed=0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((channels, voxels))).astype(np.float32)
    target = rng.random((channels - first, voxels)) < rng.choice([0.02, 0.5])
    return logits, target, rng.standard_normal(target.shape).astype(np.float32)


@given(st.integers(2, 5), st.integers(0, 1), st.integers(0, 9), st.sampled_from([1, 20, 1000]), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_equals_naive_twin(naive, channels, first, voxels, scale, seed):
    logits, target, grad = case(channels, first, voxels, scale, seed)
    errors = one_vs_rest_cross_entropy(logits, target)
    assert errors.dtype == np.float32
    assert (errors >= 0).all()
    np.testing.assert_allclose(errors, naive.one_vs_rest_cross_entropy(logits, target), rtol=1e-5, atol=1e-6)
    back = one_vs_rest_cross_entropy_backward(grad, logits, target)
    assert back.dtype == np.float32
    expected = naive.one_vs_rest_cross_entropy_backward(grad, logits, target)
    np.testing.assert_allclose(back, expected, rtol=1e-5, atol=5e-6)


def test_blocks_do_not_show(naive):
    logits, target, grad = case(3, 1, 1100, 6)
    expected = naive.one_vs_rest_cross_entropy(logits, target)
    np.testing.assert_allclose(one_vs_rest_cross_entropy(logits, target), expected, rtol=1e-5, atol=1e-6)
    expected = naive.one_vs_rest_cross_entropy_backward(grad, logits, target)
    back = one_vs_rest_cross_entropy_backward(grad, logits, target)
    np.testing.assert_allclose(back, expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("layout", ["F", "read-only"])
def test_memory_order_does_not_matter(layout):
    arrays = case(3, 1, 12, 2)
    arrays = tuple(array.reshape(-1, 3, 4) for array in arrays)
    others = tuple(np.asfortranarray(array) if layout == "F" else array.copy() for array in arrays)
    for other in others:
        other.flags.writeable = layout == "F"
    np.testing.assert_array_equal(one_vs_rest_cross_entropy(*others[:2]), one_vs_rest_cross_entropy(*arrays[:2]))
    pair = [one_vs_rest_cross_entropy_backward(a[2], *a[:2]) for a in (arrays, others)]
    np.testing.assert_array_equal(*pair)


def test_results_go_where_they_are_wanted():
    logits, target, grad = case(3, 1, 7, 2)
    errors, back = np.empty_like(grad), np.empty_like(logits)
    assert one_vs_rest_cross_entropy(logits, target, errors) is errors
    assert one_vs_rest_cross_entropy_backward(grad, logits, target, back) is back
    np.testing.assert_array_equal(errors, one_vs_rest_cross_entropy(logits, target))
    np.testing.assert_array_equal(back, one_vs_rest_cross_entropy_backward(grad, logits, target))


def test_not_a_number_stays_in_its_voxel():
    logits, target, grad = case(3, 1, 5, 2)
    for channel in range(3):
        spoilt = logits.copy()
        spoilt[channel, 2] = np.nan
        for result in (
            one_vs_rest_cross_entropy(spoilt, target),
            one_vs_rest_cross_entropy_backward(grad, spoilt, target),
        ):
            np.testing.assert_array_equal(np.isnan(result).all(0), np.arange(5) == 2)
            np.testing.assert_array_equal(np.isnan(result).any(0), np.arange(5) == 2)


def test_exponential_and_logarithm_keep_their_digits():
    places = np.append(np.linspace(-87, 0, 2000), -200).astype(np.float32)
    exact = np.exp(np.maximum(places, -87), dtype=np.float64)
    np.testing.assert_allclose([_elementary.exp32(x) for x in places], exact, rtol=2e-7)
    exact = np.expm1(np.maximum(places, -87), dtype=np.float64)
    np.testing.assert_allclose([_elementary.expm1_32(x) for x in places], exact, rtol=2e-7)
    assert _elementary.expm1_32(np.float32(-1e-8)) == np.float32(-1e-8)
    numbers = np.geomspace(1e-37, 3e38, 2001).astype(np.float32)
    exact = np.log(numbers, dtype=np.float64)
    np.testing.assert_allclose([_elementary.log32(x) for x in numbers], exact, rtol=2e-7)
    assert _elementary.log32(np.float32(1)) == 0


@pytest.mark.parametrize(
    ("logits", "target", "error", "words"),
    [
        (np.ones((2, 3)), np.ones((1, 3), bool), TypeError, "float32.*float64"),
        (np.ones((2, 3), np.float32), np.ones((1, 3), np.uint8), TypeError, "bool.*uint8"),
        (np.ones((2, 3), np.float32), np.ones((1, 4), bool), ValueError, r"\(2, 3\) and \(1, 4\)"),
        (np.ones((1, 3), np.float32), np.ones((1, 3), bool), ValueError, r"\(1, 3\)"),
        (np.ones((4, 3), np.float32), np.ones((2, 3), bool), ValueError, r"\(4, 3\) and \(2, 3\)"),
    ],
)
def test_bad_input_is_refused(logits, target, error, words):
    with pytest.raises(error, match=words):
        one_vs_rest_cross_entropy(logits, target)


def test_unfit_places_and_gradients_are_refused():
    logits, target, grad = case(3, 1, 5, 2)
    with pytest.raises(ValueError, match=r"contiguous float32 \(2, 5\), got float32 \(3, 5\)"):
        one_vs_rest_cross_entropy(logits, target, np.empty_like(logits))
    with pytest.raises(ValueError, match=r"float32 \(2, 5\), got float64"):
        one_vs_rest_cross_entropy_backward(grad.astype(float), logits, target)
