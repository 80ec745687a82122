"""CC-Dice against obvious loops, published algebra and hand-computed values."""

import itertools

import numpy as np
import pytest
import torch

from nnunet_imbal.losses import CCDiceLoss, cc_dice_loss

EXACT = {"smooth_nr": 0.0, "smooth_dr": 0.0}


def flood_fill(mask, connectivity):
    """Sets of voxels that hang together, found by walking from voxel to voxel."""
    reach = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}[connectivity]
    steps = [s for s in itertools.product((-1, 0, 1), repeat=mask.ndim) if 0 < np.abs(s).sum() <= reach]
    left = {tuple(map(int, v)) for v in np.argwhere(mask)}
    components = []
    while left:
        component, todo = set(), [left.pop()]
        while todo:
            voxel = todo.pop()
            component.add(voxel)
            for step in steps:
                neighbour = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if neighbour in left:
                    left.remove(neighbour)
                    todo.append(neighbour)
        components.append(component)
    return components


def naive_class_loss(probs, mask, spacing, connectivity, smooth_nr, smooth_dr):
    """Value of one class of one sample, or None without components, or "tie" where the answer is a matter of choice."""
    components = flood_fill(mask, connectivity)
    if not components:
        return None
    sums = np.zeros((len(components), 3))
    for voxel in np.ndindex(mask.shape):
        distances = [
            min(sum(((a - b) * mm) ** 2 for a, b, mm in zip(voxel, other, spacing, strict=True)) for other in component)
            for component in components
        ]
        nearest = [i for i, d in enumerate(distances) if d <= min(distances) * (1 + 1e-9)]
        if len(nearest) > 1:
            return "tie"
        inside = bool(mask[voxel])
        sums[nearest[0]] += probs[voxel] * inside, probs[voxel], inside
    return np.mean([1 - (2 * tp + smooth_nr) / (p + y + smooth_dr) for tp, p, y in sums])


def naive_loss(probs, target, spacing, connectivity, smooth_nr, smooth_dr):
    samples = []
    for sample_probs, sample_target in zip(probs.numpy(), target.numpy(), strict=True):
        arguments = (spacing, connectivity, smooth_nr, smooth_dr)
        values = [naive_class_loss(p, t, *arguments) for p, t in zip(sample_probs, sample_target, strict=True)]
        if "tie" in values:
            return None
        values = [v for v in values if v is not None]
        if values:
            samples.append(np.mean(values))
    return np.mean(samples) if samples else 0.0


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_R04_equals_obvious_loops(rng, connectivity):
    compared = 0
    while compared < 17:
        shape = tuple(rng.integers(2, 8, 3))
        target = torch.from_numpy(rng.random((2, 2, *shape)) < 0.03)
        probs = torch.from_numpy(rng.random((2, 2, *shape)))
        # irrational ratios leave hardly any voxel half-way between two components
        spacing = (1.0, float(np.sqrt(2.3)), float(np.sqrt(0.77)))
        expected = naive_loss(probs, target, spacing, connectivity, 1e-5, 1e-5)
        if expected is None:
            continue
        compared += 1
        got = cc_dice_loss(probs, target, spacing=spacing, connectivity=connectivity)
        assert got.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_R04_equals_obvious_loops_in_2d(rng, connectivity):
    compared = 0
    while compared < 15:
        target = torch.from_numpy(rng.random((1, 2, 9, 11)) < 0.05)
        probs = torch.from_numpy(rng.random((1, 2, 9, 11)))
        spacing = (1.0, float(np.sqrt(2.3)))
        expected = naive_loss(probs, target, spacing, connectivity, 1e-5, 1e-5)
        if expected is None:
            continue
        compared += 1
        got = cc_dice_loss(probs, target, spacing=spacing, connectivity=connectivity)
        assert got.item() == pytest.approx(expected, rel=1e-9)


class TestOneRow:
    """One row, one class; numbers worked out from the definition."""

    probs = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.4, 0.2, 0.0, 0.1], dtype=torch.float64).reshape(1, 1, 1, 8)
    target = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).reshape(1, 1, 1, 8)

    @pytest.mark.parametrize(("smooth", "expected"), [(0, 0.3675213675), (1e-5, 0.3675195942), (1, 0.25)])
    def test_R05_value(self, smooth, expected):
        loss = cc_dice_loss(self.probs, self.target, smooth_nr=smooth, smooth_dr=smooth)
        assert loss.item() == pytest.approx(expected, abs=1e-10)

    def test_R05_gradient(self):
        probs = self.probs.clone().requires_grad_()
        cc_dice_loss(probs, self.target, **EXACT).backward()
        inside1, rest1, inside2, rest2 = -0.151216305, 0.105193951, -0.432098765, 0.123456790
        expected = [inside1, inside1, rest1, rest2, inside2, rest2, rest2, rest2]
        np.testing.assert_allclose(probs.grad.flatten().numpy(), expected, atol=1e-9)


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

    def test_R05_per_class_and_mean(self):
        loss = CCDiceLoss(to_onehot_y=True, reduction="none", **EXACT)
        np.testing.assert_allclose(loss(self.probs, self.labels)[0], [0.4052631579, 0.2786885246], atol=1e-10)
        mean = CCDiceLoss(to_onehot_y=True, **EXACT)(self.probs, self.labels)
        assert mean.item() == pytest.approx(0.3419758412, abs=1e-10)

    def test_an_absent_class_changes_nothing(self):
        probs = torch.cat([self.probs, torch.zeros_like(self.probs[:, :1])], dim=1)
        loss = CCDiceLoss(to_onehot_y=True, **EXACT)
        assert loss(probs, self.labels).item() == pytest.approx(0.3419758412, abs=1e-10)

    def test_class_weights(self):
        loss = CCDiceLoss(to_onehot_y=True, weight=[1, 3], **EXACT)(self.probs, self.labels)
        assert loss.item() == pytest.approx((0.4052631579 + 3 * 0.2786885246) / 4, abs=1e-9)


class TestTwoDimensions:
    """Five rows, six columns, three components, no ties."""

    target = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    target[..., :2, :2] = target[..., 2, 5] = target[..., 4, 2] = True
    probs = torch.full((1, 1, 5, 6), 0.1, dtype=torch.float64)
    probs[..., :2, :2] = probs[..., 2, 5] = 0.5
    probs[..., 4, 2] = 0.0

    def test_R05_value(self):
        assert cc_dice_loss(self.probs, self.target, **EXACT).item() == pytest.approx(0.6650326797, abs=1e-10)

    def test_cells_known_beforehand(self):
        rows = ["111122", "111122", "111222", "133322", "333332"]
        cells = torch.tensor([[int(c) for c in row] for row in rows], dtype=torch.int32).reshape(1, 1, 5, 6)
        loss = cc_dice_loss(self.probs, self.target, cells=cells, **EXACT)
        assert loss.item() == pytest.approx(0.6650326797, abs=1e-10)


def test_limits():
    target = torch.zeros(1, 1, 64, 8, dtype=torch.bool)
    target[..., ::4, 3] = True  # 16 single-voxel components
    probs = target.double()
    assert cc_dice_loss(probs, target, **EXACT).item() == 0
    assert cc_dice_loss(probs * 0, target, **EXACT).item() == 1
    probs[..., 12:, :] = 0
    assert cc_dice_loss(probs, target, **EXACT).item() == pytest.approx(13 / 16)


def test_R03_module_equals_function(label_maps):
    labels = label_maps()
    logits = torch.randn(2, 3, 12, 12, 12)
    module = CCDiceLoss(softmax=True, to_onehot_y=True, spacing=(3, 1, 1), connectivity=6)(logits, labels)
    target = torch.cat([labels == 1, labels == 2], dim=1)
    function = cc_dice_loss(logits.softmax(1)[:, 1:], target, spacing=(3, 1, 1), connectivity=6)
    assert module.item() == pytest.approx(function.item(), rel=1e-6)


def test_R29_a_small_lesion_counts_as_much_as_a_big_one():
    target = torch.zeros(1, 1, 40, 40, 40, dtype=torch.bool)
    small, big = (..., *[slice(2, 4)] * 3), (..., *[slice(15, 35)] * 3)
    target[small] = target[big] = True

    def missing(part):
        probs = target.double()
        probs[part] = 0
        dice = 1 - 2 * (probs * target).sum() / (probs.sum() + target.sum())
        return cc_dice_loss(probs, target).item(), dice.item()

    assert missing(small) == (pytest.approx(0.5, abs=1e-4), pytest.approx(0.0005, abs=1e-5))
    assert missing(big) == (pytest.approx(0.5, abs=1e-4), pytest.approx(0.998, abs=1e-4))


def test_sums_stay_accurate_in_a_huge_cell():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(1, 1, 200, 240, 210, generator=generator)  # ten million voxels, one cell
    target = torch.zeros_like(probs, dtype=torch.bool)
    target[..., 100, 100, 100] = True
    single, double = (cc_dice_loss(p, target).double() for p in (probs, probs.double()))
    assert abs(1 - single - (1 - double)) <= 1e-5 * (1 - double) + 1e-7


@pytest.mark.parametrize(
    "wrong",
    [
        {"connectivity": 5},
        {"connectivity": 26, "spacing": (1, 1)},
        {"spacing": (1, 0, 1)},
        {"spacing": (1,)},
        {"reduction": "avg"},
    ],
)
def test_impossible_options(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CCDiceLoss(**wrong)


def test_one_activation_only():
    with pytest.raises(ValueError, match="sigmoid and softmax"):
        CCDiceLoss(sigmoid=True, softmax=True)


def test_batch_averages_over_the_lesions_of_all_samples(rng):
    target = torch.zeros(2, 1, 1, 12, dtype=torch.bool)
    target[0, ..., [1, 6, 10]] = True
    target[1, ..., 4] = True
    probs = torch.from_numpy(rng.random((2, 1, 1, 12)))
    first, second = (cc_dice_loss(probs[i : i + 1], target[i : i + 1]).item() for i in (0, 1))
    assert cc_dice_loss(probs, target).item() == pytest.approx((first + second) / 2)
    assert cc_dice_loss(probs, target, batch=True).item() == pytest.approx((3 * first + second) / 4)
