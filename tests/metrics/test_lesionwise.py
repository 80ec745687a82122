import math

import numpy as np
import pytest

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics import (
    BRATS2023_RULES,
    Brats2023Rule,
    hd95,
    lesionwise_brats2023,
    lesionwise_brats_mets2026,
    surface_element_hd95,
)

MM = (1.0, 1.0, 1.0)
MET, GLI = BRATS2023_RULES["MET"], BRATS2023_RULES["GLI"]


def _box(*sides, shape=(12, 12, 12)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


# ---------------------------------------------------------------------------------------------------------- rules 2023


def test_rules_are_those_of_the_tasks():
    assert {task: (rule.dilation, rule.volume_threshold) for task, rule in BRATS2023_RULES.items()} == {
        "GLI": (3, 50),
        "SSA": (3, 50),
        "PED": (3, 50),
        "MEN": (1, 50),
        "MET": (1, 2),
    }
    with pytest.raises(TypeError):
        BRATS2023_RULES["GLI"] = MET


def test_dilation_merges_lesions_that_lie_near():
    ref = _box((2, 5), (2, 5), (2, 5)) | _box((2, 5), (2, 5), (7, 10))  # two voxels apart
    assert len(lesionwise_brats2023(ref, ref, MM, MET).lesions) == 1
    apart = _box((2, 5), (2, 5), (1, 4)) | _box((2, 5), (2, 5), (8, 11))
    assert len(lesionwise_brats2023(apart, apart, MM, MET).lesions) == 2
    assert len(lesionwise_brats2023(apart, apart, MM, GLI).lesions) == 1


def test_a_finding_near_the_lesion_is_no_false_positive():
    ref, pred = _box((2, 6), (2, 6), (2, 6)), _box((2, 6), (2, 6), (6, 8))  # beside it, no common voxel
    scores = lesionwise_brats2023(pred, ref, MM, MET)
    assert (scores.true_positives, scores.false_positives, scores.dice) == (1, 0, 0)
    far = lesionwise_brats2023(_box((2, 6), (2, 6), (7, 9)), ref, MM, MET)
    assert (far.true_positives, far.false_negatives, far.false_positives) == (0, 1, 1)
    assert far.hd95_mm == 374


def test_one_large_finding_serves_several_lesions():
    ref = _box((2, 5), (2, 5), (1, 4)) | _box((2, 5), (2, 5), (8, 11))
    pred = _box((2, 5), (2, 5), (1, 11))
    scores = lesionwise_brats2023(pred, ref, MM, MET)
    assert [lesion.dice for lesion in scores.lesions] == [2 * 27 / (27 + 90)] * 2
    assert scores.false_positives == 0


def test_small_lesions_leave_the_mean_but_keep_their_findings():
    small = _box((2, 4), (2, 3), (2, 3))  # 2 voxels
    found, missed = (lesionwise_brats2023(pred, small, MM, MET) for pred in (small, np.zeros_like(small)))
    assert (found.counted, found.false_positives, found.dice, found.hd95_mm) == ((), 0, 1, 0)
    assert (missed.dice, missed.hd95_mm) == (1, 0)  # the challenge forgives it
    assert lesionwise_brats2023(small, small, (1, 1, 2), MET).true_positives == 1  # 4 mm³


def test_size_of_a_false_positive_does_not_matter():
    ref = _box((1, 4), (1, 4), (1, 4))
    for false_positive in (_box((9, 10), (9, 10), (9, 10)), _box((7, 12), (7, 12), (7, 12))):
        scores = lesionwise_brats2023(ref | false_positive, ref, MM, MET)
        assert (scores.dice, scores.hd95_mm) == (0.5, 187)


def test_lesions_at_the_edge_of_the_image():
    ref = _box((0, 3), (0, 3), (0, 3), shape=(3, 3, 3))
    assert lesionwise_brats2023(ref, ref, MM, MET).dice == 1
    with pytest.raises(ConfigError, match="dilation 0: expected 1"):
        Brats2023Rule(0, 50)
    with pytest.raises(ConfigError, match="volume_threshold nan: expected"):
        Brats2023Rule(1, math.nan)


def test_the_plane_is_as_good_as_a_slice():
    rng = np.random.default_rng(3)
    pred, ref = rng.random((2, 24, 24)) < 0.08
    flat = lesionwise_brats2023(pred, ref, (1, 1), MET)
    thick = lesionwise_brats2023(pred[None], ref[None], (1, 1, 1), MET)
    assert [x.predictions for x in flat.lesions] == [x.predictions for x in thick.lesions]
    assert flat.dice == thick.dice


# ---------------------------------------------------------------------------------------------------------- rules 2026


def test_large_and_small_lesions_are_scored_apart():
    large, small = _box((1, 4), (1, 4), (1, 4)), _box((8, 10), (8, 10), (8, 10))
    both = lesionwise_brats_mets2026(large, large | small, MM)
    assert (both.dice, both.nsd, both.hd95_mm, both.large_f1, both.small_f1) == (1, 1, 0, 1, 0)
    alone = lesionwise_brats_mets2026(small, small, MM)
    assert (alone.small_f1, math.isnan(alone.dice), math.isnan(alone.large_f1)) == (1, True, True)


def test_a_false_positive_is_charged_twice_or_never():
    large, small = _box((1, 4), (1, 4), (1, 4)), _box((8, 10), (8, 10), (8, 10))
    false_positive = _box((6, 7), (1, 2), (1, 2))
    charged = lesionwise_brats_mets2026(large | small | false_positive, large | small, MM)
    assert (charged.dice, charged.hd95_mm) == (0.5, 373 / 2)
    assert charged.small_f1 == charged.large_f1 == 2 / 3
    free = lesionwise_brats_mets2026(false_positive, np.zeros_like(large), MM)
    assert free.false_positives == 1
    assert all(map(math.isnan, (free.dice, free.nsd, free.hd95_mm, free.large_f1, free.small_f1)))


def test_a_missed_large_lesion():
    large = _box((1, 4), (1, 4), (1, 4))
    scores = lesionwise_brats_mets2026(np.zeros_like(large), large, MM)
    assert (scores.dice, scores.nsd, scores.hd95_mm, scores.large_f1) == (0, 0, 373, 0)


def test_the_volume_threshold_is_in_mm3_and_included():
    lesion = _box((1, 3), (1, 3), (1, 6))  # 20 voxels
    assert len(lesionwise_brats_mets2026(lesion, lesion, MM).large) == 1
    assert len(lesionwise_brats_mets2026(lesion, lesion, (1, 1, 0.9)).large) == 0
    with pytest.raises(ConfigError, match="overlap_threshold -1: expected"):
        lesionwise_brats_mets2026(lesion, lesion, MM, overlap_threshold=-1)


@pytest.mark.parametrize("score", [lambda *a: lesionwise_brats2023(*a, MET), lesionwise_brats_mets2026])
def test_wrong_masks(score):
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(ValueError, match="expected 3 positive numbers"):
        score(mask, mask, (1, 1))
    with pytest.raises(ValueError, match="differ in shape"):
        score(mask[1:], mask, MM)
    with pytest.raises(ValueError, match="expected bool masks"):
        score(mask.astype(np.uint8), mask, MM)


# ------------------------------------------------------------------------------------------------- surface elements


def test_surface_elements_of_shifted_boxes():
    ref, pred = _box((3, 8), (3, 8), (3, 8)), _box((3, 8), (3, 8), (5, 10))
    assert surface_element_hd95(pred, ref, (1, 1, 0.5)) == 1
    assert surface_element_hd95(pred, ref, (3, 2, 0.5)) == 1
    assert surface_element_hd95(ref, ref, MM) == 0


def test_area_decides_what_the_worst_five_percent_are():
    """A thin spike has many border voxels but little surface."""
    ref = _box((5, 35), (5, 35), (5, 35), shape=(40, 40, 60))
    pred = ref | _box((20, 21), (20, 21), (35, 55), shape=ref.shape)
    assert surface_element_hd95(pred, ref, MM) == hd95(pred, ref, MM) == 0
    thick = ref | _box((15, 25), (15, 25), (35, 45), shape=ref.shape)
    assert surface_element_hd95(thick, ref, MM) == pytest.approx(hd95(thick, ref, MM), abs=1)
    assert surface_element_hd95(thick, ref, MM) > 3


def test_lengths_in_the_plane():
    ref = np.zeros((20, 20), bool)
    ref[5:15, 5:15] = True
    pred = ref.copy()
    pred[9:11, 15:18] = True  # a bump of 2 x 3 pixels: about 6 of 44 mm of outline
    assert surface_element_hd95(pred, ref, (1, 1)) == 3
    assert surface_element_hd95(ref, ref[::-1].copy(), (1, 1)) == 0


def test_surface_elements_of_empty_masks():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    assert math.isnan(surface_element_hd95(empty, empty, MM))
    assert surface_element_hd95(empty, full, MM) == surface_element_hd95(full, empty, MM) == math.inf
