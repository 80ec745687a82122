"""The lesion phantom: its statistics are those of real cohorts, and its truth is the truth."""

import math

import numpy as np
import pytest
from scipy.ndimage import label

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.phantoms import LesionPhantom

SMALL = LesionPhantom(shape=(40, 36, 32))


def diameter(volume):
    return (6 * volume / math.pi) ** (1 / 3)


@pytest.fixture(scope="module")
def cases():
    return [LesionPhantom().training_case(seed=1, index=index) for index in range(6)]


def test_lesion_volumes_match_the_cohorts():
    # A head that all lesions fit into. 4,000 draws: the standard error of a share near 0.22 is 0.007.
    phantom, rng = LesionPhantom(shape=(240, 240, 240), spacing=(1, 1, 1)), np.random.default_rng(0)
    volumes = np.array([phantom.draw_volume(rng) for _ in range(4000)])
    assert volumes.min() >= 2
    assert volumes.max() <= 30_000
    small = np.mean([diameter(volume) < 3 for volume in volumes])
    assert small == pytest.approx(0.22 - 0.03, abs=0.04)  # the cut at 2 mm³ takes the smallest away
    assert diameter(np.median(volumes)) == pytest.approx(5.2, abs=0.3)
    assert 350 < volumes.mean() < 700


def test_lesion_counts_match_the_cohorts():
    rng = np.random.default_rng(0)
    counts = np.array([LesionPhantom().draw_count(rng) for _ in range(4000)])
    assert counts.min() == 1
    assert counts.max() <= 60
    assert counts.mean() == pytest.approx(6.8, abs=0.8)
    assert np.median(counts) == 3
    assert np.mean(counts == 1) == pytest.approx(0.31, abs=0.04)


def test_each_component_is_one_listed_lesion(cases):
    for case in cases:
        components, count = label(case.label, np.ones((3, 3, 3)))
        assert count == len(case.truth["lesions"]) == case.instances.max()
        for lesion in case.truth["lesions"]:
            own = case.instances == lesion["id"]
            assert own.sum() == lesion["voxels"]
            assert len(np.unique(components[own])) == 1


def test_lesions_lie_where_and_are_as_large_as_the_truth_says(cases):
    large = 0
    for case in cases:
        for lesion in case.truth["lesions"]:
            number = lesion["id"]
            centre = np.argwhere(case.instances == number)[:, ::-1].mean(axis=0) * 1.5
            assert np.abs(centre - lesion["centre_mm"]).max() < 1.5 + 0.05 * lesion["diameter_mm"]
            assert lesion["voxel_volume_mm3"] == pytest.approx(lesion["voxels"] * 1.5**3)
            if lesion["volume_mm3"] > 300:
                large += 1
                tolerance = 0.03 if lesion["volume_mm3"] > 2000 else 0.1
                assert lesion["voxel_volume_mm3"] == pytest.approx(lesion["volume_mm3"], rel=tolerance)
    assert large > 5


def test_analytic_volume_agrees_with_the_surface():
    phantom = LesionPhantom(volume_range_mm3=(2000, 2100), median_mm3=2050, count_range=(1, 1))
    lesion = phantom.training_case(0, 0).truth["lesions"][0]
    assert math.prod(lesion["semi_axes_mm"]) * 4 / 3 * math.pi == pytest.approx(lesion["volume_mm3"], rel=0.1)
    assert 2000 <= lesion["volume_mm3"] <= 2100


def test_gap_between_lesions_is_kept():
    phantom = LesionPhantom(shape=(48, 48, 48), spacing=(3.0, 1.0, 1.0), count_median=30, count_log_sd=0)
    instances = phantom.training_case(0, 0).instances
    assert instances.max() > 8
    points = [np.argwhere(instances == number) for number in range(1, instances.max() + 1)]
    gaps = [np.abs(a[:, None] - b[None]).max(axis=-1).min() - 1 for n, a in enumerate(points) for b in points[:n]]
    assert min(gaps) >= phantom.min_gap


def test_lesions_are_brighter_than_their_surroundings(cases):
    for case in cases:
        inside, brain = case.image[case.label == 1], case.image[(case.image > 300) & (case.label == 0)]
        assert np.median(inside) > np.median(brain) + 50


def test_same_seed_same_voxels():
    one, same = SMALL.training_case(5, 2), SMALL.training_case(5, 2)
    np.testing.assert_array_equal(one.image, same.image)
    assert one.truth == same.truth
    for other in (SMALL.training_case(5, 3), SMALL.training_case(6, 2), SMALL.test_case(5, 2)):
        assert (other.image != one.image).mean() > 0.5


def test_cases_without_lesions_are_made_when_asked_for():
    case = LesionPhantom(shape=(32, 32, 32), empty_share=1.0).training_case(0, 0)
    assert not case.label.any()
    assert case.truth["lesions"] == []
    rng = np.random.default_rng(0)
    counts = [LesionPhantom(empty_share=0.3).draw_count(rng) for _ in range(1000)]
    assert counts.count(0) / 1000 == pytest.approx(0.3, abs=0.06)


def test_axes_of_the_file_are_x_y_z():
    case = LesionPhantom(shape=(24, 30, 36), spacing=(3.0, 2.0, 1.0)).training_case(0, 0)
    assert case.image.shape == case.label.shape == case.instances.shape == (36, 30, 24)
    assert np.diag(case.affine).tolist() == [1.0, 2.0, 3.0, 1.0]


@pytest.mark.parametrize(
    "numbers",
    [
        {"shape": (8, 64, 64)},
        {"spacing": (0.0, 1.0, 1.0)},
        {"volume_range_mm3": (5.0, 4.0)},
        {"volume_range_mm3": (20_000.0, 30_000.0)},
        {"count_range": (0, 3)},
        {"empty_share": 1.5},
        {"supersampling": 9},
        {"noise": float("nan")},
    ],
)
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(ConfigError, match=next(iter(numbers))):
        LesionPhantom(**numbers)
