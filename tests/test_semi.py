"""Learning from unlabelled voxels: each formula beside obvious loops, and who gets a gradient from what."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.semi import (
    ConfidenceGate,
    FeatureTap,
    MeanTeacher,
    PseudoLabels,
    UnlabelledLoss,
    consistency_loss,
    cross_pseudo_loss,
    perturb_intensity,
    pseudo_label_loss,
    ramp_up,
    unwrap,
)


def numbers(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def voxels(*shape, seed=0, share=0.5):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


class TestTeacher:
    def test_average_is_that_of_a_loop(self):
        network, decay = nn.Linear(2, 3), 0.6
        teacher, expected = MeanTeacher(network, decay), None
        for step in range(8):
            with torch.no_grad():
                network.weight.copy_(numbers(3, 2, seed=step))
            teacher.update_parameters(network)
            keep = min(1 - 1 / (step + 1), decay)
            expected = network.weight.detach().clone() if step == 0 else keep * expected + (1 - keep) * network.weight
        torch.testing.assert_close(teacher.module.weight.detach(), expected.detach())

    def test_buffers_are_the_networks(self):
        network = nn.BatchNorm2d(2)
        teacher = MeanTeacher(network)
        network(torch.randn(4, 2, 5, 5))
        teacher.update_parameters(network)
        assert torch.equal(teacher.module.running_mean, network.running_mean)

    def test_it_gets_no_gradient_and_no_dropout(self):
        network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9))
        teacher = MeanTeacher(network)
        teacher.train()
        outputs = [teacher(torch.ones(1, 4)) for _ in range(2)]
        assert torch.equal(*outputs)
        assert not outputs[0].requires_grad
        assert not any(p.requires_grad for p in teacher.parameters())
        assert all(p.requires_grad for p in network.parameters())

    def test_a_restored_teacher_goes_on_as_if_nothing_had_happened(self):
        networks = [nn.Linear(3, 3) for _ in range(6)]
        whole = MeanTeacher(networks[0], 0.8)
        for network in networks[:3]:
            whole.update_parameters(network)
        resumed = MeanTeacher(networks[5], 0.8)
        resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
        for network in networks[3:]:
            whole.update_parameters(network)
            resumed.update_parameters(network)
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
        assert whole.n_averaged == resumed.n_averaged == 6

    @pytest.mark.slow
    def test_a_compiled_network_teaches_as_itself(self):
        network = nn.Linear(2, 2)
        compiled = torch.compile(network, backend="eager")
        assert unwrap(compiled) is network
        teacher = MeanTeacher(compiled)
        teacher.update_parameters(compiled)
        assert set(teacher.module.state_dict()) == {"weight", "bias"}
        sees = torch.compile(teacher, backend="aot_eager")
        for weight in (1.0, 2.0):
            nn.init.constant_(network.weight, weight)
            teacher.update_parameters(compiled)
            torch.testing.assert_close(sees(torch.ones(1, 2)), teacher.module(torch.ones(1, 2)).detach())

    @pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
    def test_wrong_decay(self, decay):
        with pytest.raises(ConfigError, match="at least 0 and below 1, got"):
            MeanTeacher(nn.Linear(1, 1), decay)


def test_ramp_has_the_published_values():
    values = [ramp_up(t, 1) for t in (0, 0.25, 0.5, 0.75, 1, 2)]
    assert values == pytest.approx([0.006738, 0.060055, 0.286505, 0.731616, 1, 1], abs=1e-6)
    assert ramp_up(0, 0) == 1


def states_of(probs, regions):
    """Loops: for each channel of answers, the answer and its confidence at each place."""
    answers, batch = {}, probs.shape[0]
    for b in range(batch):
        for place in np.ndindex(*probs.shape[2:]):
            p = probs[(b, slice(None), *place)].tolist()
            if regions:
                for r, value in enumerate(p):
                    answers[b, r, place] = (2 * r + (value > 0.5), max(value, 1 - value))
            else:
                best = max(range(len(p)), key=p.__getitem__)
                answers[b, 0, place] = (best, p[best])
    return answers


class TwinGate:
    def __init__(self, answers, threshold, floor, momentum):
        self.means, self.threshold, self.floor, self.momentum = [None] * answers, threshold, floor, momentum

    def thresholds(self):
        surest = max((m for m in self.means if m is not None), default=1.0)
        return [self.threshold if m is None else max(self.floor, self.threshold * m / surest) for m in self.means]

    def __call__(self, probs, unlabelled, regions):
        answers = states_of(probs, regions)
        known = {key: value for key, value in answers.items() if unlabelled[(key[0], 0, *key[2])]}
        for state in range(len(self.means)):
            found = [confidence for answer, confidence in known.values() if answer == state]
            if found:
                mean, old = sum(found) / len(found), self.means[state]
                self.means[state] = mean if old is None else self.momentum * old + (1 - self.momentum) * mean
        needed = self.thresholds()
        return {key: confidence >= needed[answer] for key, (answer, confidence) in known.items()}


class TestGate:
    @pytest.mark.parametrize("regions", [False, True])
    def test_thresholds_and_decisions_are_those_of_loops(self, regions):
        channels, options = 3, {"threshold": 0.9, "floor": 0.4, "momentum": 0.7}
        gate = ConfidenceGate(channels, regions=regions, **options)
        twin = TwinGate(len(gate.seen), **options)
        for step in range(4):
            logits = numbers(2, channels, 3, 4, seed=step)
            if step < 2:
                logits[:, 1] -= 9  # a class that nobody predicts at first
            probs = (torch.sigmoid(logits) if regions else torch.softmax(logits, 1)).float()
            unlabelled = voxels(2, 1, 3, 4, seed=step)
            pseudo, expected = gate(probs, unlabelled), twin(probs, unlabelled, regions)
            assert gate.thresholds().tolist() == pytest.approx(twin.thresholds(), abs=1e-6)
            for (b, r, place), accepted in expected.items():
                assert pseudo.accepted[(b, r, *place)] == accepted
            assert pseudo.accepted.sum() == sum(expected.values())
            truth = probs > 0.5 if regions else probs.argmax(1, keepdim=True)
            assert torch.equal(pseudo.labels, truth)

    def test_thresholds_stay_in_their_range_and_follow_confidence(self):
        gate = ConfidenceGate(3, threshold=0.95, floor=0.5)
        assert gate.thresholds().tolist() == pytest.approx([0.95] * 3)
        probs = torch.tensor([[0.99, 0.005, 0.005], [0.3, 0.6, 0.1]]).view(2, 3, 1, 1)
        pseudo = gate(probs, torch.ones(2, 1, 1, 1, dtype=torch.bool))
        assert gate.thresholds().tolist() == pytest.approx([0.95, 0.95 * 0.6 / 0.99, 0.95])
        assert pseudo.accepted.all()

    def test_labelled_voxels_and_evaluation_teach_it_nothing(self):
        gate = ConfidenceGate(2)
        probs = torch.softmax(numbers(1, 2, 4, 4), 1)
        assert not gate(probs, voxels(1, 1, 4, 4, share=0)).accepted.any()
        gate.eval()(probs, voxels(1, 1, 4, 4, share=1))
        assert not gate.seen.any()
        assert gate.mean_confidence.eq(1).all()

    def test_its_state_is_kept(self):
        gate = ConfidenceGate(2)
        gate(torch.softmax(numbers(1, 2, 4, 4), 1), voxels(1, 1, 4, 4))
        other = ConfidenceGate(2)
        other.load_state_dict(gate.state_dict())
        assert torch.equal(other.thresholds(), gate.thresholds())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"threshold": 1.1}, "threshold <= 1"),
            ({"threshold": 0.0, "floor": 0.0}, "threshold > 0"),
            ({"threshold": 0.5, "floor": 0.6}, "floor <= threshold"),
            ({"momentum": 1.0}, "below 1, got 1.0"),
        ],
    )
    def test_wrong_options(self, options, message):
        with pytest.raises(ConfigError, match=message):
            ConfidenceGate(2, **options)


def pseudo_by_loops(logits, labels, accepted, unlabelled, regions):
    batch, channels, *shape = logits.shape
    places = [(b, *place) for b in range(batch) for place in np.ndindex(*shape)]
    free = [place for place in places if unlabelled[(place[0], 0, *place[1:])]]

    def at(tensor, place, channel=0):
        return tensor[(place[0], channel, *place[1:])].item()

    def prob(place, channel):
        if regions:
            return 1 / (1 + math.exp(-at(logits, place, channel)))
        powers = [math.exp(at(logits, place, c)) for c in range(channels)]
        return powers[channel] / sum(powers)

    entropy, dice = 0.0, []
    for place in free:
        if regions:
            for r in range(channels):
                p = prob(place, r)
                entropy -= at(accepted, place, r) * math.log(p if at(labels, place, r) else 1 - p)
        else:
            entropy -= at(accepted, place) * math.log(prob(place, at(labels, place)))
    for c in range(channels) if regions else range(1, channels):
        r = c if regions else 0
        mine = [place for place in free if (at(labels, place, c) if regions else at(labels, place) == c)]
        taken = [place for place in mine if at(accepted, place, r)]
        if mine:
            overlap = sum(prob(place, c) for place in taken)
            size = sum(prob(place, c) for place in free if at(accepted, place, r)) + len(taken)
            dice.append(len(taken) / len(mine) * (1 - 2 * overlap / size) if size else 0.0)
    return entropy / max(len(free), 1) + (sum(dice) / len(dice) if dice else 0.0)


class TestLosses:
    @pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])
    def test_consistency_is_that_of_loops(self, shape):
        p, q = (torch.softmax(numbers(2, 3, *shape, seed=seed), 1) for seed in (0, 1))
        unlabelled = voxels(2, 1, *shape)
        places = unlabelled[:, 0].nonzero().tolist()
        expected = sum(
            (p[b, c][tuple(at)] - q[b, c][tuple(at)]).item() ** 2 for b, *at in places for c in range(3)
        ) / len(places)
        assert consistency_loss(p, q, unlabelled).item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("regions", [False, True])
    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])
    def test_pseudo_labels_are_those_of_loops(self, regions, share, shape):
        logits, unlabelled = numbers(2, 4, *shape), voxels(2, 1, *shape, seed=1)
        teacher = numbers(2, 4, *shape, seed=2)
        labels = teacher > 0 if regions else teacher.argmax(1, keepdim=True)
        accepted = voxels(*labels.shape, seed=3, share=share) & unlabelled
        value = pseudo_label_loss(logits, PseudoLabels(labels, accepted), unlabelled, regions=regions)
        assert value.item() == pytest.approx(pseudo_by_loops(logits, labels, accepted, unlabelled, regions), rel=1e-10)

    @pytest.mark.parametrize("regions", [False, True])
    def test_the_module_is_its_parts(self, regions):
        logits, teacher, unlabelled = numbers(2, 3, 4, 4), numbers(2, 3, 4, 4, seed=1), voxels(2, 1, 4, 4)
        loss = UnlabelledLoss(3, regions=regions, consistency=0.7, pseudo_labels=0.3, threshold=0.8)
        gate = copy.deepcopy(loss.gate)
        p, q = (torch.sigmoid(x) if regions else torch.softmax(x, 1) for x in (logits, teacher))
        pseudo = gate(q, unlabelled)
        expected = 0.7 * consistency_loss(p, q, unlabelled)
        expected = expected + 0.3 * pseudo_label_loss(logits, pseudo, unlabelled, regions=regions)
        assert loss(logits, teacher, unlabelled).item() == pytest.approx(expected.item(), rel=1e-12)

    @pytest.mark.parametrize("regions", [False, True])
    def test_gradients(self, regions):
        logits, teacher = numbers(1, 3, 3, 3).requires_grad_(), numbers(1, 3, 3, 3, seed=1).requires_grad_()
        unlabelled = voxels(1, 1, 3, 3)
        loss = UnlabelledLoss(3, regions=regions, threshold=0.6).eval()
        assert torch.autograd.gradcheck(lambda x: loss(x, teacher, unlabelled), (logits,))
        loss(logits, teacher, unlabelled).backward()
        assert teacher.grad is None
        touched = logits.grad.abs().sum(1, keepdim=True) > 0
        assert not touched[~unlabelled].any()
        assert touched.any()

    @pytest.mark.parametrize("batch", [0, 2])
    @pytest.mark.parametrize("regions", [False, True])
    def test_nothing_unlabelled_is_a_connected_zero(self, batch, regions):
        logits = torch.randn(batch, 3, 4, 4, requires_grad=True)
        value = UnlabelledLoss(3, regions=regions)(logits, torch.randn(batch, 3, 4, 4), voxels(batch, 1, 4, 4, share=0))
        value.backward()
        assert value.item() == 0
        assert not logits.grad.any()

    @pytest.mark.parametrize("size", [0.0, 1e4])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_finite_whatever_the_logits(self, size, dtype):
        logits = (size * torch.randn(1, 3, 4, 4)).to(dtype).requires_grad_()
        value = UnlabelledLoss(3)(logits, -logits, voxels(1, 1, 4, 4, share=1))
        value.backward()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()

    def test_a_small_structure_has_a_say(self):
        """100 voxels of an organ and 1 of a lesion: cross-entropy alone would charge a missed lesion a hundredth."""
        labels = torch.ones(1, 1, 1, 101, dtype=torch.long)
        labels[..., -1] = 2
        everything = torch.ones_like(labels, dtype=torch.bool)
        organ_everywhere = torch.zeros(1, 3, 1, 101)
        organ_everywhere[:, 1] = 10
        value = pseudo_label_loss(organ_everywhere, PseudoLabels(labels, everything), everything)
        assert value.item() == pytest.approx(10 / 101 + (1 / 201 + 1) / 2, abs=1e-3)

    @pytest.mark.parametrize("regions", [False, True])
    def test_cross_supervision_teaches_both_and_only_by_labels(self, regions):
        first, second = numbers(1, 3, 4, 4).requires_grad_(), numbers(1, 3, 4, 4, seed=1).requires_grad_()
        unlabelled = voxels(1, 1, 4, 4)
        value = cross_pseudo_loss(first, second, unlabelled, regions=regions)
        assert value.item() == pytest.approx(cross_pseudo_loss(second, first, unlabelled, regions=regions).item())
        value.backward()
        labels = first.detach() > 0 if regions else first.detach().argmax(1, keepdim=True)
        other = second.detach().clone().requires_grad_()
        pseudo = PseudoLabels(labels, unlabelled.expand_as(labels))
        pseudo_label_loss(other, pseudo, unlabelled, regions=regions).backward()
        torch.testing.assert_close(second.grad, other.grad)
        assert first.grad.any()

    def test_shapes_that_do_not_fit(self):
        loss, logits = UnlabelledLoss(2), torch.zeros(1, 2, 4, 4)
        for other, mask in [
            (logits[:, :1], voxels(1, 1, 4, 4)),
            (logits, voxels(1, 4, 4)),
            (logits, torch.ones(1, 1, 4, 4)),
        ]:
            with pytest.raises(ValueError, match=r"needed: \(B, C, \*S\) twice and \(B, 1, \*S\) bool"):
                loss(logits, other, mask)

    def test_wrong_weights(self):
        with pytest.raises(ConfigError, match="weights must be at least 0"):
            UnlabelledLoss(2, consistency=-1)


class TestViews:
    def test_range_of_the_changes(self):
        images = 40 + 7 * numbers(200, 1, 6, 6)
        generator = torch.Generator().manual_seed(0)
        views = perturb_intensity(images, contrast=0.25, brightness=0.5, noise=0.0, generator=generator)
        axes = (1, 2, 3)
        scale = images.std(axes, correction=0)
        shift = (views.mean(axes) - images.mean(axes)) / scale
        factor = views.std(axes, correction=0) / scale
        for values, limits in ((shift, (-0.5, 0.5)), (factor, (0.75, 1.25))):
            assert limits[0] <= values.min() < limits[0] + 0.05
            assert limits[1] - 0.05 < values.max() <= limits[1]

    def test_units_do_not_matter(self):
        images = numbers(2, 2, 4, 4, 4)
        views = [
            perturb_intensity(scaled, generator=torch.Generator().manual_seed(3))
            for scaled in (images, 100 * images + 7)
        ]
        torch.testing.assert_close(views[1], 100 * views[0] + 7)

    def test_only_the_first_channels_are_images(self):
        batch = numbers(2, 3, 4, 4)
        view = perturb_intensity(batch, channels=1)
        assert torch.equal(view[:, 1:], batch[:, 1:])
        assert not torch.equal(view[:, :1], batch[:, :1])

    def test_same_seed_same_view_and_a_constant_patch_stays(self):
        batch = numbers(2, 1, 4, 4)
        batch[1] = 5
        first, second = (perturb_intensity(batch, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(first, second)
        torch.testing.assert_close(first[1], batch[1])


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, image):
        return self.head(torch.relu(self.body(image)))


class TestFeatureTap:
    @pytest.mark.filterwarnings("ignore")  # what torch.compile warns about is its own
    @pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_features_and_their_gradient(self, compiled):
        network = TwoLayers()
        run = torch.compile(network, backend="aot_eager") if compiled else network
        tap = FeatureTap(network.head)
        for seed in range(2):
            image = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
            run(image)
            features = tap.take()
            torch.testing.assert_close(features, torch.relu(network.body(image)))
            network.zero_grad()
            features.sum().backward()
            assert network.body.weight.grad.any()

    def test_it_forgets_what_was_taken_and_complains_when_there_is_nothing(self):
        network = TwoLayers()
        tap = FeatureTap(network.head)
        with pytest.raises(RuntimeError, match="run the network first"):
            tap.take()
        network(torch.zeros(1, 1, 5, 5))
        tap.take()
        assert tap.features is None
        tap.remove()
        network(torch.zeros(1, 1, 5, 5))
        assert tap.features is None


def _train(network, images, unlabelled, tap=None, steps=3):
    teacher, loss = MeanTeacher(network, 0.5), UnlabelledLoss(3, threshold=0.6)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for step in range(steps):
        with torch.no_grad():
            guide = teacher(images)
        optimizer.zero_grad()
        value = loss(network(images + 0.1 * step), guide, unlabelled)
        if tap is not None:
            value = value + tap.take().square().mean()
        value.backward()
        optimizer.step()
        teacher.update_parameters(network)
    return teacher, loss.gate


def _data():
    images = numbers(4, 1, 6, 6).float()
    unlabelled = voxels(4, 1, 6, 6, seed=5)
    unlabelled[2:] = False  # the second rank has labels everywhere
    return images, unlabelled


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = TwoLayers()
    tap = FeatureTap(network.head)
    images, unlabelled = (tensor[2 * rank : 2 * rank + 2] for tensor in _data())
    teacher, gate = _train(DistributedDataParallel(network), images, unlabelled, tap)
    parts = {"gate": gate, "teacher": teacher, "network": network}
    torch.save({name: part.state_dict() for name, part in parts.items()}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore")
def test_two_ranks_train_as_one_process_does(tmp_path):
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2, join=True)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    torch.manual_seed(0)
    network = TwoLayers()
    tap = FeatureTap(network.head)
    teacher, gate = _train(network, *_data(), tap)
    for part, module in {"gate": gate, "teacher": teacher, "network": network}.items():
        for name, tensor in module.state_dict().items():
            assert torch.equal(first[part][name], second[part][name]), (part, name)
            torch.testing.assert_close(first[part][name], tensor)
