"""SCDL: every class keeps a distribution of its own among the features, so that frequent ones do not absorb it."""

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.labels import check_labels, plain_tensor
from nnunet_imbal.losses import _scdl
from nnunet_imbal.losses._distributed import sum_over_ranks
from nnunet_imbal.registry import unknown_name

__all__ = ["SCDL", "PriorInjection", "SCDLTerms"]

_FORMS = ("balanced", "released")
_LEAST_SPREAD = 1e-3
_LEAST_MASS = 1e-6  # tokens
_INITIAL_COSINE = 0.9  # between a sample of a class and its mean
_SAMPLES = 50


class SCDLTerms(NamedTuple):
    """The parts of the loss, each a scalar.

    Attributes:
        p2e: classes attract their own tokens and repel the others (proxy to embedding).
        e2p: tokens attract their classes (embedding to proxy), 0 to 2.
        bidirectional: disagreement of the assignments token -> class and class -> token, at least 0.
        sac: distance of class means to the anchors found in labelled voxels, 0 to 2.
    """

    p2e: Tensor
    e2p: Tensor
    bidirectional: Tensor
    sac: Tensor


class SCDL(nn.Module):
    r"""Semantic class distribution learning: keep the features of rare structures apart from those of frequent ones.

    Features of the decoder's last stage are averaged over blocks of voxels (tokens) and embedded, :math:`z_t = g(x_t)`.
    Each class owns a mean :math:`\mu_c` and a spread :math:`\sigma_c`, both learned;
    :math:`\bar a_{tc}` is the mean cosine of :math:`z_t` with 50 samples of :math:`N(\mu_c, \sigma_c^2)`. With weights
    :math:`w_{tc}`, the shares of the classes in the token's labels or, where there is no label, its assignment,

    .. math:: L = P2E + 0.1\,E2P + 0.1\,KL + SAC

    - :math:`P2E = \mathrm{mean}_c \exp(E^-_c - E^+_c)` with the means :math:`E^\pm_c` of :math:`\bar a_{tc}` over the
      tokens of the class, :math:`w_{tc}`, and over the others, :math:`1 - w_{tc}`; over classes with more than half a
      token, or a thousandth of all if that is less;
    - :math:`E2P = \mathrm{mean}_t \sum_c w_{tc} (1 - \bar a_{tc})`;
    - KL, the symmetric divergence of two assignments: :math:`\mathrm{softmax}_c(\cos(z_t, \mu_c) / \tau)`, and the same
      normalised over tokens first, in which every class is equally popular;
    - SAC :math:`= \mathrm{mean}_c (1 - \cos(\mu_c, a_c))` with anchors :math:`a_c`, the embeddings of mean features of
      labelled voxels; a class that is missing in a batch keeps the running mean of its former anchors.

    It needs features, not only logits, and has parameters, so it is no registered loss. Optimise them (see
    `parameter_groups`), keep its ``state_dict`` under a key of its own, wrap it in DistributedDataParallel where the
    network is. It is not needed for inference unless its `prior` is injected.

    Args:
        feature_channels: of the tapped feature map.
        num_classes: background included; the number of regions with ``regions``.
        regions: overlapping regions. They are assigned one by one, by sigmoid.
        token_size: voxels of the feature map in a token along each axis, one number or one per axis; about so many
            where a patch cannot be divided.
        form: ``"balanced"`` as above. ``"released"``: what the published code computes, for comparison: P2E as a mean
            over tokens, which mostly pushes rare classes; KL identically 0; spreads so wide at the start that samples
            say little about their class; anchors of the batch alone.
        embedding: :math:`D`.
        temperature: :math:`\tau`.
        weights: of the four terms, in the order of `SCDLTerms`.
        dropout: inside :math:`g`; anchors are taken without.
        anchor_momentum: of the running mean of anchors.

    Raises:
        ConfigError: a value out of range.

    Note:
        Source: SCDL (arXiv 2603.05202), abstract and released code. No training script and no weights of the terms were
        released. ``"balanced"``, the KL over tokens, the start of the spreads, the running anchors, tokens labelled in
        part and regions are our reconstruction.

    Example:
        >>> scdl = SCDL(32, 3)
        >>> features, labels = torch.randn(2, 32, 16, 16, 16), torch.randint(0, 3, (2, 1, 16, 16, 16))
        >>> labelled = torch.tensor([True, False]).view(2, 1, 1, 1, 1).expand_as(labels)  # the second has no labels
        >>> scdl(features, labels, labelled).shape
        torch.Size([])
    """

    anchors: Tensor

    def __init__(
        self,
        feature_channels: int,
        num_classes: int,
        *,
        regions: bool = False,
        token_size: int | Sequence[int] = 8,
        form: str = "balanced",
        embedding: int = 256,
        temperature: float = 0.2,
        weights: Sequence[float] = (1.0, 0.1, 0.1, 1.0),
        dropout: float = 0.2,
        anchor_momentum: float = 0.99,
    ) -> None:
        super().__init__()
        _check_options(form, token_size, temperature, weights, anchor_momentum)
        self.num_classes, self.regions, self.form = num_classes, regions, form
        self.token_size, self.temperature, self.weights = token_size, temperature, tuple(weights)
        self.anchor_momentum = anchor_momentum
        self.embed = _embedding_network(feature_channels, embedding, dropout)
        means, spreads = _initial_distributions(num_classes, embedding, form)
        self.means, self.raw_spreads = nn.Parameter(means), nn.Parameter(spreads)
        self.register_buffer("anchors", torch.zeros(num_classes, embedding))  # 0: never seen

    def forward(self, features: Tensor, target: Tensor, mask: Tensor | None = None, unlabelled: float = 1.0) -> Tensor:
        """Weighted sum of the four terms over the batch, and over the batches of all ranks.

        Args:
            features: ``(B, feature_channels, *S')``, any float dtype, 2-D or 3-D. They may be coarser than the labels.
            target: label map ``(B, 1, *S)``, or ``(B, num_classes, *S)`` of 0 and 1 with ``regions``. It may hold
                pseudo-labels.
            mask: ``(B, 1, *S)``, 0 where there is no label; None: there are labels everywhere.
            unlabelled: say of voxels without labels, 0 (they take no part) to 1; let it grow during training.

        Returns:
            Scalar, at least 0. 0 if nothing takes part and no anchor was ever seen.

        Raises:
            ConfigError: shapes do not fit, or ``unlabelled`` is out of range.
            ValueError: an impossible label.
        """
        terms = self.terms(features, target, mask, unlabelled)
        return torch.stack([weight * term for weight, term in zip(self.weights, terms, strict=True)]).sum()

    def terms(self, features: Tensor, target: Tensor, mask: Tensor | None = None, unlabelled: float = 1.0) -> SCDLTerms:
        """The four terms without their weights; arguments as in `forward`."""
        features, target = plain_tensor(features), plain_tensor(target)
        mask = torch.ones_like(target[:, :1], dtype=torch.bool) if mask is None else plain_tensor(mask) != 0
        self._check(features, target, mask, unlabelled)
        # Cosines close to 1 and sums over thousands of tokens are too much for half precision.
        with torch.autocast(features.device.type, enabled=False):
            grid, dtype = self._grid(features), self.means.dtype
            tokens = _scdl.pool_tokens(features, grid, dtype)
            labelled = _scdl.token_shares(self._masks(target, mask), grid, dtype)
            known = _scdl.token_shares([mask[:, 0]], grid, dtype)
            sac = self._sac(tokens.detach(), labelled)
            cdba = self._cdba(tokens.flatten(0, 1), labelled.flatten(0, 1), known.flatten(), unlabelled)
        return SCDLTerms(*cdba, sac)

    def prior(self, features: Tensor) -> Tensor:
        r"""What the class distributions say about each place, for `PriorInjection`.

        :math:`r_t = \sum_c \mathrm{softmax}_c(\cos(z_t, \mu_c)/\tau)\,\hat\mu_c`, normalised: r_center of the paper.

        Args:
            features: ``(B, feature_channels, *S)``.

        Returns:
            ``(B, embedding, *grid)``, a unit vector for each token.
        """
        grid, centres = self._grid(features), _scdl.unit(self.means)
        with torch.autocast(features.device.type, enabled=False):
            tokens = _scdl.pool_tokens(plain_tensor(features), grid, centres.dtype)
            scores = _scdl.scores(_scdl.unit(self.embed(tokens)) @ centres.T, self.temperature, self.regions)
            prior = _scdl.unit(_scdl.chosen(_scdl.over_classes(scores), self.regions) @ centres)
        return prior.transpose(1, 2).unflatten(2, grid)

    def parameter_groups(self, weight_decay: float = 1e-4) -> list[dict[str, Any]]:
        """For an optimizer: no decay on the spreads, which it would pull towards a wide 0.7.

        Example:
            >>> optimizer = torch.optim.SGD(SCDL(32, 3).parameter_groups(), lr=0.01, momentum=0.9)
        """
        others = [*self.embed.parameters(), self.means]
        return [
            {"params": others, "weight_decay": weight_decay},
            {"params": [self.raw_spreads], "weight_decay": 0.0},
        ]

    def _cdba(
        self, tokens: Tensor, labelled: Tensor, known: Tensor, unlabelled: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """P2E, E2P and the bidirectional term of tokens ``(T, C)``."""
        say = known + unlabelled * (1 - known)
        directions = _scdl.unit(self.embed(tokens))
        first, second = self._assignments(directions @ _scdl.unit(self.means).T, say)
        guess = _scdl.chosen(_scdl.over_classes(first + second), self.regions).detach()
        shares = labelled + (say - known).unsqueeze(1) * guess
        similarity = directions @ self._mean_samples().T
        sums = _scdl.class_sums(similarity, shares, say)
        released = self.form == "released"
        p2e = _scdl.released_p2e(similarity, shares, say) if released else _scdl.balanced_p2e(sums)
        return p2e, _scdl.e2p(sums), _scdl.mean_over_tokens(_scdl.disagreement(first, second), say)

    def _assignments(self, cosines: Tensor, say: Tensor) -> tuple[Tensor, Tensor]:
        scores = _scdl.scores(cosines, self.temperature, self.regions)
        first = _scdl.over_classes(scores)
        if self.form == "released":
            return first, first
        highest = 1 / self.temperature / (2 if self.regions else 1)
        return first, _scdl.over_classes(_scdl.over_tokens(scores, say, highest))

    def _mean_samples(self) -> Tensor:
        spreads = F.softplus(self.raw_spreads).clamp(min=_LEAST_SPREAD)  # attraction alone would shrink them to 0
        noise = torch.randn(_SAMPLES, *self.means.shape, dtype=self.means.dtype, device=self.means.device)
        return _scdl.mean_direction(self.means, spreads, noise)

    def _sac(self, tokens: Tensor, labelled: Tensor) -> Tensor:
        """Distance to anchors from tokens ``(B, L, C)`` and the known part of their labels ``(B, L, K)``."""
        anchors, exist = self._find_anchors(tokens, labelled)
        distances = 1 - (_scdl.unit(self.means) * anchors).sum(1)
        return torch.where(exist, distances, 0).sum() / exist.sum().clamp(min=1)

    @torch.no_grad()
    def _find_anchors(self, tokens: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors ``(K, D)``, and for which classes there is one."""
        fresh = _scdl.unit(self._class_directions(tokens, labelled))
        found, seen = fresh.any(1), self.anchors.any(1)
        if self.form == "released":
            return fresh, found
        anchors = torch.where(found.unsqueeze(1), fresh, self.anchors)
        if self.training:
            running = _scdl.unit(self.anchor_momentum * self.anchors + (1 - self.anchor_momentum) * fresh)
            self.anchors.copy_(torch.where((found & seen).unsqueeze(1), running, anchors))
        return anchors, found | seen

    def _class_directions(self, tokens: Tensor, labelled: Tensor) -> Tensor:
        """Embedded mean feature of each class in each sample, summed over samples and ranks: ``(K, D)``."""
        mass = labelled.sum(1).unsqueeze(2)  # (B, K, 1)
        means = labelled.transpose(1, 2) @ tokens / mass.clamp(min=_LEAST_MASS)
        training = self.embed.training
        embedded = _scdl.unit(self.embed.eval()(means))  # without dropout: an anchor is to stand still
        self.embed.train(training)
        return sum_over_ranks((embedded * (mass > _LEAST_MASS)).sum(0))

    def _grid(self, features: Tensor) -> tuple[int, ...]:
        shape = features.shape[2:]
        sizes = [self.token_size] * len(shape) if isinstance(self.token_size, int) else self.token_size
        if len(sizes) != len(shape):
            raise ConfigError(f"token_size names {len(sizes)} axes, but the features have {len(shape)}")
        return tuple(max(round(n / size), 1) for n, size in zip(shape, sizes, strict=True))

    def _masks(self, target: Tensor, mask: Tensor) -> Iterator[Tensor]:
        """Labelled voxels of each class or region: ``(B, *S)`` bool."""
        for number in range(self.num_classes):
            yield mask[:, 0] & (target[:, number] > 0 if self.regions else target[:, 0] == number)

    def _check(self, features: Tensor, target: Tensor, mask: Tensor, unlabelled: float) -> None:
        batch, shape = len(features), tuple(target.shape[2:])
        wanted = {
            "features": (features, (batch, self.embed[0].in_features, *features.shape[2:])),
            "target": (target, (batch, self.num_classes if self.regions else 1, *shape)),
            "mask": (mask, (batch, 1, *shape)),
        }
        for name, (tensor, expected) in wanted.items():
            if tuple(tensor.shape) != expected or features.ndim not in (4, 5) or target.ndim != features.ndim:
                raise ConfigError(f"{name} must have the shape {expected} (2 or 3 axes), got {tuple(tensor.shape)}")
        if not 0 <= unlabelled <= 1:
            raise ConfigError(f"unlabelled must be between 0 and 1, got {unlabelled}")
        if target.device.type == "cpu" and not self.regions:  # elsewhere a look at a value waits for the device
            check_labels(target.masked_fill(~mask, 0), self.num_classes)


class PriorInjection(nn.Module):
    """Add what SCDL knows about a place to features of the decoder; starts as if it were not there.

    With it, SCDL is part of the network and needed for inference.

    Args:
        embedding: channels of the prior.
        channels: of the features.

    Note:
        Source: the released hosts of SCDL (arXiv 2603.05202), of which one adds projected priors at test time, too.
        That the projection starts at 0 is ours.

    Example:
        >>> scdl, inject = SCDL(32, 3), PriorInjection(256, 32)
        >>> features = torch.randn(1, 32, 16, 16, 16)
        >>> torch.equal(inject(features, scdl.prior(features)), features)
        True
    """

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(embedding, channels, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, features: Tensor, prior: Tensor) -> Tensor:
        """Features ``(B, channels, *S)`` plus the projected ``prior`` ``(B, embedding, *grid)``, interpolated."""
        mode = "bilinear" if features.ndim == 4 else "trilinear"
        added = self.project(prior.movedim(1, -1)).movedim(-1, 1)
        return features + F.interpolate(added, features.shape[2:], mode=mode).to(features.dtype)


def _check_options(
    form: str, token_size: int | Sequence[int], temperature: float, weights: Sequence[float], anchor_momentum: float
) -> None:
    if form not in _FORMS:
        raise ConfigError("SCDL: " + unknown_name("form", form, _FORMS))
    if not all(size >= 1 for size in ([token_size] if isinstance(token_size, int) else token_size)):
        raise ConfigError(f"token_size must be at least 1, got {token_size}")
    if not temperature >= 0.02:
        raise ConfigError(f"temperature must be at least 0.02, got {temperature}")
    if len(weights) != len(SCDLTerms._fields) or not all(0 <= weight < float("inf") for weight in weights):
        raise ConfigError(f"weights must be four finite numbers of at least 0, got {tuple(weights)}")
    if not 0 <= anchor_momentum <= 1:
        raise ConfigError(f"anchor_momentum must be between 0 and 1, got {anchor_momentum}")


def _embedding_network(channels: int, embedding: int, dropout: float) -> nn.Sequential:
    wide = 2 * embedding
    hidden = [nn.Linear(channels, wide), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*hidden, nn.Linear(wide, wide), nn.ReLU(), nn.Dropout(dropout), nn.Linear(wide, embedding))


def _initial_distributions(classes: int, embedding: int, form: str) -> tuple[Tensor, Tensor]:
    """Means and spreads, the latter before softplus, both ``(K, D)``."""
    means, spreads = nn.init.xavier_uniform_(torch.empty(classes, 2 * embedding)).split(embedding, 1)
    if form == "balanced":
        # Spreads near 0.7, as released, bury the mean in noise: samples then have a cosine of 0.09 with it.
        wanted = means.norm(dim=1, keepdim=True) * sqrt((_INITIAL_COSINE**-2 - 1) / embedding)
        spreads = wanted.expm1().log().expand_as(means)
    return means.clone(), spreads.clone()
