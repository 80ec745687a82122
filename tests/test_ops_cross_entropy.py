"""`one_vs_rest_cross_entropy`: ordinary where that is exact, and right where probabilities have rounded to 0 or 1."""

import pytest
import torch
from torch.nn import functional as F

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import cross_entropy, one_vs_rest_cross_entropy


def case(channels, first, shape=(3, 4), scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, channels, *shape, generator=generator, dtype=torch.float64)
    return logits, torch.rand(2, channels - first, *shape, generator=generator) > 0.5


@pytest.mark.parametrize("channels", [2, 3, 14])
@pytest.mark.parametrize("first", [0, 1])
def test_equals_binary_cross_entropy_of_the_softmax(channels, first):
    logits, target = case(channels, first)
    expected = F.binary_cross_entropy(logits.softmax(1)[:, first:], target.double(), reduction="none")
    torch.testing.assert_close(one_vs_rest_cross_entropy(logits, target), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 8.0])  # with 8, some answers are sure and wrong
@pytest.mark.parametrize("first", [0, 1])
def test_gradcheck(scale, first):
    logits, target = case(4, first, scale=scale)
    assert torch.autograd.gradcheck(lambda z: one_vs_rest_cross_entropy(z, target), (logits.requires_grad_(),))


@pytest.mark.parametrize("scale", [20.0, 1000.0])
def test_float32_keeps_confident_mistakes(scale):
    logits, target = case(5, 1, shape=(40, 40), scale=scale)
    results = []
    for z in (logits.clone().requires_grad_(), logits.float().requires_grad_()):
        errors = one_vs_rest_cross_entropy(z, target)
        errors.sum().backward()
        results.append((errors.detach().double(), z.grad.double()))
    (exact, exact_grad), (errors, grad) = results
    assert exact.max() > 2 * scale
    torch.testing.assert_close(errors, exact, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad, exact_grad, rtol=1e-4, atol=5e-5)


def test_pieces_do_not_show(monkeypatch):
    logits, target = case(3, 1, shape=(5, 7, 3))
    whole = one_vs_rest_cross_entropy(logits, target)
    monkeypatch.setattr(cross_entropy, "_PIECE", 20)
    torch.testing.assert_close(one_vs_rest_cross_entropy(logits, target), whole, rtol=1e-14, atol=1e-14)


def test_other_memory_orders():
    logits, target = case(3, 1, shape=(5, 7, 3))
    turned = logits.transpose(1, 4).contiguous().transpose(1, 4).requires_grad_()
    errors = one_vs_rest_cross_entropy(turned, target)
    assert torch.equal(errors, one_vs_rest_cross_entropy(logits, target))
    errors.sum().backward()
    straight = logits.requires_grad_()
    one_vs_rest_cross_entropy(straight, target).sum().backward()
    assert torch.equal(turned.grad, straight.grad)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_tensors(shape):
    logits = torch.zeros(shape, requires_grad=True)
    errors = one_vs_rest_cross_entropy(logits, torch.zeros(shape, dtype=torch.bool))
    errors.sum().backward()
    assert errors.shape == logits.grad.shape == shape


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck looks at non-leaves
def test_opcheck():
    logits, target = case(3, 1)
    torch.library.opcheck(torch.ops.imbal.one_vs_rest_cross_entropy.default, (logits.requires_grad_(), target))


def test_not_a_number_stays_visible():
    logits, target = case(3, 1)
    logits[0, 0, 1, 2] = float("nan")
    assert one_vs_rest_cross_entropy(logits, target)[0, :, 1, 2].isnan().all()


@pytest.mark.parametrize(
    ("logits", "target", "words"),
    [
        (torch.ones(1, 1, 4), torch.ones(1, 1, 4) > 0, r"\(1, 1, 4\)"),
        (torch.ones(1, 4, 4), torch.ones(1, 2, 4) > 0, r"\(1, 4, 4\) and \(1, 2, 4\)"),
        (torch.ones(1, 2, 4), torch.ones(1, 1, 4), "target bool"),
        (torch.ones(1, 2, 4).int(), torch.ones(1, 1, 4) > 0, "int32"),
    ],
)
def test_bad_input_is_refused(logits, target, words):
    with pytest.raises(ConfigError, match=words):
        one_vs_rest_cross_entropy(logits, target)
