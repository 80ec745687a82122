"""AG-TAL-R and its parts: worked values, and one test for each known defect of the released code."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_imbal.losses import (
    AGTALLoss,
    RadiusDiceLoss,
    breakage_cldice_loss,
    breakage_weights,
    co_occurrence_loss,
    junction_loss,
    junction_mask,
    radius_dice_loss,
    radius_weights,
)
from nnunet_imbal.ops import erosion_depth, local_thickness, skeletonize, soft_skeleton, tube

RADII = (1.0, 2.0)
RELEASED = {"form": "released", "skeleton": "soft"}
SWAPPED = 1 - torch.eye(2)


def toy_labels():
    """A tube of 3 x 3 x 4 voxels (class 1) that feeds a line of 4 (class 2)."""
    labels = torch.zeros(5, 5, 10, dtype=torch.long)
    labels[1:4, 1:4, 1:5] = 1
    labels[2, 2, 5:9] = 2
    return labels


def one_hot(labels):
    return torch.stack([labels == 1, labels == 2])[None]


def prediction(case):
    """The truth; a: one voxel of the line missed; b, c: one voxel of it called class 1."""
    labels = toy_labels()
    if case != "perfect":
        labels[2, 2, {"a": 6, "b": 5, "c": 6}[case]] = 0 if case == "a" else 1
    return one_hot(labels).double()


@pytest.fixture
def truth():
    return one_hot(toy_labels())


@pytest.fixture
def weights(truth):
    return radius_weights(truth, radius_range=RADII).double()


@pytest.fixture
def soft():
    """Probabilities from logits of 4 on the channel that case a predicts."""
    foreground = prediction("a")
    logits = 4 * torch.cat([1 - foreground.sum(1, keepdim=True), foreground], 1)
    return logits.requires_grad_()


class Operators(TorchDispatchMode):
    """Notes which operators run, and how many numbers the largest of their results has."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.name())
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        return result


class TestToyVolume:
    def test_radius(self, truth, weights):
        radius = local_thickness(truth.any(1, keepdim=True))[0, 0]
        assert radius[truth[0, 0]].eq(2).all()
        assert radius[2, 2, 5:9].tolist() == [2, 1, 1, 1]
        assert weights[0, 0, 2, 2].tolist()[6:9] == pytest.approx([math.e] * 3, rel=1e-6)
        weights[0, 0, 2, 2, 6:9] = 1
        assert weights.eq(1).all()

    def test_skeletons(self, truth):
        merged = truth.any(1, keepdim=True)
        soft = soft_skeleton(merged.float(), erosion_depth(merged))[0, 0]
        assert torch.argwhere(soft)[:, 2].tolist() == [2, 3, 4, 6, 7, 8]
        assert skeletonize(merged)[0, 0, 2, 2].sum() == skeletonize(merged).sum() >= 6

    def test_junction(self, truth):
        mask = junction_mask(truth)
        assert mask.sum() == 30
        assert mask[0, 0, 2, 2].int().tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
        assert torch.equal(junction_mask(truth, [[1, 2]]), mask)
        assert not junction_mask(truth, [[1]]).any()


class TestRadiusDice:
    @pytest.mark.parametrize(
        ("case", "dice", "loss"),
        [
            ("perfect", (1, 1), -1),
            ("a", (1, 0.825655), -0.912828),
            ("b", (0.9863, 0.9422), -0.964265),
            ("c", (0.9636, 0.8257), -0.894637),
        ],
    )
    def test_R05(self, truth, case, dice, loss):
        words = {"radius_range": RADII}
        per_class = 1 - radius_dice_loss(prediction(case), truth, reduction="none", **words)
        assert per_class[0].tolist() == pytest.approx(dice, abs=5e-5)
        assert radius_dice_loss(prediction(case), truth, **words).item() == pytest.approx(1 + loss, abs=1e-6)

    @pytest.mark.parametrize(("case", "loss"), [("a", -0.928572), ("b", -0.921722), ("c", -0.921722)])
    def test_plain_dice_with_weights_of_one(self, truth, case, loss):
        ones = torch.ones(1, 1, 5, 5, 10)
        assert radius_dice_loss(prediction(case), truth, voxel_weights=ones).item() == pytest.approx(1 + loss, abs=1e-6)

    def test_soft_prediction(self, truth, weights, soft):
        probs = soft.softmax(1)[:, 1:]
        found = radius_dice_loss(probs, truth, voxel_weights=weights)
        assert found.item() == pytest.approx(1 - 0.7822036, abs=1e-6)

    def test_a_vessel_weighs_the_same_in_every_crop(self):
        """Normalised by the radii of the patch, it weighs another amount in each."""
        target = torch.zeros(1, 1, 9, 9, 30, dtype=torch.bool)
        target[..., 2:7, 2:7, :15] = target[..., 4, 4, 15:] = True
        whole = radius_weights(target, radius_range=(0.5, 4))
        for part in (slice(10), slice(20, 30)):
            assert torch.equal(whole[..., part], radius_weights(target[..., part], radius_range=(0.5, 4)))

    @pytest.mark.parametrize("radius", [1, 2])
    def test_one_calibre_in_the_patch_is_finite(self, radius):
        """Largest and smallest radius of the patch coincide: 0/0 in the released formula."""
        target = torch.zeros(1, 1, 9, 9, 9, dtype=torch.bool)
        target[..., 4:, 4, 4] = target[..., 3 : 3 + 2 * radius - 1, :, :] = True
        single = torch.zeros_like(target)
        single[..., 4, 4, 4] = True
        for mask in (target, single, torch.ones_like(target), torch.zeros_like(target)):
            assert radius_weights(mask).isfinite().all()

    def test_every_class_weighs_one_on_average(self, truth):
        weights = radius_weights(truth, radius_range=RADII, per_class_norm=True)[0, 0]
        assert [weights[own].mean().item() for own in truth[0]] == pytest.approx([1, 1])
        line = weights[2, 2, 5:9]
        assert line.tolist() == pytest.approx([4 * w / (1 + 3 * math.e) for w in (1, math.e, math.e, math.e)])
        assert weights[~truth[0].any(0)].eq(1).all()

    @pytest.mark.parametrize("loss", [RadiusDiceLoss, AGTALLoss])
    def test_losses_pass_the_norm_on(self, soft, loss):
        labels, words = toy_labels()[None, None], {**TestTogether.words}
        plain, normed = (loss(per_class_norm=norm, **words)(soft, labels).item() for norm in (False, True))
        assert abs(plain - normed) > 1e-3

    def test_weights_of_nothing_and_of_absent_classes_are_finite(self, truth):
        empty = torch.zeros(2, 2, 5, 5, 10, dtype=torch.bool)
        assert radius_weights(empty, per_class_norm=True).eq(1).all()
        empty[0] = truth[0]
        weights = radius_weights(empty, radius_range=RADII, per_class_norm=True)
        assert torch.equal(weights[:1], radius_weights(truth, radius_range=RADII, per_class_norm=True))
        assert weights[1].eq(1).all()

    def test_range_of_radii_must_be_one(self):
        for wrong in ((1, 1), (2, 1), (-1, 1), (1,), (0, float("inf"))):
            with pytest.raises(ValueError, match="radius_range"):
                AGTALLoss(radius_range=wrong)


class TestBreakage:
    @pytest.mark.parametrize(
        ("case", "scores", "loss"),
        [("a", (1, 0.7985), -0.899261), ("b", (1, 1), -1), ("c", (0.6842, 0.7985), -0.741372)],
    )
    def test_R05_released_form(self, truth, weights, case, scores, loss):
        words = {"voxel_weights": weights, **RELEASED}
        per_class = 1 - breakage_cldice_loss(prediction(case), truth, reduction="none", **words)
        assert per_class[0].tolist() == pytest.approx(scores, abs=5e-5)
        assert breakage_cldice_loss(prediction(case), truth, **words).item() == pytest.approx(1 + loss, abs=1e-6)

    def test_class_not_predicted_at_all(self, truth, weights):
        probs = prediction("perfect")
        probs[:, 1] = 0
        assert breakage_cldice_loss(probs, truth, voxel_weights=weights, **RELEASED).item() == pytest.approx(
            0.5, abs=1e-4
        )

    def test_soft_prediction(self, truth, weights, soft):
        norms, values = [], []
        for detach in (True, False):
            probs = soft.softmax(1)[:, 1:]
            value = breakage_cldice_loss(probs, truth, voxel_weights=weights, detach=detach, **RELEASED)
            (gradient,) = torch.autograd.grad(value, soft)
            norms.append(gradient.abs().sum().item())
            values.append(value.item())
            expected = (0.0020774, -0.0021155) if detach else (0.0020912, -0.0021307)
            assert gradient[0, [0, 2], 2, 2, 6].tolist() == pytest.approx(expected, abs=1e-7)
        assert values == pytest.approx([1 - 0.8750287] * 2, abs=1e-6)
        assert norms == pytest.approx([0.0563849, 0.0583565], abs=1e-6)

    def test_weights_are_constants_unless_asked_otherwise(self, truth, weights, soft):
        """Released: the gradient also flows through the weights, where a bigger error elsewhere can pay."""
        labels, alone = toy_labels()[None, None], {"radius_dice": 0, "junction": 0, "breakage": 1}
        losses = (
            breakage_cldice_loss(soft.softmax(1)[:, 1:], truth, voxel_weights=weights, **RELEASED),
            AGTALLoss(**alone, **RELEASED, **TestTogether.words)(soft, labels),
        )
        for loss in losses:
            (gradient,) = torch.autograd.grad(loss, soft)
            assert gradient.abs().sum().item() == pytest.approx(0.0563849, abs=1e-6)

    def test_gradcheck_with_live_weights(self, truth, weights):
        probs = (truth * 0.5 + 0.3 * torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))).double()
        for form in ("relative", "released"):
            words = {"voxel_weights": weights, "detach": False, "form": form}
            assert gradcheck(
                lambda p, w=words: breakage_cldice_loss(p, truth, **w), (probs.requires_grad_(),), fast_mode=True
            )

    @pytest.mark.parametrize("gap", [1, 2, 3])
    def test_relative_form_acts_on_vessels_of_one_voxel(self, gap):
        """The released form cannot exceed 1.097 on them, however broken they are: almost no weight at all."""
        line = torch.zeros(1, 1, 7, 7, 21, dtype=torch.bool)
        line[..., 3, 3, :] = True
        broken = line.double()
        broken[..., 3, 3, 10 : 10 + gap] = 0
        relative, released = (breakage_weights(broken, line, form)[0, 0, 3, 3] for form in ("relative", "released"))
        assert 1.018 < released.max() < 1.098
        assert relative.max() == pytest.approx(math.exp({1: 0.5, 2: 1.5, 3: 2.5}[gap] / 3))
        losses = [breakage_cldice_loss(broken, line, form=form).item() for form in ("relative", "released")]
        assert losses[0] > losses[1]
        assert relative[0] == released[0] == 1

    def test_forms_agree_where_the_box_is_full(self):
        box = torch.ones(1, 1, 9, 9, 9, dtype=torch.bool)
        probs = box.double() * 0.5
        both = [breakage_weights(probs, box, form)[0, 0, 4, 4, 4].item() for form in ("relative", "released")]
        assert both[0] == pytest.approx(both[1])

    def test_thinning_keeps_the_voxel_where_the_calibre_changes(self, truth):
        """The soft skeleton has a hole there, so that a class wrong in that very voxel costs nothing."""
        wrong = prediction("b")
        assert breakage_cldice_loss(wrong, truth, skeleton="soft").item() == pytest.approx(0, abs=1e-6)
        assert breakage_cldice_loss(wrong, truth).item() > 0.01

    def test_absent_class_is_skipped_and_does_not_explode(self):
        """Scored like a present one, it has a gradient of 2e4 where a trace of it is predicted."""
        truth = one_hot(toy_labels().clamp(max=1))
        probs = truth.double() * 0.9
        probs[0, 1, 2, 2, 3] = 1e-5
        probs.requires_grad_()
        breakage_cldice_loss(probs, truth).backward()
        assert not probs.grad[0, 1].any()
        assert probs.grad.abs().max() < 1

    @pytest.mark.parametrize("wrong", [{"form": "new"}, {"skeleton": "hard"}])
    def test_unknown_choices_are_refused(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong.values()))):
            AGTALLoss(**wrong)


class TestCoOccurrence:
    @pytest.mark.parametrize(
        ("case", "weighted", "plain"),
        [
            ("perfect", 0.710917, 1.008230),
            ("a", 0.498548, 0.983025),
            ("b", 0.572534, 0.507174),
            ("c", 1.326826, 1.281281),
        ],
    )
    def test_R05(self, truth, weights, case, weighted, plain):
        probs, s = prediction(case), {"smooth": 1e-5 / 27}
        found = co_occurrence_loss(probs, SWAPPED, voxel_weights=weights, **s).item()
        assert found * 27 == pytest.approx(weighted, abs=1e-5)
        assert co_occurrence_loss(probs, SWAPPED, **s).item() * 27 == pytest.approx(plain, abs=1e-5)
        assert co_occurrence_loss(probs, torch.zeros(2, 2), voxel_weights=weights).item() == 0

    @pytest.mark.parametrize("classes", [1, 2, 5])
    @pytest.mark.parametrize("batch", [1, 2, 3])
    def test_equals_obvious_loops_for_any_batch_and_number_of_classes(self, rng, classes, batch):
        """The released kernel has a row per sample instead of per class, and the result is never made a scalar."""
        probs = rng.dirichlet(np.ones(classes + 1), (batch, 3, 4, 4)).transpose(0, 4, 1, 2, 3)[:, 1:]
        forbidden = rng.random((classes, classes))
        padded = np.pad(probs, ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
        around = np.zeros(probs.shape)
        for z, y, x in np.ndindex(3, 4, 4):
            around[..., z, y, x] = padded[..., z : z + 3, y : y + 3, x : x + 3].sum((2, 3, 4)) / 27
        values = [
            sum(forbidden[i, j] * (around[b, i] * around[b, j]).sum() for j in range(classes))
            / (around[b, i].sum() + 1e-5)
            for b, i in np.ndindex(batch, classes)
        ]
        found = co_occurrence_loss(torch.from_numpy(probs), torch.from_numpy(forbidden))
        assert found.shape == ()
        assert found.item() == pytest.approx(np.mean(values), rel=1e-9)

    def test_no_tensor_over_pairs_and_voxels(self):
        """Released: (B, C, C, voxels), 5.2 GB for 20 classes in a batch of two patches."""
        classes, voxels = 20, 8 * 16 * 16
        probs = torch.rand(1, classes, 8, 16, 16, requires_grad=True)
        with Operators() as operators:
            co_occurrence_loss(probs, 1 - torch.eye(classes)).backward()
        assert classes * voxels <= operators.largest < 2 * classes * voxels

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_does_not_overflow(self, dtype):
        """Sums over pairs pass 65504, the largest number of fp16, for a vessel of a few hundred voxels."""
        logits = torch.zeros(1, 3, 24, 24, 24, dtype=dtype)
        logits[:, 1, :12], logits[:, 2, 12:] = 20, 20
        labels = logits.argmax(1, keepdim=True)
        words = {"softmax": True, "to_onehot_y": True, "forbidden": SWAPPED}
        expected = AGTALLoss(**words)(logits.double(), labels).item()
        with torch.autocast("cpu", dtype=dtype):
            found = AGTALLoss(**words)(logits, labels)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(expected, rel=1e-5)

    def test_range(self, rng):
        probs = torch.from_numpy(rng.dirichlet(np.ones(5), (2, 4, 4, 4))).movedim(-1, 1)[:, 1:]
        assert 0 <= co_occurrence_loss(probs, torch.ones(4, 4)).item() <= 1


class TestJunction:
    @pytest.mark.parametrize(
        ("case", "edges", "background"),
        [("perfect", 0, 0), ("a", 0.379931, 1 / 30), ("b", 0.539867, 0), ("c", 0.731893, 0)],
    )
    def test_R05(self, truth, case, edges, background):
        """Released: the edges of the truth are not cut to the junction, and even the truth costs 5.61."""
        found = junction_loss(prediction(case), truth, junction_mask(truth)).item()
        assert found == pytest.approx(0.1 * (edges + background), abs=1e-6)

    def test_soft_prediction(self, truth, soft):
        probs = soft.softmax(1)[:, 1:]
        assert junction_loss(probs, truth, junction_mask(truth)).item() == pytest.approx(0.0486010, abs=1e-6)

    def test_patch_without_junction_is_finite(self):
        """Released: the mean over no voxel is NaN, and mixed precision then skips the step."""
        truth = one_hot(toy_labels().clamp(max=1))
        probs = (truth * 0.9).double().requires_grad_()
        value = junction_loss(probs, truth, junction_mask(truth))
        value.backward()
        assert value.item() == 0
        assert probs.grad.isfinite().all()

    def test_mask_is_what_obvious_loops_find(self, label_maps):
        labels = label_maps(batch=1, count=40)[0, 0]
        truth = one_hot(labels)
        contacts = torch.zeros_like(labels, dtype=torch.bool)
        for z, y, x in torch.argwhere(labels > 0).tolist():
            around = labels[max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            contacts[z, y, x] = ((around > 0) & (around != labels[z, y, x])).any()
        expected = tube(contacts[None, None]) & (labels > 0)
        assert contacts.any()
        assert torch.equal(junction_mask(truth), expected)

    def test_nothing_else_is_computed(self, truth):
        """The released transform computes a skeleton and distances for the junctions and uses neither."""
        with Operators() as operators:
            junction_loss(truth.double(), truth, junction_mask(truth))
        assert {name for name in operators.names if name.startswith("imbal::")} == {
            "imbal::surroundings",
            "imbal::tube",
        }


class TestTogether:
    words = {"softmax": True, "to_onehot_y": True, "radius_range": RADII}  # noqa: RUF012

    def test_R05_total(self, soft):
        """The worked total holds the cross-entropy with label smoothing, 0.3170430, and scores with a minus sign."""
        labels = toy_labels()[None, None]
        loss = AGTALLoss(forbidden=SWAPPED, **RELEASED, **self.words)(soft, labels).item()
        assert loss + 0.3170430 - 1.5 == pytest.approx(-0.7971352, abs=1e-5)

    def test_factors_choose_terms(self, soft):
        labels = toy_labels()[None, None]
        factors = ("radius_dice", "breakage", "co_occurrence", "junction")
        alone = [
            AGTALLoss(forbidden=SWAPPED, **self.words, **{f: float(f == name) for f in factors})(soft, labels)
            for name in factors
        ]
        together = AGTALLoss(forbidden=SWAPPED, **self.words, **dict.fromkeys(factors, 1.0))(soft, labels)
        assert sum(alone).item() == pytest.approx(together.item())
        assert all(value > 0 for value in alone)

    @pytest.mark.parametrize(
        "wrong", [{"forbidden": [[0, 1]]}, {"forbidden": [[2.0]]}, {"breakage": -1}, {"spacing": (1, 0)}]
    )
    def test_impossible_options(self, wrong):
        with pytest.raises(ValueError, match=r"forbidden|factors|spacing"):
            AGTALLoss(**wrong)

    def test_regions_are_refused(self):
        with pytest.raises(NotImplementedError, match="overlapping regions"):
            AGTALLoss(sigmoid=True)

    def test_the_matrix_moves_with_the_module(self):
        assert AGTALLoss(forbidden=SWAPPED).to("meta").forbidden.device.type == "meta"
