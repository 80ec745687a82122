"""What every registered loss must do. A new loss inherits these tests by being registered.

All losses see three channels (background, class 1, class 2) with softmax unless a test says otherwise.
"""

import copy
import gc
import json
import pickle
import time
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch.autograd import gradcheck

from nnunet_imbal import build_loss, list_losses
from nnunet_imbal.labels import LabelSpec, to_one_hot
from nnunet_imbal.losses import DeepSupervision, WeightedSum
from nnunet_imbal.registry import get_loss

pytestmark = pytest.mark.parametrize("name", list_losses())
BUDGETS = Path(__file__).parents[2] / "benchmarks" / "budgets.json"
SOFTMAX = {"softmax": True, "to_onehot_y": True}


def needs_gpu(test):
    """Mark a test that runs only where torch sees an NVIDIA GPU."""
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
    return pytest.mark.gpu(missing(test))


def logits_for(labels, channels=3, sharpness=12.0):
    """Logits whose softmax is almost the one-hot target."""
    return (to_one_hot(labels, channels).float() - 0.5) * 2 * sharpness


def random_logits(labels, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(labels.shape[0], channels, *labels.shape[2:], generator=generator)


def symmetric_loss(name):
    """The loss, with soft skeletons where thinning takes the first of two equal voxels."""
    return build_loss(name, **SOFTMAX, **({} if get_loss(name).mirror_symmetric else {"skeleton": "soft"}))


def value_and_grad(loss, logits, *args):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *args)
    value.backward()
    return value.detach(), logits.grad


def test_R01_perfect_prediction_costs_nothing(name, label_maps):
    labels = label_maps()
    assert build_loss(name, **SOFTMAX)(logits_for(labels, sharpness=30), labels).item() <= 1e-4


def test_R02_worse_predictions_cost_more(name, label_maps):
    labels = label_maps()
    loss = build_loss(name, **SOFTMAX)
    perfect, random, worst = (
        loss(x, labels).item() for x in (logits_for(labels), random_logits(labels), -logits_for(labels))
    )
    assert worst > random > perfect


def test_R06_gradcheck(name, label_maps):
    labels = label_maps(batch=2, shape=(4, 5, 4), count=4, largest=2)
    logits = random_logits(labels).double().requires_grad_()
    loss = build_loss(name, **SOFTMAX, **({} if get_loss(name).exact_gradient else {"detach": False}))
    assert gradcheck(lambda x: loss(x, labels), (logits,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_R07_empty_target_is_finite_and_connected(name, reduction):
    labels = torch.zeros(2, 1, 8, 8, 8)
    loss = build_loss(name, **SOFTMAX, reduction=reduction)
    value, grad = value_and_grad(lambda x: loss(x, labels).sum(), random_logits(labels))
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("case", ["full", "single voxel", "border", "thin axis"])
def test_R08_extreme_shapes_are_finite(name, case):
    shape = (1, 6, 7) if case == "thin axis" else (6, 6, 7)
    labels = torch.zeros(1, 1, *shape, dtype=torch.long)
    if case == "full":
        labels += 1
    elif case == "single voxel":
        labels[0, 0, 3, 3, 3] = 2
    else:
        labels[..., 0] = 1
    value, grad = value_and_grad(build_loss(name, **SOFTMAX), random_logits(labels), labels)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()
    assert grad.abs().sum() > 0


def test_R09_sample_without_the_class(name, label_maps):
    labels = label_maps(batch=2)
    labels[1] = 0
    logits = random_logits(labels)
    loss = build_loss(name, **SOFTMAX)
    expected = loss(logits[:1], labels[:1]).item()
    if loss.counts_empty:
        expected = (expected + loss(logits[1:], labels[1:]).item()) / 2
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_R10_extreme_logits(name, label_maps, dtype, scale):
    labels = label_maps()
    logits = (random_logits(labels) * scale).to(dtype)
    value, grad = value_and_grad(build_loss(name, **SOFTMAX), logits, labels)
    exact = build_loss(name, **SOFTMAX)(logits.double(), labels).item()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact, rel=1e-4, abs=1e-5)
    assert torch.isfinite(grad).all()


@pytest.mark.slow
def test_R11_autocast_keeps_sums_in_float32(name):
    labels = torch.ones(1, 1, 160, 192, 160, dtype=torch.uint8)
    logits = torch.zeros(1, 2, 160, 192, 160, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, grad = value_and_grad(build_loss(name, **SOFTMAX), logits, labels)
    assert value.item() == pytest.approx(build_loss(name, **SOFTMAX)(logits.double(), labels).item(), rel=1e-5)
    assert torch.isfinite(grad).all()


@needs_gpu
def test_R11_R12_mixed_precision_on_a_gpu(name, label_maps):
    labels = label_maps(shape=(24, 24, 24)).cuda()
    weights = torch.zeros(3, device="cuda", requires_grad=True)
    optimizer, scaler = torch.optim.SGD([weights], lr=0.1), torch.GradScaler("cuda", init_scale=65_536.0)
    loss = build_loss(name, **SOFTMAX)
    with torch.autocast("cuda", dtype=torch.float16):
        logits = (random_logits(labels.cpu()).cuda() + weights.view(1, 3, 1, 1, 1)).half()
        value = loss(logits, labels)
    scaler.scale(value).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 65_536.0  # a smaller one would mean an infinite gradient
    assert value.dtype == torch.float32
    on_cpu = loss(logits.detach().cpu(), labels.cpu()).item()
    assert value.item() == pytest.approx(on_cpu, rel=1e-5)


@pytest.mark.parametrize("empty", [False, True])
def test_R13_nan_is_not_hidden(name, label_maps, empty):
    labels = label_maps() * (0 if empty else 1)
    logits = random_logits(labels)
    logits[0, :, 2, 2, 2] = float("nan")
    assert build_loss(name, **SOFTMAX)(logits, labels).isnan()


@pytest.mark.parametrize("poison", [50.0, float("nan")])
def test_R14_ignored_voxels_do_not_count(name, label_maps, poison):
    labels = label_maps()
    mask = torch.ones_like(labels)
    mask[..., 5:9, :] = 0
    logits = random_logits(labels)
    loss = build_loss(name, **SOFTMAX)
    value, grad = value_and_grad(loss, logits, labels, mask)
    hidden = (mask == 0).expand_as(logits)
    changed = logits.masked_fill(hidden, poison)
    other_labels = torch.where(mask == 0, 2 - labels, labels)
    other_value, other_grad = value_and_grad(loss, changed, other_labels, mask)
    assert other_value.item() == value.item()
    torch.testing.assert_close(other_grad[~hidden], grad[~hidden], rtol=0, atol=0)
    assert not grad[hidden].any()


def test_R15_everything_ignored(name, label_maps):
    labels = label_maps()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, grad = value_and_grad(
            build_loss(name, **SOFTMAX), random_logits(labels), labels, torch.zeros_like(labels)
        )
    assert value.item() == 0
    assert not grad.any()


@pytest.mark.parametrize("ignore", [False, True])
def test_R16_regions(name, label_maps, ignore):
    labels = label_maps()
    regions = torch.cat([labels > 0, labels == 2], dim=1)  # overlapping, as whole tumour and its core
    spec = LabelSpec(has_regions=True, ignore_label=3 if ignore else None)
    hidden = torch.zeros_like(labels, dtype=torch.bool)
    hidden[..., :3] = ignore
    target, mask = spec.split_target(torch.cat([regions, hidden], 1) if ignore else regions)
    if not get_loss(name).supports_regions:
        with pytest.raises(NotImplementedError):
            build_loss(name, **spec.activation())
        return
    loss = build_loss(name, **spec.activation())
    value, grad = value_and_grad(loss, random_logits(labels, channels=2), target, mask)
    assert 0 < value < float("inf")
    assert grad[:, 0].abs().sum() > 0  # channel 0 is a region, not background
    assert not grad[hidden.expand_as(grad)].any()


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.int64, torch.float32, torch.bool])
@pytest.mark.parametrize("squeeze", [False, True])
def test_R17_target_dtypes_and_shapes(name, label_maps, dtype, squeeze):
    labels = label_maps().clamp(max=1)
    logits = random_logits(labels)
    loss = build_loss(name, **SOFTMAX)
    other = labels.to(dtype)
    assert loss(logits, other.squeeze(1) if squeeze else other).item() == loss(logits, labels).item()


def test_R18_two_dimensions(name, label_maps):
    labels = label_maps(shape=(16, 17))
    value, grad = value_and_grad(build_loss(name, **SOFTMAX), random_logits(labels), labels)
    assert 0 < value < float("inf")
    assert torch.isfinite(grad).all()


def test_R18_anisotropic_spacing(name, label_maps):
    if not get_loss(name).uses_spacing:
        pytest.skip("this loss does not look at distances")
    labels = label_maps()
    value = build_loss(name, **SOFTMAX, spacing=(5.0, 0.7, 0.7))(random_logits(labels), labels)
    assert torch.isfinite(value)
    with pytest.raises(ValueError, match="spacing must be 3 positive numbers"):
        build_loss(name, **SOFTMAX, spacing=(1.0, 1.0))(random_logits(labels), labels)


@pytest.mark.parametrize("wrong", [3, -1])
def test_R19_impossible_label(name, label_maps, wrong):
    labels = label_maps()
    labels[0, 0, 0, 0, 0] = wrong
    with pytest.raises(ValueError, match=rf"label {wrong}\b.*3 channels"):
        build_loss(name, **SOFTMAX)(random_logits(labels), labels)


def test_R20_shapes_that_do_not_fit(name, label_maps):
    labels = label_maps()
    logits = random_logits(labels)
    with pytest.raises(ValueError, match=r"\(2, 1, 12, 12, 11\).*\(2, 3, 12, 12, 12\)"):
        build_loss(name, **SOFTMAX)(logits, labels[..., :-1])
    with pytest.raises(ValueError, match="to_onehot_y"):
        build_loss(name, softmax=True)(logits, labels)
    with pytest.raises(ValueError, match="meta"):
        build_loss(name, **SOFTMAX)(logits, labels.to("meta"))


def test_R21_meta_tensor(name, label_maps):
    labels = label_maps()
    logits = random_logits(labels)
    loss = build_loss(name, **SOFTMAX)
    value = loss(MetaTensor(logits), MetaTensor(labels))
    assert type(value) is torch.Tensor
    assert value.item() == loss(logits, labels).item()


def test_R22_deep_supervision(name, label_maps):
    labels = label_maps()
    logits = random_logits(labels)
    loss = build_loss(name, **SOFTMAX)
    plain = loss(logits, labels).item()
    half = (logits[..., ::2, ::2, ::2], labels[..., ::2, ::2, ::2])
    wrapped = DeepSupervision(loss)
    assert wrapped(logits, labels).item() == plain
    assert wrapped([logits], [labels]).item() == pytest.approx(plain)
    assert wrapped([logits, half[0]], [labels, half[1]]).item() == pytest.approx(plain)  # coarsest level left out
    broken = torch.full_like(half[0], float("nan"))
    skipped = DeepSupervision(loss, [1, 0])([logits, broken], [labels, half[1]])
    assert skipped.item() == pytest.approx(plain)
    both = DeepSupervision(loss, [3, 1])([logits, half[0]], [labels, half[1]]).item()
    assert both == pytest.approx(0.75 * plain + 0.25 * loss(*half).item(), rel=1e-5)
    with pytest.raises(ValueError, match="above 0"):
        DeepSupervision(loss, [0, 0])


def test_R23_pickle_copy_state_and_device(name, label_maps):
    labels = label_maps()
    logits = random_logits(labels)
    loss = build_loss(name, **SOFTMAX, weight=[1.0, 3.0])
    value = loss(logits, labels).item()
    for twin in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert twin(logits, labels).item() == value
    other = build_loss(name, **SOFTMAX, weight=[1.0, 1.0])
    other.load_state_dict(loss.state_dict())
    assert other(logits, labels).item() == value
    assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_R24_compiles_without_a_graph_break(name, label_maps, backend):
    labels = label_maps()
    logits = random_logits(labels)
    loss = build_loss(name, **SOFTMAX)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own notes while compiling
        compiled = torch.compile(loss, backend=backend, fullgraph=True)
        value, grad = value_and_grad(compiled, logits, labels)
    expected, expected_grad = value_and_grad(loss, logits, labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(grad, expected_grad)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), axis=st.sampled_from([2, 3, 4]))
def test_R25_order_of_samples_and_flips_do_not_matter(name, seed, axis):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(2, 1, 9, 9, 9, dtype=torch.long)
    labels[:, :, 1:3, 1:3, 1:3], labels[:, :, 6:, 5:7, 7] = 1, 1  # two cells with no voxel half-way between
    labels[0, :, 4, 1, 6] = 2
    logits = torch.randn(2, 3, 9, 9, 9, generator=generator).double()
    loss = build_loss(name, **SOFTMAX)
    value = loss(logits, labels).item()
    assert loss(logits.flip(0), labels.flip(0)).item() == pytest.approx(value, rel=1e-9)
    loss = symmetric_loss(name)
    value, flipped = loss(logits, labels).item(), loss(logits.flip(axis), labels.flip(axis)).item()
    assert flipped == pytest.approx(value, rel=0.02)  # voxels at equal distance may change their cell


def test_R25_without_ties_flips_do_not_matter_at_all(name):
    labels = torch.zeros(1, 1, 1, 5, 6, dtype=torch.long)
    labels[0, 0, 0, :2, :2], labels[0, 0, 0, 2, 5], labels[0, 0, 0, 4, 2] = 1, 1, 1
    logits = random_logits(labels, channels=2).double()
    loss = symmetric_loss(name)
    for axis in (2, 3, 4):
        assert loss(logits.flip(axis), labels.flip(axis)).item() == pytest.approx(
            loss(logits, labels).item(), rel=1e-12
        )


def _many_components(shape, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(2, 1, *shape, dtype=torch.uint8)
    for sample in labels[:, 0]:
        for _ in range(count):
            z, y, x = (int(torch.randint(0, n - 3, (1,), generator=generator)) for n in shape)
            sample[z : z + 3, y : y + 3, x : x + 3] = 1 + (x % 2)
    return labels


@pytest.mark.slow
def test_R26_extra_memory(name):
    """Peak of the process over what logits and labels take, read from the allocator's own high-water mark."""
    labels = _many_components((128, 128, 128), 200)
    logits = random_logits(labels).requires_grad_()
    loss = build_loss(name, **SOFTMAX)
    loss(logits, labels).backward()  # compile kernels and start threads outside the measurement
    logits.grad = None
    gc.collect()
    peak = _peak_extra_bytes(lambda: loss(logits, labels).backward())
    size = logits.numel() * logits.element_size()
    assert peak <= 6 * size, f"{peak / size:.1f} times the logits"


def _peak_extra_bytes(action):
    """Bytes of torch tensors (profiler) plus NumPy arrays (tracemalloc) alive at the same time, upper bound."""
    tracemalloc.start()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        action()
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak + numpy_peak


@pytest.fixture
def one_thread():
    """Threads that wait for work would count as work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_R27_time_budget(name):
    budget = json.loads(BUDGETS.read_text())["losses"][name]
    labels = _many_components((96, 96, 96), 60)
    logits = random_logits(labels).requires_grad_()
    loss = build_loss(name, **SOFTMAX)

    def seconds(action):
        start = time.process_time()
        action()
        return time.process_time() - start

    def plain_dice():
        probs, truth = torch.softmax(logits, 1)[:, 1:], to_one_hot(labels, 3)[:, 1:]
        (1 - 2 * (probs * truth).sum() / (probs.sum() + truth.sum())).backward()

    loss(logits, labels).backward()
    plain_dice()
    rounds = [(seconds(lambda: loss(logits, labels).backward()), seconds(plain_dice)) for _ in range(7)]
    ours, unit = (min(times) for times in zip(*rounds, strict=True))  # neighbours on the machine only add time
    assert ours <= 1.5 * budget["times_plain_dice"] * unit, f"{ours / unit:.1f} times plain soft Dice"


@pytest.mark.slow
def test_R28_learns_one_volume(name, label_maps):
    labels = label_maps(batch=1, shape=(16, 16, 16), count=8, largest=5)
    logits = torch.zeros(1, 3, 16, 16, 16, requires_grad=True)
    loss, optimizer = build_loss(name, **SOFTMAX), torch.optim.Adam([logits], lr=0.3)
    if not loss.stands_alone:  # then it must at least not keep another loss from learning
        loss = WeightedSum([loss, build_loss("cc_dice", **SOFTMAX)], [1, 1])
    for _ in range(60):
        optimizer.zero_grad()
        loss(logits, labels).backward()
        optimizer.step()
    predicted, truth = logits.argmax(1, keepdim=True) > 0, labels > 0
    assert 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()) > 0.95


def test_weighted_sum(name, label_maps):
    labels = label_maps()
    logits = random_logits(labels)
    loss = build_loss(name, **SOFTMAX)
    twice = WeightedSum([loss, loss], [1.5, 0.5])(logits, labels).item()
    assert twice == pytest.approx(2 * loss(logits, labels).item(), rel=1e-6)


def test_facts_are_stated(name):
    cls = get_loss(name)
    assert cls.paper
    assert cls.summary
    assert cls.__doc__
