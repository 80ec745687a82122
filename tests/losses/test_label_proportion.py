"""Label proportion: worked numbers, obvious loops, what it may and may not ask for."""

import math

import numpy as np
import pytest
import torch

from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.labels import LabelSpec
from nnunet_imbal.losses.label_proportion import LabelProportion, interval_penalty, label_proportion_loss
from nnunet_imbal.proportions import collect_proportions, patch_proportions, proportion_bounds

LOGITS = torch.tensor([[2.0, 0], [0, 0], [0, 1], [1, 0]], dtype=torch.float64)
EXPECTED = torch.tensor([0.75, 0.25], dtype=torch.float64)
ENTROPY = -(EXPECTED * EXPECTED.log()).sum().item()
BANK = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.0, 0.2], [1.0, 0.0, 0.0], [0.6, 0.4, 0.0]])


@pytest.mark.parametrize(
    ("temperature", "value", "divergence", "gradient"),
    [
        (1.0, 0.615234, 0.052899, [-0.016864, -0.040156, -0.031581, -0.031581]),
        (0.5, 0.600146, 0.037810, [-0.004857, -0.068741, -0.028869, -0.028869]),
    ],
)
def test_published_loss(temperature, value, divergence, gradient):
    logits = LOGITS.clone().requires_grad_()
    loss = label_proportion_loss(logits, EXPECTED, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert loss.item() - ENTROPY == pytest.approx(divergence, abs=1e-6)
    assert logits.grad[:, 0].numpy() == pytest.approx(np.array(gradient), abs=1e-6)
    torch.testing.assert_close(logits.grad.sum(1), torch.zeros(4, dtype=torch.float64))


def test_published_loss_sees_the_proportions_of_all_voxels_only():
    voxels = LOGITS.T.reshape(1, 2, 2, 2)
    loss = label_proportion_loss(voxels, EXPECTED, 1.0)
    assert loss.item() == pytest.approx(0.615234, abs=1e-6)
    constant = EXPECTED.log().view(1, 2, 1, 1).expand_as(voxels)
    assert label_proportion_loss(constant, EXPECTED, 1.0).item() == pytest.approx(ENTROPY)


def test_published_draws():
    """NumPy's draw is the paper's: the spread of a batch of 192 images."""
    counts = [2205, 1707, 1321, 1023, 792, 613, 474, 367, 284, 220]
    draws = np.random.default_rng(0).multivariate_hypergeometric(counts, 192, size=20_000) / 192
    assert draws.mean(0)[[0, 9]] == pytest.approx([0.2448, 0.0244], abs=1e-3)
    assert draws.std(0)[[0, 9]] == pytest.approx([0.03070, 0.01102], rel=0.02)


def test_drawing_proportions_changes_no_mean_gradient():
    rng = np.random.default_rng(0)
    draws = torch.tensor(rng.multivariate_hypergeometric([75, 25], 8, size=200) / 8)

    def gradient(proportions):
        logits = LOGITS.clone().requires_grad_()
        label_proportion_loss(logits, proportions).backward()
        return logits.grad

    mean = torch.stack([gradient(each) for each in draws]).mean(0)
    torch.testing.assert_close(mean, gradient(draws.mean(0)))


def test_interval_by_hand():
    proportions = torch.tensor([0.95, 0.0499, 0.0001], dtype=torch.float64)
    lower = torch.tensor([0.88, 0.05, 0.0005], dtype=torch.float64)
    upper = torch.tensor([0.97, 0.12, 0.002], dtype=torch.float64)
    assert interval_penalty(proportions, lower, upper).item() == pytest.approx(0.268095, abs=1e-6)


def test_divergence_and_log_ratio_by_hand():
    """The rare class is wrong tenfold: the divergence hardly notices, the log-ratio does."""
    bank = torch.tensor([[0.90, 0.0990, 0.0010]])
    logits = torch.tensor([0.95, 0.0499, 0.0001], dtype=torch.float64).log().view(1, 3, 1, 1)
    divergence = LabelProportion(bank, penalty="kl")(logits)
    assert divergence.item() == pytest.approx(0.021467, abs=1e-6)
    assert LabelProportion(bank, penalty="log_ratio")(logits).item() == pytest.approx(1.924727, rel=0.01)


def naive_bounds(bank, patches, tail, draws, seed):
    chosen = torch.randint(len(bank), (patches, draws), generator=torch.Generator().manual_seed(seed)).numpy()
    lower, upper = np.zeros((2, patches, bank.shape[1]))
    for n in range(1, patches + 1):
        bags = [bank.double().numpy()[row[:n]].mean(0) for row in chosen.T]
        for c in range(bank.shape[1]):
            values = np.array([bag[c] for bag in bags])
            lower[n - 1, c] = np.quantile(values, tail)
            if (values > 0).any():
                upper[n - 1, c] = np.quantile(values[values > 0], 1 - tail)
    return lower, upper


def test_bounds_equal_obvious_loops():
    found = proportion_bounds(BANK, 5, tail=0.1, draws=60, seed=3)
    for ours, naive in zip(found, naive_bounds(BANK, 5, 0.1, 60, 3), strict=True):
        assert ours.numpy() == pytest.approx(naive, abs=1e-12)


def test_bounds_narrow_with_more_patches():
    lower, upper = proportion_bounds(BANK, 32)
    widths = (upper - lower)[:, 0]
    assert widths[0] > 2 * widths[-1]
    mean = BANK.double().mean(0)
    assert (lower <= mean).all()
    assert (mean <= upper).all()


def test_a_class_in_few_patches_may_appear():
    bank = torch.tensor([[1.0, 0.0]] * 99 + [[0.7, 0.3]])
    _, upper = proportion_bounds(bank, 1)
    assert upper[0, 1] == pytest.approx(0.3)
    logits = torch.tensor([0.7, 0.3]).log().view(1, 2, 1, 1)
    assert LabelProportion(bank)(logits).item() == pytest.approx(0, abs=1e-5)


def test_a_class_in_no_patch_has_no_say():
    bank = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]])
    logits = torch.tensor([0.85, 0.15, 1e-9]).log().view(1, 3, 1, 1).requires_grad_()
    loss = LabelProportion(bank)(logits)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(logits.grad).all()


def test_module_equals_obvious_loops():
    torch.manual_seed(0)
    logits, mask = torch.randn(3, 3, 4, 5, 6), torch.zeros(3, 1, 4, 5, 6)
    mask[1, 0, 0, 0, 0] = 1  # one labelled voxel, and the patch is left out
    lower, upper = proportion_bounds(BANK, 2)
    probs = logits.softmax(1)
    total = 0.0
    for c in range(3):
        share = (probs[0, c].mean() + probs[2, c].mean()).item() / 2
        low, high = lower[1, c].item(), upper[1, c].item()
        total += (max(low - share, 0) + max(share - high, 0)) / (high - low)
    assert LabelProportion(BANK)(logits, mask).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("penalty", ["interval", "kl", "log_ratio"])
def test_gradcheck(penalty):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    loss = LabelProportion(BANK, penalty=penalty, memory=1.0).double()
    assert torch.autograd.gradcheck(loss, (logits,))


def test_gradcheck_regions():
    logits = torch.linspace(-2, 3, 24, dtype=torch.float64).view(2, 3, 2, 2).requires_grad_()
    loss = LabelProportion(BANK, regions=True, memory=1.0).double()
    assert torch.autograd.gradcheck(loss, (logits,))
    assert loss(logits).item() > 0


def test_labelled_patches_get_no_gradient():
    logits = torch.randn(2, 3, 4, 4).requires_grad_()
    mask = torch.zeros(2, 1, 4, 4)
    mask[0] = 1
    LabelProportion(BANK)(logits, mask).backward()
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def test_without_an_unlabelled_patch():
    logits = torch.randn(2, 3, 4, 4).requires_grad_()
    loss = LabelProportion(BANK)
    value = loss(logits, torch.ones(2, 1, 4, 4))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()
    assert loss.patches == 0


def test_memory_stands_for_more_patches():
    """A running mean of single patches ends up worth (2 - a) / a of them, at their mean."""
    torch.manual_seed(0)
    loss = LabelProportion(BANK, memory=0.1)
    for _ in range(300):
        share = BANK[torch.randint(len(BANK), ())].clamp(min=1e-6)
        value = loss(share.log().view(1, 3, 1, 1))
    assert loss.patches.item() == pytest.approx(19, rel=0.01)
    assert loss.mean.numpy() == pytest.approx(BANK.mean(0).numpy(), abs=0.1)
    assert value.item() < 1


def test_memory_keeps_the_size_of_the_gradient():
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    sums = []
    for memory in (0.1, 1.0):
        loss = LabelProportion(BANK, memory=memory, penalty="kl")
        loss(torch.zeros(1, 3, 4, 4))
        sums.append(torch.autograd.grad(loss(logits), logits)[0])
    torch.testing.assert_close(*sums)


def test_resume_from_the_state_alone():
    torch.manual_seed(0)
    loss = LabelProportion(BANK)
    for _ in range(3):
        loss(torch.randn(1, 3, 4, 4))
    state = loss.state_dict()
    other = LabelProportion(state["bank"])
    other.load_state_dict(state)
    logits = torch.randn(1, 3, 4, 4)
    assert other(logits).item() == loss(logits).item()


def test_validation_does_not_touch_the_memory():
    loss = LabelProportion(BANK).eval()
    loss(torch.randn(1, 3, 4, 4))
    assert loss.patches == 0


def test_half_precision_logits():
    logits = torch.randn(2, 3, 16, 16)
    exact = LabelProportion(BANK)(logits.half().double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LabelProportion(BANK)(logits.half())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


def test_nan_is_not_hidden():
    logits = torch.randn(2, 3, 4, 4)
    logits[0, 0, 0, 0] = torch.nan
    assert LabelProportion(BANK)(logits).isnan()


def test_proportions_of_regions():
    target = torch.zeros(2, 3, 4, 4)
    target[0, 0, :2], target[0, 1, :1] = 1, 1
    target[1, 2, 0, 0] = 1  # the last channel marks what nobody labelled
    found = patch_proportions(target, LabelSpec(has_regions=True, ignore_label=4), 2)
    assert found.tolist() == [[0.5, 0.25]]


def test_collecting_stops():
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield torch.zeros(2, 1, 4, 4)

    assert collect_proportions(endless(), LabelSpec(), 2, patches=7).shape == (7, 2)
    assert len(drawn) == 4
    with pytest.raises(DataError, match="no training patch is labelled completely"):
        collect_proportions(endless(), LabelSpec(ignore_label=0), 2, patches=7)
    assert len(drawn) == 4 + 35


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"penalty": "l1"}, "unknown penalty 'l1'"),
        ({"penalty": "kl", "regions": True}, 'take "interval" for regions'),
        ({"memory": 0.0}, "memory above 0 to 1, got 1.0 and 0.0"),
        ({"temperature": math.nan}, "temperature must be above 0"),
        ({"bank": torch.zeros(0, 3)}, r"got \(0, 3\)"),
        ({"bank": torch.full((2, 3), 1.5)}, "between 0 and 1"),
    ],
)
def test_wrong_options(words, message):
    with pytest.raises(ConfigError, match=message):
        LabelProportion(**{"bank": BANK, **words})


def test_wrong_shapes():
    with pytest.raises(ConfigError, match=r"logits must be \(B, 3, \*S\).* got \(1, 2, 4, 4\)"):
        LabelProportion(BANK)(torch.zeros(1, 2, 4, 4))
    with pytest.raises(ConfigError, match=r"mask \(1, 4, 4\)"):
        LabelProportion(BANK)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4))
