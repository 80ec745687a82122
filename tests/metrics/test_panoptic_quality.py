import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics import panoptic_quality
from numba_kernels import connected_components

MATCHERS = ("greedy", "hungarian", "merge")
pairs = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def _parts(mask):
    components, count = connected_components(mask)
    return [components == number for number in range(1, count + 1)]


def _score(pred, ref, metric):
    both, either = (pred & ref).sum(), (pred | ref).sum()
    return both / either if metric == "iou" else 2 * both / (pred.sum() + ref.sum())


def _candidates(found, truth, metric, threshold):
    scores = {(i, j): _score(p, r, metric) for i, p in enumerate(found) for j, r in enumerate(truth) if (p & r).any()}
    return {pair: score for pair, score in scores.items() if score >= threshold}


def _naive_greedy(found, truth, metric, threshold):
    scores, chosen = _candidates(found, truth, metric, threshold), []
    for i, j in sorted(scores, key=lambda pair: (-scores[pair], pair)):
        if all(i != a and j != b for a, b in chosen):
            chosen.append((i, j))
    return {j: [i] for i, j in chosen}


def _largest_sum(found, truth, metric, threshold):
    """Of all one-to-one assignments, tried one by one."""
    scores, best = _candidates(found, truth, metric, threshold), 0.0
    small, large = sorted((range(len(found)), range(len(truth))), key=len)
    swapped = len(found) > len(truth)
    for order in itertools.permutations(large, len(small)):
        chosen = [(b, a) if swapped else (a, b) for a, b in zip(small, order, strict=True)]
        best = max(best, sum(scores.get(pair, 0.0) for pair in chosen))
    return best


@settings(max_examples=80, deadline=None)
@given(pairs, st.sampled_from(("iou", "dsc")), st.sampled_from((0.0, 0.1, 0.3, 0.5, 1.0)))
def test_greedy_equals_naive(pair, metric, threshold):
    found, truth = map(_parts, pair)
    expected = _naive_greedy(found, truth, metric, threshold)
    quality = panoptic_quality(*pair, metric=metric, threshold=threshold)
    assert {each.reference - 1: [i - 1 for i in each.prediction] for each in quality.pairs} == expected
    assert quality.false_positives == len(found) - len(expected)
    assert quality.false_negatives == len(truth) - len(expected)


@settings(max_examples=80, deadline=None)
@given(pairs, st.sampled_from(("iou", "dsc")), st.sampled_from((1e-6, 0.1, 0.3)))
def test_hungarian_has_the_largest_sum(pair, metric, threshold):
    found, truth = map(_parts, pair)
    if max(len(found), len(truth)) > 5:
        return
    quality = panoptic_quality(*pair, metric=metric, threshold=threshold, matcher="hungarian")
    total = sum(getattr(each, metric) for each in quality.pairs)
    assert total == pytest.approx(_largest_sum(found, truth, metric, threshold))
    assert all(getattr(each, metric) >= threshold for each in quality.pairs)


@settings(max_examples=80, deadline=None)
@given(pairs, st.sampled_from(MATCHERS), st.sampled_from((0.1, 0.5)))
def test_pairs_describe_real_voxels(pair, matcher, threshold):
    found, truth = map(_parts, pair)
    quality = panoptic_quality(*pair, matcher=matcher, threshold=threshold)
    used = [number for each in quality.pairs for number in each.prediction]
    assert len(used) == len(set(used))
    for each in quality.pairs:
        union = np.logical_or.reduce([found[number - 1] for number in each.prediction])
        assert each.iou == pytest.approx(_score(union, truth[each.reference - 1], "iou"))
        assert each.dsc == pytest.approx(_score(union, truth[each.reference - 1], "dsc"))
    assert quality.false_positives == len(found) - len(used)
    assert quality.false_negatives == len(truth) - len(quality.pairs)


def test_hungarian_finds_more_than_greedy():
    """The left prediction suits both lesions; greedy spends it on the one that has another choice."""
    ref, pred = np.zeros((2, 1, 20), bool)
    ref[0, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]] = True  # lesions of 5 and 7
    pred[0, [2, 3, 4, 5, 6, 7, 8, 9, 11, 12]] = True  # findings of 8 and 2
    greedy, optimal = (panoptic_quality(pred, ref, metric="dsc", threshold=0.1, matcher=m) for m in MATCHERS[:2])
    assert (greedy.true_positives, optimal.true_positives) == (1, 2)


def test_merging_joins_a_lesion_that_was_found_in_two_parts():
    ref, pred = np.zeros((2, 1, 12), bool)
    ref[0, 1:10], pred[0, [1, 2, 3, 4, 5, 7, 8, 9]] = True, True
    one, both = (panoptic_quality(pred, ref, matcher=matcher) for matcher in ("greedy", "merge"))
    assert (one.sq_iou, one.false_positives) == (5 / 9, 1)
    assert (both.sq_iou, both.false_positives, both.pairs[0].prediction) == (8 / 9, 0, (1, 2))


@pytest.mark.parametrize("matcher", MATCHERS)
def test_empty_cases(matcher):
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    nothing = panoptic_quality(empty, empty, matcher=matcher)
    assert all(map(math.isnan, (nothing.rq, nothing.sq_iou, nothing.sq_dsc, nothing.pq, nothing.pq_dsc)))
    missed, invented = (panoptic_quality(*pair, matcher=matcher) for pair in ((empty, full), (full, empty)))
    assert (missed.rq, missed.sq_iou, missed.pq_dsc, missed.false_negatives) == (0, 0, 0, 1)
    assert (invented.rq, invented.sq_dsc, invented.pq, invented.false_positives) == (0, 0, 0, 1)


def test_connectivity_decides_what_is_one_lesion():
    ref = np.eye(4, dtype=bool)
    assert panoptic_quality(ref, ref).true_positives == 1
    assert panoptic_quality(ref, ref, connectivity=4).true_positives == 4


@pytest.mark.parametrize("wrong", [{"metric": "nsd"}, {"matcher": "best"}, {"threshold": 1.5}, {"threshold": math.nan}])
def test_wrong_words(wrong):
    mask = np.ones((2, 2), bool)
    with pytest.raises(ConfigError, match=r"must be one of|expected a score from 0 to 1"):
        panoptic_quality(mask, mask, **wrong)


def test_wrong_masks():
    with pytest.raises(ValueError, match="expected bool masks, got uint8"):
        panoptic_quality(np.ones((2, 2), np.uint8), np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="differ in shape"):
        panoptic_quality(np.ones((2, 3), bool), np.ones((2, 2), bool))
