"""Losses that know the class frequencies: golden values, naive twins, peers, and what goes wrong in a peer."""

import math

import numpy as np
import pytest
import torch
from monai.losses import AsymmetricUnifiedFocalLoss, FocalLoss, TverskyLoss
from torch.autograd import gradcheck
from torch.nn import functional as F

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.losses import (
    FocalCELoss,
    FocalTverskyLoss,
    LCRLoss,
    LDAMLoss,
    LogitAdjustedCELoss,
    UnifiedFocalLoss,
    adjust_logits,
    focal_ce_loss,
    focal_tversky_loss,
    implication_loss,
    lcr_weights,
    ldam_loss,
    ldam_margins,
    logit_adjusted_ce_loss,
    nested_pairs,
    reweighted_bce_loss,
    unified_focal_loss,
)

CLASSES = {"softmax": True, "to_onehot_y": True}
REGIONS = {"sigmoid": True}
PRIOR = torch.tensor([0.9, 0.09, 0.01])


@pytest.fixture
def voxels():
    """Four voxels, three classes: logits, one-hot truth, label map."""
    logits = torch.tensor([[2.0, 1, 0, -1], [0, 1, 1, 0], [-1, 0, 2, 1]]).double().view(1, 3, 1, 4)
    labels = torch.tensor([0, 1, 2, 0]).view(1, 1, 1, 4)
    return logits, torch.cat([labels == c for c in range(3)], 1), labels


def each_voxel(loss, logits, target, **words):
    """The loss of each voxel alone."""
    return [loss(logits[..., i : i + 1], target[..., i : i + 1], **words).item() for i in range(logits.shape[-1])]


def random_case(seed=0, regions=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, 3, generator=generator).double()
    labels = torch.randint(0, 3, (2, 1, 4, 5, 3), generator=generator)
    mask = torch.rand(2, 1, 4, 5, 3, generator=generator) > 0.2
    target = torch.cat([labels > 0, labels > 1, labels == 1], 1) if regions else labels
    return logits, target, mask


def naive_mean(errors, weights, counts):
    """Mean over the voxels of a sample that count, then over samples; lists of samples of lists."""
    means = []
    for error, weight, count in zip(errors, weights, counts, strict=True):
        pairs = [(e, w) for e, w, c in zip(error, weight, count, strict=True) if c]
        if pairs:
            means.append(sum(e * w for e, w in pairs) / sum(w for _, w in pairs))
    return sum(means) / len(means) if means else 0.0


def naive_exclusive(price, logits, labels, mask, weight=(1, 1, 1)):
    """Naive twin of a loss of single voxels: ``price(row of logits, true class)``."""
    errors, weights = [], []
    for sample, truth in zip(logits.flatten(2), labels.flatten(2)[:, 0], strict=True):
        rows, classes = sample.T.tolist(), truth.tolist()
        errors.append([price(row, true) for row, true in zip(rows, classes, strict=True)])
        weights.append([weight[true] for true in classes])
    return naive_mean(errors, weights, mask.flatten(1).tolist())


def naive_cross_entropy(row, true):
    return math.log(sum(math.exp(x) for x in row)) - row[true]


class TestLogitAdjustment:
    def test_golden(self, voxels):
        logits, target, _ = voxels
        words = {"frequencies": PRIOR, "tau": 1.0}
        assert each_voxel(logit_adjusted_ce_loss, logits, target, **words) == pytest.approx(
            [0.013988, 2.401604, 2.802820, 0.303011], abs=1e-6
        )
        assert logit_adjusted_ce_loss(logits, target, **words).item() == pytest.approx(1.380356, abs=1e-6)
        assert logit_adjusted_ce_loss(logits, target, frequencies=PRIOR).item() == pytest.approx(0.923082, abs=1e-6)

    def test_after_training(self, voxels):
        logits, _, _ = voxels
        assert logits.argmax(1).flatten().tolist() == [0, 0, 2, 2]
        assert adjust_logits(logits, PRIOR).argmax(1).flatten().tolist() == [2, 2, 2, 2]

    def test_naive_twin(self):
        logits, labels, mask = random_case()
        loss = LogitAdjustedCELoss(
            frequencies=[90, 9, 1], tau=0.7, weight=[1, 2, 5], include_background=True, **CLASSES
        )
        shift = [0.7 * math.log(x) for x in (0.9, 0.09, 0.01)]

        def price(row, true):
            return naive_cross_entropy([x + s for x, s in zip(row, shift, strict=True)], true)

        expected = naive_exclusive(price, logits, labels, mask, (1, 2, 5))
        assert loss(logits, labels, mask).item() == pytest.approx(expected, rel=1e-6)

    def test_without_frequencies_it_is_cross_entropy(self):
        logits, labels, _ = random_case()
        plain = F.cross_entropy(logits, labels[:, 0]).item()
        assert LogitAdjustedCELoss(**CLASSES)(logits, labels).item() == pytest.approx(plain, rel=1e-9)
        assert LogitAdjustedCELoss(frequencies=[9, 1, 1], tau=0, **CLASSES)(logits, labels).item() == pytest.approx(
            plain
        )

    def test_weights_are_those_of_torch(self):
        logits, labels, _ = random_case()
        ours = LogitAdjustedCELoss(weight=[1.0, 2.0, 5.0], include_background=True, batch=True, **CLASSES)(
            logits, labels
        )
        theirs = F.cross_entropy(logits, labels[:, 0], weight=torch.tensor([1, 2, 5]).double())
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)

    def test_weights_without_background(self):
        logits, labels, _ = random_case()
        short = LogitAdjustedCELoss(weight=[2, 5], **CLASSES)(logits, labels)
        assert torch.equal(short, LogitAdjustedCELoss(weight=[1, 2, 5], **CLASSES)(logits, labels))

    def test_one_region_is_two_classes(self):
        """A sigmoid with a share is a softmax over outside and inside."""
        logits, labels, mask = random_case()
        score, inside = logits[:, :1], labels == 1
        region = LogitAdjustedCELoss(frequencies=[0.02], **REGIONS)(score, inside, mask)
        both = LogitAdjustedCELoss(frequencies=[0.98, 0.02], **CLASSES)
        assert region.item() == pytest.approx(both(F.pad(score, (0,) * 6 + (1, 0)), inside, mask).item(), rel=1e-6)

    def test_best_answer_forgets_the_frequencies(self):
        """Trained on mere frequencies, the bare logits are all alike at τ = 1, and lean half as much at τ = 1/2."""
        labels = torch.zeros(1, 1, 1, 100, dtype=torch.long)
        labels[..., :20], labels[..., :5] = 1, 2
        shares = torch.tensor([80.0, 15.0, 5.0])
        for tau in (0.5, 1.0):
            logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
            loss = LogitAdjustedCELoss(frequencies=shares, tau=tau, **CLASSES)

            def step(logits=logits, optimizer=optimizer, loss=loss):
                optimizer.zero_grad()
                value = loss(logits.view(1, 3, 1, 1).expand(1, 3, 1, 100), labels)
                value.backward()
                return value

            optimizer.step(step)
            expected = (1 - tau) * shares.log()
            torch.testing.assert_close(
                (logits - logits.mean()).detach(), (expected - expected.mean()).double(), atol=1e-4, rtol=0
            )


class TestLDAM:
    COUNTS = torch.tensor([9e5, 9e4, 1e4])

    def test_golden(self, voxels):
        logits, target, _ = voxels
        margins, outside = ldam_margins(self.COUNTS)
        assert margins.tolist() == pytest.approx([0.162334, 0.288675, 0.5], abs=1e-6)
        assert not outside.any()
        values = [ldam_loss(logits, target, frequencies=self.COUNTS, scale=scale).item() for scale in (1, 30)]
        assert values == pytest.approx([1.099058, 18.382610], abs=1e-5)

    def test_background_and_adrenal(self):
        assert ldam_margins(torch.tensor([9.7e7, 3e3]))[0].tolist() == pytest.approx([0.0373, 0.5], abs=1e-4)

    def test_naive_twin(self):
        logits, labels, mask = random_case(1)
        loss = LDAMLoss(frequencies=[90, 9, 1], scale=2, max_margin=0.8, **CLASSES)
        margins = [0.8 * (1 / n) ** 0.25 for n in (90, 9, 1)]

        def price(row, true):
            return naive_cross_entropy([2 * (x - margins[c] * (c == true)) for c, x in enumerate(row)], true)

        expected = naive_exclusive(price, logits, labels, mask)
        assert loss(logits, labels, mask).item() == pytest.approx(expected, rel=1e-6)

    def test_one_region_is_two_classes(self):
        logits, labels, mask = random_case()
        score, inside = logits[:, :1], labels == 1
        region = LDAMLoss(frequencies=[0.02], **REGIONS)(score, inside, mask)
        both = LDAMLoss(frequencies=[0.98, 0.02], **CLASSES)
        assert region.item() == pytest.approx(both(F.pad(score, (0,) * 6 + (1, 0)), inside, mask).item(), rel=1e-6)


class TestFocal:
    def test_golden(self, voxels):
        logits, target, _ = voxels
        assert each_voxel(focal_ce_loss, logits, target) == pytest.approx(
            [0.004144, 0.287661, 0.045678, 1.993605], abs=1e-6
        )
        assert focal_ce_loss(logits, target).item() == pytest.approx(0.582772, abs=1e-6)

    @pytest.mark.parametrize("gamma", [0.5, 2.0])
    def test_monai_divides_by_the_classes_too(self, gamma):
        logits, labels, _ = random_case()
        theirs = FocalLoss(include_background=True, to_onehot_y=True, use_softmax=True, gamma=gamma)(logits, labels)
        ours = FocalCELoss(gamma=gamma, **CLASSES)(logits, labels)
        assert ours.item() == pytest.approx(3 * theirs.item(), rel=1e-6)

    def test_regions_are_those_of_monai(self):
        logits, target, _ = random_case(regions=True)
        theirs = FocalLoss(gamma=2.0)(logits, target)
        assert FocalCELoss(**REGIONS)(logits, target).item() == pytest.approx(theirs.item(), rel=1e-6)

    def test_naive_twin_with_an_exponent_for_each_class(self):
        logits, labels, mask = random_case(2)
        gammas = (2, 0, 0.5)

        def price(row, true):
            error = naive_cross_entropy(row, true)
            return error * (1 - math.exp(-error)) ** gammas[true]

        expected = naive_exclusive(price, logits, labels, mask)
        assert FocalCELoss(gamma=gammas, **CLASSES)(logits, labels, mask).item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, [2.0, 0.0, 0.5]])
    def test_slope_of_sure_voxels_is_finite(self, gamma):
        logits = torch.tensor([40.0, 0.0, -40.0]).view(1, 3, 1, 1).requires_grad_()
        FocalCELoss(gamma=gamma, **CLASSES)(logits, torch.zeros(1, 1, 1, 1)).backward()
        assert logits.grad.isfinite().all()

    def test_gradient_with_an_exponent_for_each_class(self):
        logits, labels, mask = (each[:, :, :2, :2, :2] for each in random_case(3))
        loss = FocalCELoss(gamma=[2.0, 0.0, 0.5], **CLASSES)
        assert gradcheck(lambda x: loss(x, labels, mask), (logits.requires_grad_(),))

    def test_guard_acts_inside_the_body(self):
        """Background alone makes any patch safe; without it the six classes of the worked example are not."""
        shares = [0.9, *(0.1 * x for x in (0.3, 0.25, 0.2, 0.15, 0.0999, 0.0001))]
        loss = FocalCELoss(frequencies=shares, **CLASSES)
        assert loss.exponents.tolist() == [2, 0, 0, 0, 0, 0, 0]
        assert FocalCELoss(frequencies=shares, guard=False, **CLASSES).exponents == 2
        assert FocalCELoss(frequencies=shares, gamma=[1.0] * 7, **CLASSES).exponents == 1
        assert FocalCELoss(frequencies=shares, gamma=0.0, **CLASSES).exponents == 0
        assert FocalCELoss(frequencies=[0.3, 0.1], **REGIONS).exponents == 2

    @pytest.mark.parametrize("gamma", [2.0, [2.0, 0.0, 1.0]])
    def test_calibration_of_what_training_finds(self, gamma):
        """Minimise the focal loss on mere frequencies: the softmax is off, `calibrate` brings the truth back."""
        truth = torch.tensor([0.7, 0.2, 0.1])
        labels = torch.repeat_interleave(torch.arange(3), (truth * 10).round().long()).view(1, 1, 1, 10)
        logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
        loss = FocalCELoss(gamma=gamma, **CLASSES)

        def step():
            optimizer.zero_grad()
            value = loss(logits.view(1, 3, 1, 1).expand(1, 3, 1, 10), labels)
            value.backward()
            return value

        optimizer.step(step)
        probs = torch.softmax(logits.detach(), 0).view(1, 3, 1, 1)
        assert (probs.flatten() - truth).abs().max() > 0.03
        torch.testing.assert_close(loss.calibrate(probs).flatten(), truth.double(), atol=1e-4, rtol=0)


class TestFocalTversky:
    def test_golden(self, voxels):
        logits, target, labels = voxels
        probs = torch.softmax(logits, 1)
        plain = focal_tversky_loss(probs, target, gamma=1, reduction="none")
        assert plain[0].tolist() == pytest.approx([0.490782, 0.580940, 0.425699], abs=1e-5)
        assert plain.mean().item() == pytest.approx(0.499141, abs=1e-5)
        assert focal_tversky_loss(probs, target).item() == pytest.approx(0.592936, abs=1e-5)
        theirs = TverskyLoss(to_onehot_y=True, softmax=True, alpha=0.3, beta=0.7)(logits, labels)
        assert plain.mean().item() == pytest.approx(theirs.item(), abs=1e-5)

    def test_naive_twin(self):
        logits, labels, mask = random_case(4)
        losses = []
        for sample, truth, counts in zip(torch.softmax(logits, 1), labels, mask, strict=True):
            classes = []
            for c in (1, 2):
                hit = alarm = miss = 0.0
                for p, y, here in zip(sample[c].flatten(), truth.flatten(), counts.flatten(), strict=True):
                    hit += p.item() * (y == c).item() * here.item()
                    alarm += p.item() * (y != c).item() * here.item()
                    miss += (1 - p.item()) * (y == c).item() * here.item()
                classes.append((1 - (hit + 1e-5) / (hit + 0.2 * alarm + 0.8 * miss + 1e-5)) ** 0.5)
            losses.append(sum(classes) / 2)
        loss = FocalTverskyLoss(alpha=0.2, beta=0.8, gamma=2, **CLASSES)
        assert loss(logits, labels, mask).item() == pytest.approx(sum(losses) / 2, rel=1e-5)

    def test_halves_make_a_soft_dice(self):
        logits, labels, _ = random_case()
        probs, truth = torch.softmax(logits, 1)[:, 1:], torch.cat([labels == 1, labels == 2], 1)
        sums = [x.flatten(2).sum(2) for x in (probs * truth, probs, truth)]
        dice = (1 - 2 * sums[0] / (sums[1] + sums[2])).mean().item()
        loss = FocalTverskyLoss(alpha=0.5, beta=0.5, gamma=1, smooth_nr=0, smooth_dr=0, **CLASSES)
        assert loss(logits, labels).item() == pytest.approx(dice, rel=1e-5)


class TestUnifiedFocal:
    def test_golden(self):
        foreground = torch.tensor([0.9, 0.2, 0.6, 0.3]).view(1, 1, 1, 4).double()
        labels = torch.tensor([1, 0, 1, 0]).view(1, 1, 1, 4)
        logits = torch.cat([1 - foreground, foreground], 1).log()
        parts = [UnifiedFocalLoss(cross_entropy=x, **CLASSES)(logits, labels).item() for x in (1, 0, 0.5)]
        assert parts == pytest.approx([0.060972, 0.375, 0.217986], abs=1e-5)
        theirs = AsymmetricUnifiedFocalLoss(delta=0.6)(foreground, labels)
        assert parts[2] == pytest.approx(theirs.item(), abs=1e-5)

    def test_monai_takes_logits_for_probabilities(self):
        """Its documentation asks for logits; no sigmoid is applied to them, and nothing is said."""
        foreground = torch.tensor([0.9, 0.2, 0.6, 0.3]).view(1, 1, 1, 4)
        labels = torch.tensor([1, 0, 1, 0]).view(1, 1, 1, 4)
        wrong = AsymmetricUnifiedFocalLoss(delta=0.6)(torch.logit(foreground), labels)
        assert wrong.item() == pytest.approx(0.172901, abs=1e-5)

    @pytest.mark.parametrize(("delta", "gamma"), [(0.6, 0.5), (0.7, 0.2)])
    def test_two_classes_are_those_of_monai(self, delta, gamma):
        logits, labels, _ = random_case(5)
        logits, labels = logits[:, :2], labels.clamp(max=1)
        theirs = AsymmetricUnifiedFocalLoss(to_onehot_y=True, delta=delta, gamma=gamma)(
            torch.softmax(logits, 1), labels
        )
        ours = UnifiedFocalLoss(delta=delta, gamma=gamma, **CLASSES)(logits, labels)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)

    def test_monai_does_not_see_a_third_class(self):
        """All that MONAI knows of class 2 is that it is not 0 or 1; ours pulls its probability up where it is true."""
        labels = torch.full((1, 1, 4, 4), 2)
        labels[..., :2, :] = torch.tensor([0, 1, 0, 1])
        probs = torch.full((1, 3, 4, 4), 1 / 3, requires_grad=True)
        AsymmetricUnifiedFocalLoss(to_onehot_y=True, num_classes=3)(probs, labels).backward()
        assert not probs.grad[:, 2].any()

        logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
        UnifiedFocalLoss(**CLASSES)(logits, labels).backward()
        assert (logits.grad[:, 2, 2:] < 0).all()
        assert (logits.grad[:, 2, :2] > 0).all()

    def test_naive_twin(self):
        logits, labels, mask = random_case(6)
        delta, gamma, rare = 0.7, 0.4, (2,)
        samples = []
        for sample, truth, counts in zip(torch.softmax(logits, 1), labels, mask, strict=True):
            rows = [
                (p, y)
                for p, y, here in zip(
                    sample.flatten(1).T.tolist(), truth.flatten().tolist(), counts.flatten(), strict=True
                )
                if here
            ]
            focal = 0.0
            for p, y in rows:
                easy = (1 - delta) * (1 - p[y]) ** gamma
                focal -= (delta if y in rare else easy) * math.log(p[y]) / 2 / len(rows)
            tversky = 0.0
            for c in range(3):
                hit = sum(p[c] for p, y in rows if y == c)
                miss, alarm = sum(1 - p[c] for p, y in rows if y == c), sum(p[c] for p, y in rows if y != c)
                lack = 1 - hit / (hit + delta * miss + (1 - delta) * alarm)
                tversky += (lack ** (1 - gamma) if c in rare else lack) / 3
            samples.append(0.25 * focal + 0.75 * tversky)
        loss = UnifiedFocalLoss(rare=rare, delta=delta, gamma=gamma, cross_entropy=0.25, **CLASSES)
        assert loss(logits, labels, mask).item() == pytest.approx(sum(samples) / 2, rel=1e-5)

    def test_weights_and_reductions_fit_together(self):
        logits, labels, _ = random_case(7)
        target = torch.cat([labels == c for c in range(3)], 1)
        none = unified_focal_loss(logits, target, reduction="none")
        assert none.shape == (2, 3)
        assert none.sum().item() == pytest.approx(unified_focal_loss(logits, target, reduction="sum").item())
        only_last = unified_focal_loss(logits, target, weight=torch.tensor([0.0, 0.0, 1.0]))
        assert 0 < only_last.item() != unified_focal_loss(logits, target).item()


class TestLCR:
    LOGITS = torch.tensor([[1.0, 0], [-1, 2], [0, -2]]).view(1, 3, 1, 2).double()  # two voxels, three regions
    TARGET = torch.tensor([[1, 1], [0, 1], [0, 0]]).view(1, 3, 1, 2) > 0
    SHARES = torch.tensor([0.75, 0.5, 0.25])

    def test_golden_without_our_norm(self):
        raw = self.SHARES**-0.5, (1 - self.SHARES) ** -0.5
        assert raw[0].tolist() == pytest.approx([1.154701, 1.414214, 2], abs=1e-6)
        errors = F.binary_cross_entropy_with_logits(self.LOGITS, self.TARGET.double(), reduction="none")
        value = reweighted_bce_loss(errors, self.TARGET, raw)
        assert value.item() == pytest.approx(0.455261, abs=1e-6)

    @pytest.mark.parametrize("exponent", [0, 1 / 3, 0.5, 1])
    def test_weights_are_one_on_average(self, exponent):
        shares = torch.tensor([0.001, 0.3, 0.9])
        inside, outside = lcr_weights(shares, exponent, cap=float("inf"))
        torch.testing.assert_close(shares * inside + (1 - shares) * outside, torch.ones(3))
        ratio = ((1 - shares) / shares) ** exponent
        torch.testing.assert_close(inside / outside, ratio)

    def test_a_label_that_is_always_there(self):
        inside, outside = lcr_weights(torch.tensor([1.0, 0.0]))
        assert torch.isfinite(inside).all()
        assert torch.isfinite(outside).all()
        assert max(*inside.tolist(), *outside.tolist()) <= 50

    def test_golden_hinge(self):
        logits = torch.tensor([[2.0, -3], [1, -4], [1.5, -5]]).view(1, 3, 1, 2).double()
        pairs = [(0, 1), (1, 2)]
        assert 2 * implication_loss(logits, pairs, squared=True).item() == pytest.approx(0.125, abs=1e-6)
        assert 2 * implication_loss(torch.sigmoid(logits), pairs).item() == pytest.approx(0.043258, abs=1e-6)
        ignored = torch.tensor([False, True]).view(1, 1, 1, 2)
        assert implication_loss(logits, pairs, mask=ignored).item() == 0

    def test_hinge_leaves_nested_answers_alone(self):
        logits = torch.tensor([[5.0, 5.0], [5.0, -5.0]]).view(1, 2, 1, 2).requires_grad_()
        implication_loss(torch.sigmoid(logits), [(0, 1)]).backward()
        assert not logits.grad.any()

    @pytest.mark.parametrize("form", ["probability", "logit"])
    def test_naive_twin(self, form):
        logits, target, mask = random_case(8, regions=True)
        loss = LCRLoss(
            frequencies=[0.5, 0.1, 0.2], implications=[(0, 1), (0, 2)], form=form, implication=0.3, **REGIONS
        )
        inside, outside = (each.tolist() for each in lcr_weights(torch.tensor([0.5, 0.1, 0.2])))
        samples = []
        for scores, truth, counts in zip(logits.flatten(2), target.flatten(2), mask.flatten(1), strict=True):
            prices = []
            for row, true, here in zip(scores.T.tolist(), truth.T.tolist(), counts.tolist(), strict=True):
                if not here:
                    continue
                p = [1 / (1 + math.exp(-x)) for x in row]
                bce = [-inside[r] * math.log(p[r]) if true[r] else -outside[r] * math.log(1 - p[r]) for r in range(3)]
                if form == "logit":
                    hinge = [max(0, row[i] - row[0]) ** 2 for i in (1, 2)]
                else:
                    hinge = [max(0, p[i] - p[0]) for i in (1, 2)]
                prices.append(sum(bce) / 3 + 0.3 * sum(hinge) / 2)
            samples.append(sum(prices) / len(prices))
        assert loss(logits, target, mask).item() == pytest.approx(np.mean(samples), rel=1e-6)

    def test_reductions_fit_together(self):
        logits, target, _ = random_case(9, regions=True)
        words = {"frequencies": [0.5, 0.1, 0.2], "implications": [(0, 1), (0, 2)], **REGIONS}
        none = LCRLoss(reduction="none", **words)(logits, target)
        assert none.shape == (2, 3)
        assert none.sum(1).mean().item() == pytest.approx(LCRLoss(**words)(logits, target).item())
        assert none.sum().item() == pytest.approx(LCRLoss(reduction="sum", **words)(logits, target).item())

    def test_gradient_with_nested_regions(self):
        logits, target, mask = (each[:, :, :2, :2, :2] for each in random_case(10, regions=True))
        loss = LCRLoss(frequencies=[0.5, 0.1, 0.2], implications=[(0, 1), (1, 2)], **REGIONS)
        assert gradcheck(lambda x: loss(x, target, mask), (logits.requires_grad_(),))

    def test_pairs_of_brats(self):
        assert nested_pairs([(1, 2, 3), (2, 3), (3,)]) == [(0, 1), (1, 2)]
        assert nested_pairs([(1, 2), (3,), 1, [2]]) == [(0, 2), (0, 3)]
        assert nested_pairs([1, 2]) == []
        assert nested_pairs([(1, 2), (1, 2)]) == []


@pytest.mark.parametrize("cls", [LogitAdjustedCELoss, LDAMLoss, FocalCELoss, UnifiedFocalLoss])
def test_nothing_but_background_counts(cls):
    """A loss that left such patches out would not have the frequencies that were measured."""
    loss, labels = cls(**CLASSES), torch.zeros(1, 1, 4, 4)
    assert (
        loss(torch.zeros(1, 3, 4, 4), labels).item() > loss(F.pad(torch.ones(1, 1, 4, 4), (0,) * 5 + (2,)), labels) > 0
    )


@pytest.mark.parametrize("cls", [LogitAdjustedCELoss, LDAMLoss, FocalCELoss])
@pytest.mark.parametrize("regions", [False, True])
def test_parts_add_up(cls, regions):
    logits, target, mask = random_case(11, regions)
    words = {"frequencies": [0.5, 0.1, 0.2], **(REGIONS if regions else CLASSES)}
    none = cls(reduction="none", **words)(logits, target, mask)
    assert none.shape == (2, 3)
    assert none.sum(1).mean().item() == pytest.approx(cls(**words)(logits, target, mask).item())


@pytest.mark.parametrize("cls", [LogitAdjustedCELoss, LDAMLoss, FocalCELoss, LCRLoss])
@pytest.mark.parametrize(
    ("frequencies", "words"),
    [
        ([0, 0, 0], CLASSES),
        ([-1, 2, 1], CLASSES),
        ([float("nan"), 1, 1], CLASSES),
        ([[1, 1, 1]], CLASSES),
        ([9, 1, 1], REGIONS),
    ],
)
def test_impossible_frequencies(cls, frequencies, words):
    with pytest.raises(ConfigError, match="frequencies must be"):
        cls(frequencies=frequencies, **words)


@pytest.mark.parametrize("cls", [LogitAdjustedCELoss, LDAMLoss, FocalCELoss, LCRLoss])
def test_frequencies_of_other_channels(cls):
    with pytest.raises(ConfigError, match="frequencies holds 2 numbers, but there are 3 channels"):
        cls(frequencies=[0.9, 0.1], **CLASSES)(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (LogitAdjustedCELoss, {"tau": -1}, "tau must be"),
        (LogitAdjustedCELoss, {"other_act": torch.sigmoid, "softmax": False}, "leave out other_act"),
        (LDAMLoss, {"scale": 0}, "scale above 0"),
        (LDAMLoss, {"max_margin": -0.1}, "max_margin must be"),
        (FocalCELoss, {"gamma": -1}, "gamma must be"),
        (FocalTverskyLoss, {"alpha": 0, "beta": 0}, "not both 0"),
        (FocalTverskyLoss, {"gamma": 0}, "gamma above 0"),
        (UnifiedFocalLoss, {"gamma": 1}, "gamma from 0 to below 1"),
        (LCRLoss, {"form": "odds"}, "form must be"),
        (LCRLoss, {"cap": -1}, "cap must be"),
        (LCRLoss, {"implications": [(0, 1)]}, "none implies another"),
    ],
)
def test_impossible_options(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**{**CLASSES, **options})


def test_channels_there_are_not():
    logits, labels = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ConfigError, match="rare names channels from 0 to 2, got \\[3\\]"):
        UnifiedFocalLoss(rare=[3], **CLASSES)(logits, labels)
    with pytest.raises(ConfigError, match="implications name channels from 0 to 2"):
        LCRLoss(implications=[(0, 3)], **REGIONS)(logits, logits > 0)
    with pytest.raises(ConfigError, match="gamma holds 2 numbers"):
        FocalCELoss(gamma=[1.0, 2.0], **CLASSES)(logits, labels)
    with pytest.raises(ConfigError, match="weight holds 5 numbers"):
        LDAMLoss(weight=[1.0] * 5, **CLASSES)(logits, labels)
