"""SCDL: worked numbers, obvious loops, and who gets a gradient from which term."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.losses import SCDL, PriorInjection, _scdl

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
    tokens, noise = torch.randn(60, 256, dtype=dtype), torch.randn(50, 14, 256, dtype=dtype)
    spreads = F.softplus(scdl.raw_spreads)
    fused = _scdl.unit(tokens) @ _scdl.mean_direction(scdl.means, spreads, noise).T
    single = F.cosine_similarity(tokens.view(60, 1, 1, 256), (scdl.means + spreads * noise).unsqueeze(0), dim=-1)
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


def small(**words):
    """A module whose answer two runs of the same seed agree on."""
    torch.manual_seed(1)
    return SCDL(3, 3, **{"embedding": 4, "token_size": 2, "dropout": 0.0, **words}).double()


def batch(regions=False):
    """Two samples of 2 x 4 x 4 voxels with 1 x 2 x 2 tokens each; half of the second, and two voxels, have no label."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (2, 1, 2, 4, 4), generator=generator)
    mask = torch.ones(2, 1, 2, 4, 4)
    mask[1, ..., 2:] = 0
    mask[0, 0, 0, 0, :2] = 0
    if regions:
        target = torch.cat([target >= number for number in range(3)], 1).float()
    return features, target, mask


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def naive_tokens(scdl, features, target, mask, unlabelled):
    """Per token: embedding, shares of labels, how much is known, say."""
    tokens = []
    for b in range(2):
        for y in (0, 2):
            for x in (0, 2):
                block = (slice(None), slice(y, y + 2), slice(x, x + 2))
                known = mask[b, 0][block].flatten() > 0
                labels = [target[b, r][block].flatten() for r in range(target.shape[1])]
                members = [labels[c] > 0 if scdl.regions else labels[0] == c for c in range(3)]
                shares = [float((m & known).double().mean()) for m in members]
                feature = torch.stack([features[b, i][block].mean() for i in range(3)])
                part = float(known.double().mean())
                tokens.append((scdl.embed(feature), shares, part, part + unlabelled * (1 - part)))
    return tokens


def naive_terms(scdl, features, target, mask, unlabelled, noise):
    means, spreads = scdl.means, F.softplus(scdl.raw_spreads)
    tokens = naive_tokens(scdl, features, target, mask, unlabelled)
    total = sum(say for *_, say in tokens)
    popular = {}  # how much all tokens together like an alternative
    for c in range(3):
        for sign in (1, -1):
            scale = sign / scdl.temperature / (2 if scdl.regions else 1)
            popular[c, sign] = sum(say * math.exp(scale * cosine(z, means[c])) for z, _, _, say in tokens)
    weights, divergence = [], 0.0
    for z, shares, known, say in tokens:
        scores = [cosine(z, means[c]) / scdl.temperature for c in range(3)]
        if scdl.regions:
            first = [softmax([s / 2, -s / 2]) for s in scores]
            second = [
                softmax([s / 2 - math.log(popular[c, 1]), -s / 2 - math.log(popular[c, -1])])
                for c, s in enumerate(scores)
            ]
        else:
            first = [softmax(scores)]
            second = [softmax([s - math.log(popular[c, 1]) for c, s in enumerate(scores)])]
        if scdl.form == "released":
            second = first
        groups = list(zip(first, second, strict=True))
        kl = [sum((p - q) * math.log(p / q) for p, q in zip(*group, strict=True)) for group in groups]
        divergence += say / total * sum(kl) / len(kl)
        both = [[p * q / sum(map(math.prod, zip(*g, strict=True))) for p, q in zip(*g, strict=True)] for g in groups]
        guess = [pair[0] for pair in both] if scdl.regions else both[0]
        weights.append([shares[c] + unlabelled * (1 - known) * guess[c] for c in range(3)])
    similar = [
        [sum(cosine(z, means[c] + spreads[c] * noise[s, c]) for s in range(50)) / 50 for c in range(3)]
        for z, *_ in tokens
    ]
    says = [say for *_, say in tokens]
    e2p = sum(w[c] * (1 - a[c]) for w, a in zip(weights, similar, strict=True) for c in range(3)) / total
    return naive_p2e(scdl.form, weights, similar, says), e2p, divergence


def naive_p2e(form, weights, similar, says):
    tokens, total, values = range(len(says)), sum(says), []
    for c in range(3):
        if form == "released":
            powers = [says[t] * math.exp(-(2 * weights[t][c] / says[t] - 1) * similar[t][c]) for t in tokens if says[t]]
            values.append(sum(powers) / total)
        else:
            inside, outside = (sum(w[c] for w in weights), sum(s - w[c] for s, w in zip(says, weights, strict=True)))
            plus = sum(weights[t][c] * similar[t][c] for t in tokens) / inside
            minus = sum((says[t] - weights[t][c]) * similar[t][c] for t in tokens) / max(outside, 1e-6)
            values.append(math.exp(minus - plus))
    return sum(values) / 3


@pytest.mark.parametrize("unlabelled", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "words", [{}, {"form": "released"}, {"regions": True}], ids=["balanced", "released", "regions"]
)
def test_terms_equal_obvious_loops(words, unlabelled):
    scdl, (features, target, mask) = small(**words), batch(words.get("regions", False))
    torch.manual_seed(5)
    noise = torch.randn(50, 3, 4, dtype=torch.float64)
    torch.manual_seed(5)
    found = scdl.terms(features, target, mask, unlabelled)
    expected = naive_terms(scdl, features, target, mask, unlabelled, noise)
    assert [term.item() for term in found[:3]] == pytest.approx(expected, abs=1e-9)


def test_anchors_equal_obvious_loops():
    scdl, (features, target, mask) = small(), batch()
    found = scdl.terms(features, target, mask, 0.0).sac.item()
    distances = []
    for c in range(3):
        directions = []
        for b in range(2):
            tokens = naive_tokens(scdl, features, target, mask, 0.0)[4 * b : 4 * b + 4]
            blocks = F.avg_pool3d(features[b], (2, 2, 2)).flatten(1).T
            mass = sum(shares[c] for _, shares, _, _ in tokens)
            if mass:
                mean = sum(shares[c] * x for (_, shares, _, _), x in zip(tokens, blocks, strict=True)) / mass
                directions.append(F.normalize(scdl.embed(mean), dim=0))
        distances.append(1 - cosine(scdl.means[c], sum(directions)))
    assert found == pytest.approx(sum(distances) / 3, abs=1e-12)


def test_anchors_by_hand():
    scdl = small(embedding=2)
    scdl.means.data = torch.tensor([[1.0, 0.0], [0.0, 5.0], [1.0, 1.0]], dtype=torch.float64)
    scdl.embed = nn.Identity()
    tokens, labelled = TOKENS.unsqueeze(0), torch.tensor([[[1.0, 0, 0], [0, 1, 0]]], dtype=torch.float64)
    assert scdl._sac(tokens, labelled).item() == pytest.approx((0.4 + 0) / 2)


def test_a_missing_class_keeps_its_anchor():
    scdl, (features, target, _) = small(), batch()
    scdl.terms(features, target)
    before = scdl.anchors.clone()
    scdl.terms(torch.roll(features, 1, 0), target.clamp(max=1))
    assert torch.equal(scdl.anchors[2], before[2])
    torch.testing.assert_close(scdl.anchors.norm(dim=1), torch.ones(3, dtype=torch.float64))
    moved = (scdl.anchors * before).sum(1)[:2]
    assert (moved < 1).all()
    assert (moved > 0.99).all()
    scdl.means.grad = None
    scdl.terms(features, target.clamp(max=1)).sac.backward()
    assert scdl.means.grad[2].any()


def test_released_form_knows_the_anchors_of_the_batch_only():
    scdl, (features, target, _) = small(form="released"), batch()
    scdl.terms(features, target)
    assert not scdl.anchors.any()
    scdl.terms(features, target.clamp(max=1)).sac.backward()
    assert not scdl.means.grad[2].any()


def test_validation_does_not_move_anchors():
    scdl, (features, target, mask) = small().eval(), batch()
    assert scdl(features, target, mask).isfinite()
    assert not scdl.anchors.any()


@pytest.mark.parametrize("form", ["balanced", "released"])
def test_who_gets_a_gradient_from_which_term(form):
    scdl, (features, target, mask) = small(form=form), batch()
    inputs = {"features": features.requires_grad_(), "embed": scdl.embed[0].weight}
    inputs |= {"means": scdl.means, "spreads": scdl.raw_spreads}
    expected = {
        "p2e": {"features", "embed", "means", "spreads"},
        "e2p": {"features", "embed", "means", "spreads"},
        "bidirectional": {"features", "embed", "means"} if form == "balanced" else set(),
        "sac": {"means"},
    }
    terms = scdl.terms(features, target, mask)
    for name, term in terms._asdict().items():
        grads = torch.autograd.grad(term, list(inputs.values()), retain_graph=True, allow_unused=True)
        got = {who for who, grad in zip(inputs, grads, strict=True) if grad is not None and grad.any()}
        assert got == expected[name], name
    assert (terms.bidirectional.item() == 0) == (form == "released")


def test_prior_reaches_embedding_and_means_but_no_spread():
    scdl, (features, *_) = small(), batch()
    inject = PriorInjection(4, 3).double()
    assert torch.equal(inject(features, scdl.prior(features)), features)
    nn.init.normal_(inject.project.weight)
    inject(features, scdl.prior(features)).square().sum().backward()
    assert scdl.means.grad.any()
    assert scdl.embed[0].weight.grad.any()
    assert scdl.raw_spreads.grad is None


def test_prior_of_regions_and_pictures():
    scdl = SCDL(3, 2, regions=True, embedding=4, token_size=(2, 3))
    assert scdl.prior(torch.randn(2, 3, 4, 9)).shape == (2, 4, 2, 3)
    torch.testing.assert_close(scdl.prior(torch.randn(2, 3, 4, 9)).norm(dim=1), torch.ones(2, 2, 3))


@pytest.mark.parametrize(
    "words", [{}, {"form": "released"}, {"regions": True}], ids=["balanced", "released", "regions"]
)
def test_gradcheck(words):
    """Without what is a constant for the gradient: anchors, and the weights of tokens that have no label."""
    scdl, (features, target, _) = small(weights=(1, 1, 1, 0), **words), batch(words.get("regions", False))

    def loss(values):
        torch.manual_seed(5)
        return scdl(values, target)

    assert torch.autograd.gradcheck(loss, (features.requires_grad_(),), fast_mode=True)


def test_assigned_weights_are_constants():
    scdl, (features, target, mask) = small(weights=(0, 1, 0, 0)), batch()
    torch.manual_seed(5)
    direction = scdl._mean_samples()
    torch.manual_seed(5)
    features.requires_grad_()
    scdl(features, target, torch.zeros_like(mask)).backward()
    tokens = _scdl.pool_tokens(features, (1, 2, 2), torch.float64).flatten(0, 1)
    z = _scdl.unit(scdl.embed(tokens))
    scores = _scdl.scores(z @ _scdl.unit(scdl.means).T, 0.2, False)
    both = _scdl.over_classes(scores) + _scdl.over_classes(_scdl.over_tokens(scores, torch.ones(8).double(), 5.0))
    weights = both.softmax(-1)[:, 0].detach()
    expected = torch.autograd.grad((weights * (1 - z @ direction.T)).sum() / 8, features)[0]
    torch.testing.assert_close(features.grad, expected)


def test_ignored_voxels_say_nothing():
    scdl, (features, target, mask) = small().eval(), batch()
    values = []
    for labels in (target, target.masked_fill(mask == 0, 255)):
        torch.manual_seed(5)
        values.append(scdl(features, labels, mask, 0.0))
    assert values[0].item() == values[1].item()


def test_nothing_to_learn_from():
    scdl, (features, target, mask) = small(), batch()
    features.requires_grad_()
    loss = scdl(features, target, torch.zeros_like(mask), unlabelled=0.0)
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scdl.parameters())


def test_nan_is_not_hidden():
    scdl, (features, target, mask) = small(), batch()
    features[1, 0, 0, 0, 0] = torch.nan
    assert scdl(features, target, mask).isnan()


def test_patches_of_any_size_and_coarser_features():
    scdl = SCDL(3, 2, embedding=4, token_size=(8, 4, 4))
    target = torch.randint(0, 2, (1, 1, 5, 22, 23))
    assert scdl(torch.randn(1, 3, 5, 22, 23), target).isfinite()
    assert scdl(torch.randn(1, 3, 5, 11, 12), target).isfinite()


def test_small_structures_are_not_lost():
    """Area averages see a single voxel; a class of one voxel still has an anchor and its tokens a share."""
    labels = torch.zeros(1, 16, 16, 16)
    labels[0, 3, 3, 3] = 1
    shares = _scdl.token_shares([labels == 1], (2, 2, 2), torch.float32)
    assert shares.sum().item() == pytest.approx(1 / 512)
    scdl = SCDL(3, 2, embedding=4)
    scdl.terms(torch.randn(1, 3, 16, 16, 16), labels.unsqueeze(1))
    assert scdl.anchors[1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features(dtype):
    torch.manual_seed(0)
    scdl = SCDL(32, 4).eval()
    features, target = torch.randn(2, 32, 32, 32).to(dtype), torch.randint(0, 4, (2, 1, 32, 32))
    torch.manual_seed(5)
    exact = scdl(features.float(), target).item()
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scdl(features, target)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact, rel=5e-3)


def test_bounds():
    torch.manual_seed(0)
    for form, low, high in (("balanced", math.exp(-2), math.exp(2)), ("released", math.exp(-1), math.e)):
        for scale in (1e-4, 1.0, 1e4):
            terms = SCDL(8, 4, form=form, embedding=16, token_size=4).terms(
                scale * torch.randn(2, 8, 16, 16, 16), torch.randint(0, 4, (2, 1, 16, 16, 16))
            )
            assert low <= terms.p2e.item() <= high
            assert 0 <= terms.e2p.item() <= 2
            assert 0 <= terms.sac.item() <= 2
            assert terms.bidirectional.item() >= -1e-6


def test_training_tells_rare_tokens_from_frequent_ones():
    """One token in 64 belongs to the rare class and hardly differs: balanced SCDL teaches it to stand apart."""
    margins = {}
    for form in ("balanced", "released"):
        torch.manual_seed(0)
        scdl = SCDL(4, 2, embedding=16, token_size=1, form=form, dropout=0.0)
        offset = nn.Parameter(torch.zeros(4, 8, 8))
        features = torch.ones(1, 4, 8, 8) + 0.05 * torch.randn(1, 4, 8, 8)
        target = torch.zeros(1, 1, 8, 8)
        target[..., 3, 3] = 1
        optimizer = torch.optim.Adam([*scdl.parameters(), offset], lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            scdl(features + offset, target).backward()
            optimizer.step()
        cosines = _scdl.unit(scdl.embed((features + offset)[0].flatten(1).T)) @ _scdl.unit(scdl.means).T
        rare = target.flatten() == 1
        margins[form] = (cosines[rare, 1].mean() - cosines[~rare, 1].mean()).item()
    assert margins["balanced"] > 1
    assert margins["released"] < 0.1


def test_state_resumes():
    scdl, (features, target, mask) = small(), batch()
    scdl(features, target, mask)
    other = small()
    other.load_state_dict(scdl.state_dict())
    values = []
    for each in (scdl, other):
        torch.manual_seed(5)
        values.append(each(features, target, mask).item())
    assert values[0] == values[1]


def test_parameter_groups_hold_every_parameter_once():
    scdl = small()
    groups = scdl.parameter_groups(0.01)
    grouped = [p for group in groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in scdl.parameters()}
    assert len(grouped) == len(list(scdl.parameters()))
    assert [g["weight_decay"] for g in groups if g["params"][0] is scdl.raw_spreads] == [0.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"form": "balance"}, "unknown form 'balance'; did you mean 'balanced'"),
        ({"temperature": 0.0}, "temperature must be at least 0.02, got 0.0"),
        ({"weights": (1, 2)}, r"four finite numbers of at least 0, got \(1, 2\)"),
        ({"anchor_momentum": 1.5}, "anchor_momentum must be between 0 and 1, got 1.5"),
        ({"token_size": 0}, "token_size must be at least 1, got 0"),
    ],
)
def test_wrong_options(words, message):
    with pytest.raises(ConfigError, match=message):
        SCDL(3, 3, **words)


def test_wrong_input():
    scdl, (features, target, mask) = small(), batch()
    for wrong, message in (
        ((features[:, :2], target, mask), r"features must have the shape \(2, 3, .* got \(2, 2,"),
        ((features, target[:1], mask), r"target must have the shape \(2, 1,"),
        ((features, target, mask[..., :2]), r"mask must have the shape \(2, 1, 2, 4, 4\)"),
        ((features, target, mask, 2.0), "unlabelled must be between 0 and 1, got 2.0"),
        ((features[0], target[0], mask[0]), "2 or 3 axes"),
    ):
        with pytest.raises(ConfigError, match=message):
            scdl(*wrong)
    with pytest.raises(ValueError, match="target holds the label 7"):
        scdl(features, target + 5, mask)
    with pytest.raises(ConfigError, match="token_size names 2 axes, but the features have 3"):
        small(token_size=(2, 2))(features, target, mask)
