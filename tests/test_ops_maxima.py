"""`component_max` as an operator: values, the way back of the gradient, devices, compilation, refusals."""

import pytest
import torch

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.ops import component_labels, component_max, maxima


@pytest.fixture
def batch():
    """Two samples, three classes; one class of one sample is absent."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 3, 6, 7, 8, generator=generator) < 0.04
    mask[1, 1] = False
    return torch.rand(mask.shape, generator=generator), component_labels(mask)


def test_equals_masked_maxima(batch):
    values, labels = batch
    found = component_max(values, labels)
    assert found.shape == (2, 3, int(labels.max()) + 1)
    for k in range(found.shape[-1]):
        expected = values.masked_fill(labels != k, float("-inf")).amax((2, 3, 4))
        torch.testing.assert_close(found[..., k], expected, rtol=0, atol=0)


def test_gradient_goes_to_the_highest_voxel(batch):
    values, labels = batch
    values = values.double().requires_grad_()
    found = component_max(values, labels)[..., 1:]
    (found * torch.arange(1, found.shape[-1] + 1)).masked_fill(found.isinf(), 0).sum().backward()
    assert values.grad.count_nonzero() == found.isfinite().sum()
    for b, c, k in found.isfinite().nonzero().tolist():
        inside = values.detach()[b, c].masked_fill(labels[b, c] != k + 1, -1)
        assert values.grad[b, c].flatten()[inside.argmax()] == k + 1


def test_gradcheck(batch):
    values, labels = batch
    values = values.double().requires_grad_()

    def finite(x):
        found = component_max(x, labels)
        return found.masked_fill(found.isinf(), 0)

    assert torch.autograd.gradcheck(finite, (values,))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck looks at non-leaves
def test_opcheck(batch):
    values, labels = batch
    for numbers in (values.requires_grad_(), values.detach().double().requires_grad_()):
        torch.library.opcheck(torch.ops.imbal.component_max.default, (numbers, labels))


@pytest.mark.parametrize("ties", [False, True])
def test_device_formula_equals_the_kernel(batch, ties):
    values, labels = batch
    values = (values * 3).round() if ties else values
    values[0, 0, 2, 2, 2] = float("nan")
    expected = torch.ops.imbal.component_max(values, labels)
    for got, wanted in zip(maxima._max_by_scatter(values, labels), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (1, 1, 0, 4), (1, 1, 1, 1, 1)])
def test_empty_and_tiny_tensors(shape):
    values = torch.ones(shape, requires_grad=True)
    found = component_max(values, torch.ones(shape, dtype=torch.int32))
    assert found.shape[:2] == shape[:2]
    found.sum().backward()
    assert values.grad.shape == shape


def test_half_precision_and_other_integers(batch):
    values, labels = batch
    half = values.half().requires_grad_()
    found = component_max(half, labels.long())
    assert torch.equal(found, component_max(half.float(), labels))
    found[..., 0].sum().backward()
    assert half.grad.dtype == torch.float16


def test_compile_without_graph_break(batch):
    _, labels = batch
    torch._dynamo.reset()

    def loss(values, labels):
        found = component_max(values.sigmoid(), labels)[..., 1:]
        return torch.where(found.isfinite(), found, 0).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for count in (0, 1, 3):
        ids = labels.clamp(max=count)
        results = []
        for function in (loss, compiled):
            values = torch.linspace(-1, 1, labels.numel()).reshape(labels.shape).requires_grad_()
            value = function(values, ids)
            value.backward()
            results.append((value.detach(), values.grad))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("values", "labels", "words"),
    [
        (torch.ones(1, 1, 4), torch.ones(1, 1, 5).int(), r"\(1, 1, 4\) and \(1, 1, 5\)"),
        (torch.ones(4), torch.ones(4).int(), r"\(B, C, \.\.\.\)"),
        (torch.ones(1, 1, 4).int(), torch.ones(1, 1, 4).int(), "int32"),
        (torch.ones(1, 1, 4), torch.ones(1, 1, 4), "labels integer"),
    ],
)
def test_bad_input_is_refused(values, labels, words):
    with pytest.raises(ConfigError, match=words):
        component_max(values, labels)
