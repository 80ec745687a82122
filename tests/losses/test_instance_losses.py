"""All losses over connected components against explicit masks, worked numbers, and what their documents claim."""

import gc

import numpy as np
import pytest
import torch

from nnunet_imbal import build_loss
from nnunet_imbal.losses import (
    blob_ce_loss,
    blob_dice_loss,
    cat_tversky_loss,
    cc_ce_loss,
    cc_dice_ce_loss,
    cc_dice_loss,
    instance_ce_loss,
    inverse_size_ce_loss,
    inverse_size_dice_loss,
    lesion_mil_loss,
)
from nnunet_imbal.ops import component_cells, component_labels

EXACT = {"smooth_nr": 0.0, "smooth_dr": 0.0}
WEIGHTINGS = ("none", "balanced", "foreground")
SPACING = {2: (1.0, 1.5166), 3: (1.0, 1.5166, 0.8775)}  # hardly any voxel is equally near to two components

# name -> (function, takes the cross-entropy, options to try)
LOSSES = {
    "cc_dice": (cc_dice_loss, False, [{"weighting": w} for w in WEIGHTINGS]),
    "cc_ce": (cc_ce_loss, True, [{"weighting": w} for w in WEIGHTINGS]),
    "cc_dice_ce": (cc_dice_ce_loss, True, [{"weighting": w} for w in WEIGHTINGS]),
    "blob_dice": (blob_dice_loss, False, [{"weighting": w} for w in WEIGHTINGS]),
    "blob_ce": (blob_ce_loss, True, [{"weighting": w} for w in WEIGHTINGS]),
    "instance_ce": (instance_ce_loss, True, [{}]),
    "inverse_size_ce": (inverse_size_ce_loss, True, [{"clip": None}, {"clip": (1.0, 20.0)}]),
    "inverse_size_dice": (inverse_size_dice_loss, False, [{"clip": None}, {"squared_pred": False}]),
    "cat_tversky": (cat_tversky_loss, False, [{}]),
    "lesion_mil": (lesion_mil_loss, False, [{}]),
}
CASES = [
    pytest.param(name, options, id=" ".join([name, *map(str, options.values())]))
    for name, (_, _, variants) in LOSSES.items()
    for options in variants
]
every_loss = pytest.mark.parametrize("name", LOSSES)


def cross_entropy(probs, target):
    return -torch.where(target, probs, 1 - probs).clamp(min=1e-7).log()


def call(name, probs, target, **options):
    function, takes_errors, _ = LOSSES[name]
    return function(cross_entropy(probs, target) if takes_errors else probs, target, **options)


def call_with_mask(name, probs, target, mask, **options):
    """As the base class does it: 0 where ignored."""
    function, takes_errors, _ = LOSSES[name]
    target = target & mask
    values = cross_entropy(probs, target) if takes_errors else probs
    if name not in ("cat_tversky", "lesion_mil"):
        options["mask"] = mask
    return function(values.masked_fill(~mask, 0), target, **options)


def expected(naive, name, probs, target, mask, options):
    """Value by explicit masks."""
    values = []
    for p_sample, y_sample, (valid,) in zip(probs, target & mask, mask, strict=True):
        pairs = zip(p_sample, y_sample, strict=True)
        cases = [naive.Case(p * valid, cross_entropy(p, y) * valid, y, valid, **options) for p, y in pairs]
        values.append([getattr(naive, name)(case) for case in cases])
    found = naive.average(values)
    return probs.sum() * 0 if found is None else found


@pytest.mark.parametrize(("name", "options"), CASES)
def test_R04_values_and_gradients_equal_explicit_masks(naive_instances, rng, name, options):
    compared = 0
    while compared < 10:
        ndim = int(rng.integers(2, 4))
        shape = tuple(rng.integers(3, 13 if ndim == 2 else 8, ndim))
        target = torch.from_numpy(rng.random((2, 2, *shape)) < rng.choice([0.0, 0.03, 0.2]))
        mask = torch.from_numpy(rng.random((2, 1, *shape)) < rng.choice([0.8, 1.0]))
        connectivity = int(rng.choice({2: [4, 8], 3: [6, 18, 26]}[ndim]))
        where = {"connectivity": connectivity, "spacing": SPACING[ndim]}
        probs = torch.from_numpy(rng.uniform(0.02, 0.98, target.shape)).requires_grad_()
        twin = probs.detach().clone().requires_grad_()
        try:
            naive = expected(naive_instances, name, twin, target, mask, options | where)
        except naive_instances.Tie:
            continue
        compared += 1
        where = where if name.startswith("cc") else {"connectivity": connectivity}
        value = call_with_mask(name, probs, target, mask, **where, **options)
        assert value.item() == pytest.approx(naive.item(), rel=1e-12, abs=1e-14)
        value.backward()
        naive.backward()
        torch.testing.assert_close(probs.grad, twin.grad, rtol=1e-10, atol=1e-13)
        assert not probs.grad[~mask.expand_as(probs)].any()


class TestOneRow:
    """One row, one class; numbers worked out from the definitions."""

    probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.0, 0.1], dtype=torch.float64).reshape(1, 1, 1, 8)
    target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8) > 0

    @pytest.mark.parametrize(
        ("name", "options", "value"),
        [
            ("blob_dice", EXACT, 0.4374307863),
            ("blob_dice", {}, 0.4374290149),
            ("blob_dice", {"smooth_nr": 1.0, "smooth_dr": 1.0}, 0.3134510043),
            ("blob_dice", {**EXACT, "compat": "released"}, 0.5376344086),
            ("blob_dice", {"compat": "released"}, 0.5376328647),
            ("blob_ce", {}, 0.2317054967),
            ("cc_ce", {}, 0.2714672654),
            ("cc_dice_ce", EXACT, 0.6389886329),
            ("cc_dice", {**EXACT, "weighting": "balanced"}, 0.3523809524),
            ("cc_ce", {"weighting": "balanced"}, 0.4031123878),
            ("cc_dice", {**EXACT, "weighting": "foreground"}, 0.3086770982),
            ("inverse_size_dice", {**EXACT, "clip": None}, 0.1549295775),
            ("inverse_size_dice", {**EXACT, "clip": None, "squared_pred": False}, 0.2814371257),
            ("inverse_size_ce", {"clip": None}, 0.4351387890),
            ("cat_tversky", EXACT, 0.2752013654),
            ("lesion_mil", {}, 0.5108256238),
        ],
    )
    def test_R05_value(self, name, options, value):
        # The voxel of probability 0 is no lesion, so the limit of the logarithm does not show up to 1e-7.
        assert call(name, self.probs, self.target, **options).item() == pytest.approx(value, abs=2e-8)

    def test_blob_dice_and_ce_are_the_published_sum(self):
        both = sum(call(name, self.probs, self.target, **EXACT_OF[name]) for name in ("blob_dice", "blob_ce"))
        assert both.item() == pytest.approx(0.6691362830, abs=2e-8)

    def test_R05_gradient_of_blob(self):
        probs = self.probs.clone().requires_grad_()
        blob_dice_loss(probs, self.target, **EXACT).backward()
        first, second, rest = -0.146024878, -0.385487528, 0.177236209
        expected = [first, first, rest, rest, second, rest, rest, rest]
        np.testing.assert_allclose(probs.grad.flatten().numpy(), expected, atol=1e-9)

    @pytest.mark.parametrize("name", ["blob_dice", "cc_dice", "cat_tversky", "lesion_mil", "inverse_size_dice"])
    def test_numbering_does_not_matter(self, name):
        word = "cells" if name == "cc_dice" else "labels"
        ids = component_cells(self.target) if name == "cc_dice" else component_labels(self.target)
        swapped = torch.where(ids == 0, 0, 3 - ids)
        gaps = torch.where(ids == 2, 7, ids)
        expected = call(name, self.probs, self.target).item()
        for numbering in (ids, swapped, gaps):
            assert call(name, self.probs, self.target, **{word: numbering}).item() == pytest.approx(expected, rel=1e-12)

    def test_balanced_dice_is_a_function_of_two_rates(self):
        rates = torch.tensor([[0.8, 0.3], [0.4, 0.1]], dtype=torch.float64)  # mean p inside and outside, cell by cell
        inside, outside = rates.unbind(1)
        closed = (1 - 2 * inside / (1 + inside + outside)).mean()
        value = cc_dice_loss(self.probs, self.target, weighting="balanced", **EXACT)
        assert value.item() == pytest.approx(closed.item(), rel=1e-12)


EXACT_OF = {"blob_dice": EXACT, "blob_ce": {}}


class TestTwoClasses:
    """One row, two classes, one against the rest."""

    labels = torch.tensor([1, 1, 0, 0, 1, 0, 2, 2, 2, 0]).reshape(1, 1, 1, 10)
    probs = torch.tensor(
        [
            [0.1, 0.2, 0.6, 0.8, 0.5, 0.7, 0.2, 0.1, 0.3, 0.6],
            [0.8, 0.7, 0.3, 0.1, 0.4, 0.1, 0.1, 0.1, 0.0, 0.2],
            [0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.7, 0.8, 0.7, 0.2],
        ],
        dtype=torch.float64,
    ).reshape(1, 3, 1, 10)

    @pytest.mark.parametrize(
        ("name", "classes", "pooled"),
        [
            ("blob_dice", [0.4851778656, 0.2786885246], 0.4163480853),
            ("cc_dice", [0.4052631579, 0.2786885246], 0.3630716135),
        ],
    )
    def test_R05_each_class_their_mean_and_the_pool(self, name, classes, pooled):
        options = {"to_onehot_y": True, **EXACT}
        each = build_loss(name, **options, reduction="none")(self.probs, self.labels)
        np.testing.assert_allclose(each[0].numpy(), classes, atol=1e-10)
        assert build_loss(name, **options)(self.probs, self.labels).item() == pytest.approx(np.mean(classes), abs=1e-10)
        heavier = build_loss(name, **options, weight=[2, 1])(self.probs, self.labels).item()
        assert heavier == pytest.approx(pooled, abs=1e-10)  # with 2 and 1 lesions the pool weighs classes 2 to 1

    @every_loss
    def test_an_absent_class_changes_nothing(self, name):
        loss = build_loss(name, to_onehot_y=True)
        more = torch.cat([self.probs, torch.full((1, 1, 1, 10), 0.3)], dim=1)
        assert loss(more, self.labels).item() == pytest.approx(loss(self.probs, self.labels).item(), rel=1e-12)


class TestPlane:
    """Three components in five rows of six voxels, no ties."""

    target = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    target[..., :2, :2] = target[..., 2, 5] = target[..., 4, 2] = True
    probs = torch.full((1, 1, 5, 6), 0.1, dtype=torch.float64)
    probs[..., :2, :2] = probs[..., 2, 5] = 0.5
    probs[..., 4, 2] = 0.0

    def test_R05_values(self):
        assert blob_dice_loss(self.probs, self.target, **EXACT).item() == pytest.approx(0.7557997558, abs=1e-10)
        errors = cross_entropy(self.probs, self.target)
        assert cc_dice_ce_loss(errors, self.target, **EXACT).item() == pytest.approx(1.5224930110, abs=1e-6)
        blob = blob_dice_loss(self.probs, self.target, **EXACT) + blob_ce_loss(errors, self.target)
        assert blob.item() == pytest.approx(1.1104904033, abs=1e-9)


@pytest.mark.parametrize("smooth", [1e-5, 1.0])
def test_released_blob_loss_is_reproduced(naive_instances, rng, smooth):
    target = torch.from_numpy(rng.random((1, 1, 7, 8, 9)) < 0.05)
    logits = torch.from_numpy(rng.normal(size=target.shape)).requires_grad_()
    parts = naive_instances.components(target[0, 0])
    assert len(parts) > 3
    options = {"sigmoid": True, "compat": "released", "smooth_nr": smooth, "smooth_dr": smooth}
    for name, naive in zip(
        ("blob_dice", "blob_ce"), naive_instances.released_blob(logits[0, 0], parts, smooth), strict=True
    ):
        value = build_loss(name, **options)(logits, target)
        assert value.item() == pytest.approx(naive.item(), rel=1e-12)
        torch.testing.assert_close(*(torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (value, naive)))


@every_loss
def test_perfect_and_missing(name):
    target = torch.zeros(1, 1, 64, 8, dtype=torch.bool)
    target[..., ::4, 3] = True  # 16 components of one voxel
    assert call(name, target.double(), target).item() == pytest.approx(0, abs=1e-6)
    if name in ("blob_dice", "cc_dice"):
        assert call(name, target.double() * 0, target, **EXACT).item() == 1
        found = target.double()
        found[..., 12:, :] = 0  # 3 of 16
        assert call(name, found, target, **EXACT).item() == pytest.approx(13 / 16)


@every_loss
def test_R03_module_equals_function(name, label_maps):
    labels = label_maps()
    logits = torch.randn(2, 3, 12, 12, 12, dtype=torch.float64)
    words = {"connectivity": 6} | ({"spacing": (3, 1, 1)} if name.startswith("cc") else {})
    module = build_loss(name, softmax=True, to_onehot_y=True, **words)(logits, labels)
    target = torch.cat([labels == 1, labels == 2], dim=1)
    assert module.item() == pytest.approx(call(name, logits.softmax(1)[:, 1:], target, **words).item(), rel=1e-6)


@every_loss
def test_batch_pools_what_is_averaged(name, rng):
    target = torch.zeros(2, 1, 1, 12, dtype=torch.bool)
    target[0, ..., [1, 6, 10]] = True
    target[1, ..., 4] = True
    probs = torch.from_numpy(rng.uniform(0.05, 0.95, (2, 1, 1, 12)))
    first, second = (call(name, probs[i : i + 1], target[i : i + 1]).item() for i in (0, 1))
    assert call(name, probs, target).item() == pytest.approx((first + second) / 2)
    whole = name.startswith("inverse") or name == "cat_tversky"  # one number per class, not per lesion
    pooled = (first + second) / 2 if whole else (3 * first + second) / 4
    assert call(name, probs, target, batch=True).item() == pytest.approx(pooled)


@pytest.mark.parametrize("name", ["cc_dice", "blob_dice", "lesion_mil"])
def test_ids_from_before_the_mask_keep_a_cut_lesion_whole(name):
    target = torch.zeros(1, 1, 3, 9, dtype=torch.bool)
    target[..., 1, 1:8] = True
    mask = torch.ones_like(target)
    mask[..., 4] = False  # cuts the lesion in two
    probs = torch.linspace(0.1, 0.9, 27, dtype=torch.float64).reshape(target.shape) ** 2
    known = {"cells": component_cells(target)} if name == "cc_dice" else {"labels": component_labels(target)}
    shown = probs.masked_fill(~mask, 0)
    whole, cut = (LOSSES[name][0](shown, target & mask, **ids).item() for ids in (known, {}))
    if name == "lesion_mil":
        assert whole == pytest.approx(-np.log(probs[0, 0, 1, 7].item()))
        assert cut == pytest.approx(-np.log([probs[0, 0, 1, 3].item(), probs[0, 0, 1, 7].item()]).mean())
    else:
        hit, claimed = (shown * target).sum().item(), shown.sum().item()
        assert whole == pytest.approx(1 - 2 * hit / (claimed + 6), abs=1e-5)
        assert cut != pytest.approx(whole, abs=1e-3)


def test_blob_cross_entropy_starves_lesions_as_documented():
    target = torch.zeros(1, 1, 100, 100, dtype=torch.bool)
    target[..., ::20, ::10] = True  # 50 lesions of one voxel
    logits = torch.zeros(1, 1, 100, 100, dtype=torch.float64, requires_grad=True)

    def slopes(loss):
        (grad,) = torch.autograd.grad(loss(logits, target.double()), logits)
        return grad[target].abs().mean().item(), grad[~target].mean().item()

    lesion, background = slopes(build_loss("blob_ce", sigmoid=True))
    plain_lesion, plain_background = slopes(torch.nn.BCEWithLogitsLoss())
    assert plain_lesion / lesion == pytest.approx(50, rel=0.02)
    assert background / plain_background == pytest.approx(1, rel=0.02)
    assert slopes(build_loss("blob_ce", sigmoid=True, weighting="balanced"))[0] > 10 * plain_lesion


def test_local_weighting_makes_false_alarms_cheap_as_documented():
    target = torch.zeros(1, 1, 60, 60, dtype=torch.bool)
    target[..., 10:13, 10:13] = True
    probs = target.double()
    probs[..., 40:43, 40:43] = 1  # a false alarm as big as the lesion
    plain, balanced = (cc_dice_loss(probs, target, weighting=w).item() for w in ("none", "balanced"))
    assert plain == pytest.approx(1 - 2 * 9 / 27, abs=1e-4)
    assert balanced < 0.002


def test_weights_by_inverse_size_share_the_voxels():
    target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8) > 0
    slope = torch.ones(1, 1, 1, 8, dtype=torch.float64, requires_grad=True)
    inverse_size_ce_loss(slope, target, clip=None).backward()
    weights = (slope.grad * 8).flatten()
    expected = [4 / 3, 4 / 3, 8 / 15, 8 / 15, 8 / 3, 8 / 15, 8 / 15, 8 / 15]
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-12)
    assert weights.sum().item() == pytest.approx(8)


def test_confident_mistakes_keep_their_cost():
    """A probability of 1 - 1e-20 is 1 in float32; the logits still know."""
    labels = torch.zeros(1, 1, 1, 8)
    labels[..., :2] = 1
    logits = torch.zeros(1, 3, 1, 8)
    logits[:, 1, :, 5] = 46.0
    logits.requires_grad_()
    loss = build_loss("cc_ce", softmax=True, to_onehot_y=True)
    loss(logits, labels).backward()
    assert logits.grad[0, 1, 0, 5].item() == pytest.approx(1 / 8, rel=1e-6)


@every_loss
@pytest.mark.slow
def test_sums_stay_accurate_in_ten_million_voxels(name):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 200, 240, 210, generator=generator)
    target = torch.zeros_like(logits, dtype=torch.bool)
    target[..., 100, 100, 100] = target[..., 20:60, 20:60, 20:60] = True
    loss = build_loss(name, sigmoid=True)
    single, double = (loss(x, target).double().item() for x in (logits, logits.double()))
    assert single == pytest.approx(double, rel=1e-5)
    assert 1 - single == pytest.approx(1 - double, rel=1e-5, abs=1e-7)


@every_loss
def test_what_is_kept_for_the_way_back_does_not_grow_with_lesions(name):
    def kept_bytes(count):
        target = torch.zeros(1, 1, 32, 32, 32, dtype=torch.bool)
        target.view(-1)[: 5 * count : 5] = True
        logits = torch.randn(1, 2, 32, 32, 32, requires_grad=True)
        tensors = {}

        def keep(tensor):
            tensors[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = build_loss(name, softmax=True, to_onehot_y=True)(logits, target.float())
        size = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
        del loss
        gc.collect()
        return size / (logits.numel() * 4)

    few, many = kept_bytes(1), kept_bytes(200)
    assert many < few + 0.3  # 200 numbers per sum, not 200 volumes
    assert many <= 4


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, {"connectivity": 5}) for name in LOSSES),
        *((name, {"weighting": "local"}) for name in ("cc_dice", "cc_ce", "cc_dice_ce", "blob_dice", "blob_ce")),
        *((name, {"compat": "official"}) for name in ("blob_dice", "blob_ce")),
        *(
            (name, {"clip": clip})
            for name in ("inverse_size_dice", "inverse_size_ce")
            for clip in ((2, 1), (1,), (-1, 1))
        ),
        ("cc_ce", {"spacing": (1, 0, 1)}),
        ("cat_tversky", {"alpha": -0.1}),
        ("cat_tversky", {"gamma": float("nan")}),
    ],
)
def test_impossible_options(name, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build_loss(name, **wrong)


@pytest.mark.parametrize("name", ["cc_dice", "cc_ce", "cc_dice_ce", "blob_dice", "blob_ce"])
def test_functions_refuse_unknown_weightings(name):
    with pytest.raises(ValueError, match=r"weighting must be one of .*got 'local'"):
        call(name, torch.rand(1, 1, 4, 4), torch.eye(4).bool().reshape(1, 1, 4, 4), weighting="local")
