"""What is drawn is what the formulas say: chi-square tests with fixed seeds, and patches that show their instance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.sampling import InstanceBalancedSampler, case_weights, find_instances, merge, patch_center

DRAWS = 20_000


def volume(*cubes, shape=(40, 40, 40)):
    labels = np.zeros(shape, np.uint8)
    for label, corner, side in cubes:
        labels[tuple(slice(at, at + side) for at in corner)] = label
    return labels


@pytest.fixture(scope="module")
def index():
    """Class 1 in all four cases, class 2 in one, class 3 in none; volumes from 1 to 8000 voxels."""
    maps = {
        "a": volume((1, (0, 0, 0), 20), (1, (30, 30, 30), 1), (2, (5, 5, 30), 3)),
        "b": volume((1, (1, 1, 1), 2), (1, (38, 38, 38), 2)),
        "c": volume((1, (9, 9, 9), 5)),
        "d": volume((1, (35, 0, 35), 5)),
    }
    return merge([find_instances(labels, [1, 2, 3], case=case) for case, labels in maps.items()])


def p_value(observed, probabilities):
    expected = np.asarray(probabilities) * np.sum(observed)
    return stats.chisquare(observed, expected).pvalue


@pytest.mark.parametrize("random", [np.random.default_rng, np.random.RandomState])
@pytest.mark.parametrize(("exponent", "share"), [(1, 0.5), (0, 0), (0.5, 1), (1, 1)])
def test_R46_classes_instances_and_cases_follow_the_formula(index, exponent, share, random):
    sampler = InstanceBalancedSampler(index, class_exponent=exponent, instance_share=share)
    rng = random(46)
    draws = [sampler.draw((8, 8, 8), rng) for _ in range(DRAWS)]

    cases_with = np.array([4, 1])
    of_class = cases_with ** -float(exponent) / (cases_with ** -float(exponent)).sum()
    expected = np.empty(len(index))
    for number in (0, 1):
        volumes = index.volumes[index.class_of == number]
        mixed = (1 - share) * volumes / volumes.sum() + share / len(volumes)
        expected[index.class_of == number] = of_class[number] * mixed
    counts = np.bincount([draw.instance for draw in draws], minlength=len(index))
    assert p_value(counts, expected) > 0.001
    assert p_value([sum(draw.region == (c,) for draw in draws) for c in (1, 2)], of_class) > 0.001
    of_case = [expected[index.case_of == number].sum() for number in range(4)]
    assert p_value([sum(draw.case == case for draw in draws) for case in "abcd"], of_case) > 0.001


def test_offsets_are_uniform_and_the_center_is_no_cue(index):
    sampler = InstanceBalancedSampler(index, instance_share=1)
    rng = np.random.default_rng(0)
    single = next(k for k in range(len(index)) if index.volumes[k] == 1)
    draws = [draw for draw in (sampler.draw((16, 8, 2), rng) for _ in range(DRAWS)) if draw.instance == single]
    moved = np.array([draw.center for draw in draws]) - 30
    assert not moved[:, 2].any()
    for axis, reach in enumerate((5, 2)):  # floor(0.7 * (P - 1) / 2)
        counts = np.bincount(moved[:, axis] + reach, minlength=2 * reach + 1)
        assert p_value(counts, np.full(2 * reach + 1, 1 / (2 * reach + 1))) > 0.001


def test_any_remembered_voxel_is_drawn_equally_often():
    index = find_instances(volume((1, (4, 4, 4), 3)))
    sampler = InstanceBalancedSampler(index, offset=0)
    rng = np.random.default_rng(0)
    centers = [sampler.draw((3, 3, 1), rng).center[2] for _ in range(DRAWS)]  # the other axes fit exactly
    assert p_value(np.bincount(centers)[4:7], np.full(3, 1 / 3)) > 0.001


@given(data=st.data())
def test_an_instance_that_fits_is_shown_whole(data):
    sides = st.integers(1, 20)
    size, extent, offset = data.draw(sides), data.draw(sides), data.draw(st.floats(0, 1))
    begin = data.draw(st.integers(-5, 30))
    voxel = data.draw(st.integers(begin, begin + extent - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    (center,) = patch_center([voxel], [(begin, begin + extent)], [size], rng, offset)
    start = center - size // 2
    if extent <= size:
        assert start <= begin
        assert begin + extent <= start + size
    else:
        assert center == voxel
    assert start <= voxel < start + size


def test_sixty_small_lesions_beside_a_large_one_all_get_their_turn():
    corners = [(a, b, c) for a in (22, 26, 30, 34, 38) for b in range(0, 40, 10) for c in (0, 15, 30)]
    index = find_instances(volume((1, (0, 0, 0), 20), *((1, corner, 1) for corner in corners)))
    sampler = InstanceBalancedSampler(index)
    rng = np.random.default_rng(0)
    counts = np.bincount([sampler.draw((8, 8, 8), rng).instance for _ in range(5000)], minlength=61)
    assert counts.min() >= 20
    assert counts[0] == pytest.approx(5000 * (0.5 * 8000 / 8060 + 0.5 / 61), rel=0.05)


def test_repeat_factors(index):
    weights = case_weights(index, 1.0)
    np.testing.assert_allclose(weights, np.array([2, 1, 1, 1]) / 5)  # class 2 in a quarter of the cases
    np.testing.assert_allclose(case_weights(index, 0.25), np.full(4, 0.25))
    empty = merge([index, find_instances(np.zeros((3, 3, 3), np.uint8), [1, 2, 3])])
    assert case_weights(empty, 1.0)[-1] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_exponent": -1}, "class_exponent"),
        ({"class_exponent": float("nan")}, "class_exponent"),
        ({"instance_share": 1.1}, "instance_share must be between 0 and 1, got 1.1"),
        ({"offset": -0.1}, "offset"),
    ],
)
def test_impossible_settings(index, options, message):
    with pytest.raises(ConfigError, match=message):
        InstanceBalancedSampler(index, **options)


def test_nothing_to_draw(index):
    with pytest.raises(ConfigError, match="no instance"):
        InstanceBalancedSampler(find_instances(np.zeros((2, 2), np.uint8)))
    with pytest.raises(ConfigError, match="threshold"):
        case_weights(index, 0)


def test_same_seed_same_draws(index):
    sampler = InstanceBalancedSampler(index)
    one, two, other = ([sampler.draw((8, 8, 8), np.random.default_rng(s)) for _ in range(3)] for s in (1, 1, 2))
    assert one == two != other
