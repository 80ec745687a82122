"""SCDL: worked numbers, obvious loops, and who gets a gradient from which term."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnunet_imbal.losses import _scdl
from nnunet_imbal.losses.scdl import SCDL

TOKENS = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
COSINES = _scdl.unit(TOKENS) @ _scdl.unit(MEANS).T
SHARES = torch.tensor([[0.75, 0.25], [0.0, 1.0]], dtype=torch.float64)
SAY = torch.ones(2, dtype=torch.float64)
SAMPLES = torch.tensor([[0.774431, 0.837406], [0.284838, 0.995264]], dtype=torch.float64)


def near(values):
    return pytest.approx(np.array(values), abs=1.1e-6)


def assigned(temperature):
    return _scdl.chosen(_scdl.over_classes(_scdl.scores(COSINES, temperature, False)), False)


def test_published_assignments():
    assert COSINES.numpy() == near([[0.6, 0.8], [0, 1]])
    assert assigned(1.0).numpy() == near([[0.450166, 0.549834], [0.268941, 0.731059]])
    assert assigned(0.2).numpy() == near([[0.268941, 0.731059], [0.006693, 0.993307]])
    assert assigned(0.1).numpy() == near([[0.119203, 0.880797], [0.000045, 0.999955]])


def test_assignment_over_tokens():
    scores = _scdl.scores(COSINES, 0.2, False)
    log = _scdl.over_tokens(scores, SAY, 5.0)
    assert log[:, 0].exp().numpy() == near([[0.952574, 0.268941], [0.047426, 0.731059]])
    first, second = _scdl.over_classes(scores), _scdl.over_classes(log)
    assert _scdl.disagreement(first, second).min() > 0.01
    doubled = _scdl.over_tokens(scores, 2 * SAY, 5.0)
    torch.testing.assert_close(_scdl.over_classes(doubled), second)


def test_symmetric_divergence():
    first, second = (_scdl.over_classes(_scdl.scores(COSINES, t, False)) for t in (0.2, 0.5))
    assert _scdl.disagreement(first, second).sum().item() == pytest.approx(0.416953, abs=1e-6)


def test_released_terms_without_labels():
    shares = assigned(0.1)
    assert _scdl.released_p2e(COSINES, shares, SAY).item() == pytest.approx(0.872730, abs=1e-6)
    assert _scdl.e2p(_scdl.class_sums(COSINES, shares, SAY)).item() == pytest.approx(0.111943, abs=1e-6)


def test_released_terms_with_labels():
    assert _scdl.released_p2e(COSINES, SHARES, SAY).item() == pytest.approx(0.900131, abs=1e-6)
    assert _scdl.e2p(_scdl.class_sums(COSINES, SHARES, SAY)).item() == pytest.approx(0.175, abs=1e-12)
    assert _scdl.released_p2e(SAMPLES, SHARES, SAY).item() == pytest.approx(0.974527, abs=1e-6)
    assert _scdl.e2p(_scdl.class_sums(SAMPLES, SHARES, SAY)).item() == pytest.approx(0.107281, abs=1e-6)


def test_published_e2p_weighs_by_its_own_assignment():
    shares = assigned(1.0)
    assert _scdl.e2p(_scdl.class_sums(COSINES, shares, SAY)).item() == pytest.approx(0.279487, abs=1e-6)


def test_balanced_p2e():
    sums = _scdl.class_sums(COSINES, SHARES, SAY)
    assert (sums[1] / sums[0]).numpy() == near([0.6, 0.96])
    assert (sums[3] / sums[2]).numpy() == near([0.12, 0.8])
    assert _scdl.balanced_p2e(sums).item() == pytest.approx(0.735464, abs=1e-6)


def test_one_positive_token_among_a_thousand():
    """Released, the rare class hears the others 2700 times as loud as its own token; balanced, both alike."""
    cosines = torch.full((1000, 1), 0.1, dtype=torch.float64)
    cosines[0] = 0.9
    shares = torch.zeros_like(cosines)
    shares[0] = 1
    say = torch.ones(1000, dtype=torch.float64)
    for form, own, others in (("released", -4.1e-4, 1.10), ("balanced", -0.449, 0.449)):
        cosines = cosines.detach().requires_grad_()
        if form == "released":
            _scdl.released_p2e(cosines, shares, say).backward()
        else:
            _scdl.balanced_p2e(_scdl.class_sums(cosines, shares, say)).backward()
        assert cosines.grad[0].item() == pytest.approx(own, rel=0.01)
        assert cosines.grad[1:].sum().item() == pytest.approx(others, rel=0.01)


def test_samples_by_hand():
    spreads = F.softplus(torch.zeros(2, 2, dtype=torch.float64))
    noise = torch.tensor([[[1, 0], [0, -1]], [[0, 1], [1, 0]]], dtype=torch.float64)
    direction = _scdl.mean_direction(MEANS, spreads, noise)
    similarity = _scdl.unit(TOKENS) @ direction.T
    assert similarity.numpy() == near(SAMPLES.numpy())
    r_dist = _scdl.unit(_scdl.over_classes(_scdl.scores(similarity, 0.2, False)).exp()[:, 0] @ _scdl.unit(MEANS))
    assert r_dist.numpy() == near([[0.589549, 0.807732], [0.028652, 0.999590]])


@pytest.mark.parametrize(("dtype", "difference"), [(torch.float32, 3e-8), (torch.float64, 1e-15)])
def test_fused_cosines_equal_those_of_single_samples(dtype, difference):
    torch.manual_seed(0)
    scdl = SCDL(16, 14, form="released").to(dtype)
    tokens, noise = torch.randn(300, 256, dtype=dtype), torch.randn(50, 14, 256, dtype=dtype)
    spreads = F.softplus(scdl.raw_spreads)
    fused = _scdl.unit(tokens) @ _scdl.mean_direction(scdl.means, spreads, noise).T
    single = F.cosine_similarity(tokens.view(300, 1, 1, 256), (scdl.means + spreads * noise).unsqueeze(0), dim=-1)
    assert (fused - single.mean(1)).abs().max() <= difference


@pytest.mark.parametrize(("spread", "cosine"), [(0.01, 0.9874), (0.05, 0.7809), (0.1, 0.5300), (0.3, 0.2040)])
def test_wide_samples_lose_their_mean(spread, cosine):
    generator = torch.Generator().manual_seed(0)
    mean = _scdl.unit(torch.randn(1, 256, generator=generator))
    noise = torch.randn(20_000, 1, 256, generator=generator)
    found = (_scdl.mean_direction(mean, torch.full((1, 256), spread), noise) @ mean.T).item()
    assert found == pytest.approx(cosine, abs=1e-3)
    assert found == pytest.approx(1 / math.sqrt(1 + 256 * spread**2), abs=1e-3)


def test_initial_spreads():
    torch.manual_seed(0)
    for form, cosine, raw in (("balanced", 0.9, -3.49), ("released", 0.089, 0.0)):
        scdl = SCDL(16, 14, form=form)
        cosines = (_scdl.unit(scdl.means) * scdl._mean_samples()).sum(1)
        assert cosines.mean().item() == pytest.approx(cosine, abs=0.01)
        assert scdl.raw_spreads.mean().item() == pytest.approx(raw, abs=0.05)


def test_number_of_parameters():
    scdl = SCDL(16, 14)
    assert sum(p.numel() for p in scdl.embed.parameters()) == 402_688
    assert sum(p.numel() for p in scdl.parameters()) == 402_688 + 7_168


def test_prior_by_hand():
    scdl = SCDL(2, 2, embedding=2, token_size=1).double()
    scdl.embed = nn.Identity()
    scdl.means.data.copy_(MEANS)
    features = TOKENS.T.reshape(1, 2, 1, 2)
    assert scdl.prior(features)[0, :, 0].T.detach().numpy() == near([[0.345258, 0.938508], [0.006738, 0.999977]])
    scdl.temperature = 1.0
    assert scdl.prior(features)[0, :, 0].T.detach().numpy() == near([[0.633492, 0.773749], [0.345258, 0.938508]])
