r"""What the focal loss does to rare classes: which of them it pushes below their true frequency, and what to do.

The best prediction under the focal loss is not the truth. With true probabilities :math:`p` the loss
:math:`-\sum_i p_i (1-q_i)^\gamma \log q_i` is smallest at :math:`q_i = h_\gamma^{-1}(\lambda/p_i)` with
:math:`h_\gamma(q) = (1-q)^\gamma/q - \gamma(1-q)^{\gamma-1}\log q` and the one :math:`\lambda` that makes the
:math:`q_i` add up to 1. Where :math:`\lambda > 1`, the rarest classes are predicted below :math:`p_i`.

Source: the effect is described in the abstract of "Functional Properties of the Focal-Entropy" (arXiv 2603.02533).
Formulas, thresholds and the guarantee of `FocalGuard.remedy` are our own derivation, checked by the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar, root_scalar

from nnunet_imbal.errors import ConfigError

__all__ = ["FocalGuard", "calibrate_focal", "focal_guard", "focal_optimum", "safe_exponents"]

Array = NDArray[np.float64]
_SMALLEST, _LARGEST = 1e-200, 1 - 1e-13
_STEPS = 100


@dataclass(frozen=True)
class FocalGuard:
    """What `focal_guard` found.

    Attributes:
        frequencies: ``(C,)`` true ones, which sum to 1.
        level: λ; above 1 the rarest classes are over-suppressed, at most to 1/λ of their frequency.
        optimum: ``(C,)`` frequencies that a perfectly trained network predicts.
        over_suppressed: classes predicted below their frequency because of λ > 1.
        remedy: γ for each class. With these, λ is at most 1, so every class of γ = 0 is predicted at or above its
            frequency. All equal to the γ asked for if there is nothing to repair.
    """

    frequencies: Array
    level: float
    optimum: Array
    over_suppressed: tuple[int, ...]
    remedy: tuple[float, ...]

    @property
    def safe(self) -> bool:
        """Whether no class is over-suppressed."""
        return not self.over_suppressed

    @property
    def regimes(self) -> tuple[str, ...]:
        """What happens to each class: ``"kept"``, ``"amplified"``, ``"suppressed"`` or ``"over-suppressed"``."""
        changes = self.optimum - self.frequencies
        kept = np.isclose(self.optimum, self.frequencies, rtol=1e-6, atol=0)
        names = np.where(kept, "kept", np.where(changes > 0, "amplified", "suppressed")).tolist()
        return tuple("over-suppressed" if i in self.over_suppressed else name for i, name in enumerate(names))

    def __str__(self) -> str:
        if self.safe:
            return f"The focal loss hides no class (λ = {self.level:.3f})."
        worst = min(self.optimum[i] / self.frequencies[i] for i in self.over_suppressed)
        focused = [i for i, gamma in enumerate(self.remedy) if gamma]
        return (
            f"The focal loss would predict the classes {list(self.over_suppressed)} up to {1 - worst:.1%} too rarely "
            f"(λ = {self.level:.3f}); safe: focus {f'the classes {focused} only' if focused else 'no class'}."
        )


def focal_guard(frequencies: ArrayLike, gamma: float = 2.0, *, tolerance: float = 0.02) -> FocalGuard:
    """Say before training whether the focal loss would hide rare classes, and with which γ it would not.

    Args:
        frequencies: ``(C,)`` share of the voxels of each class as training draws them; they are scaled to sum 1.
            Look at it twice: with background, and without it (what the network decides inside the body).
        gamma: focusing exponent of the focal loss, at least 0.
        tolerance: λ up to 1 + tolerance passes.

    Raises:
        ConfigError: frequencies or gamma are negative or not finite, or all frequencies are 0.

    Example:
        >>> guard = focal_guard([0.3, 0.25, 0.2, 0.15, 0.0999, 0.0001])
        >>> round(guard.level, 4), guard.over_suppressed, guard.remedy
        (1.1145, (5,), (2.0, 0.0, 0.0, 0.0, 0.0, 0.0))
        >>> focal_guard([0.97, 0.02, 0.01]).safe
        True
    """
    truth = _distribution(frequencies)
    optimum, level = focal_optimum(truth, gamma)
    hidden: tuple[int, ...] = ()
    if level > 1 + tolerance:
        lower = brentq(lambda q: _phi(q, gamma) - level, _SMALLEST, _peak(gamma))
        hidden = tuple(int(i) for i in np.flatnonzero((truth > 0) & (truth < lower)))
    remedy = _remedy(truth, gamma) if hidden else (float(gamma),) * len(truth)
    return FocalGuard(truth, level, optimum, hidden, remedy)


def safe_exponents(frequencies: ArrayLike, gamma: float = 2.0, *, tolerance: float = 0.02) -> tuple[float, ...]:
    """γ for each class with which the focal loss hides none, neither in the whole patch nor inside the body.

    Background is most of a patch, so the whole patch is nearly always safe. Where the network is sure that it is not
    background, only the other classes compete, and that may not be.

    Args:
        frequencies: ``(C,)`` share of the voxels of each class, background first.
        gamma: the one asked for.
        tolerance: see `focal_guard`.

    Returns:
        ``gamma`` for all if that is safe; else ``gamma`` for the most frequent classes and 0 for the others.

    Raises:
        ConfigError: as `focal_guard`.

    Example:
        >>> safe_exponents([0.9, 0.05, 0.05])
        (2.0, 2.0, 2.0)
        >>> safe_exponents([0.9, 0.03, 0.025, 0.02, 0.015, 0.00999, 0.00001])
        (2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    """
    truth = _distribution(frequencies)
    inside = truth[1:]
    safe = focal_guard(truth, gamma, tolerance=tolerance).safe
    if safe and (not inside.any() or focal_guard(inside, gamma, tolerance=tolerance).safe):
        return (float(gamma),) * len(truth)
    return _remedy(truth, gamma)


def _remedy(truth: Array, gamma: float) -> tuple[float, ...]:
    """Focus only classes so frequent that the focal loss suppresses them; also safe without one of them."""
    common = _crossing(gamma)
    return tuple(float(gamma) if share >= common else 0.0 for share in truth)


def focal_optimum(frequencies: ArrayLike, gamma: float | Sequence[float]) -> tuple[Array, float]:
    """The prediction that minimises the focal loss, and its λ.

    Args:
        frequencies: ``(C,)`` true probabilities; they are scaled to sum 1.
        gamma: one exponent, or one for each class.

    Returns:
        ``(C,)`` probabilities that sum to 1, and λ.

    Raises:
        ConfigError: as `focal_guard`.

    Example:
        >>> optimum, level = focal_optimum([0.9, 0.1], 2)
        >>> optimum.round(4).tolist(), round(level, 4)
        ([0.6942, 0.3058], 0.3221)
    """
    truth = _distribution(frequencies)
    exponents = _exponents(gamma, len(truth))
    present = truth > 0
    p, g = truth[present], exponents[present]
    if len(p) == 1:
        return truth, float(_phi(np.array(_LARGEST), g[0]).round(12))

    def log_total(log_level: float) -> tuple[float, float]:
        """Logarithm of the summed q, and its slope: nearly straight, hence a few of Newton's steps."""
        q, slopes = _inverse_h(np.exp(log_level) / p, g)
        return float(np.log(q.sum())), float(slopes.sum() / q.sum())

    start = np.log(2 + g.max())  # φ stays below 1 + γ/e, so the root lies below
    level = float(np.exp(root_scalar(log_total, x0=start, fprime=True, method="newton", xtol=1e-15).root))
    optimum = np.zeros_like(truth)
    optimum[present] = _inverse_h(level / p, g)[0]
    return optimum, level


def calibrate_focal(probabilities: ArrayLike, gamma: float | Sequence[float]) -> Array:
    r"""Turn probabilities of a network trained with the focal loss into frequencies one can threshold and average.

    :math:`p_i = h_{\gamma_i}(q_i)^{-1} / \sum_j h_{\gamma_j}(q_j)^{-1}`, the inverse of `focal_optimum`.

    Args:
        probabilities: ``(..., C)`` softmax outputs, classes last.
        gamma: one exponent, or one for each class.

    Returns:
        Array of the same shape, each row adding up to 1. With one γ for all, the largest class stays the largest.

    Example:
        >>> optimum, _ = focal_optimum([0.5, 0.3, 0.2], 2)
        >>> calibrate_focal(optimum, 2).round(6).tolist()
        [0.5, 0.3, 0.2]
    """
    q = np.clip(np.asarray(probabilities, dtype=np.float64), _SMALLEST, _LARGEST)
    weights = 1 / _h(q, _exponents(gamma, q.shape[-1]))
    shares: Array = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def _h(q: Array, gamma: Array) -> Array:
    return (1 - q) ** gamma / q - gamma * (1 - q) ** (gamma - 1) * np.log(q)


def _phi(q: Array | float, gamma: float) -> Array:
    return np.asarray(q) * _h(np.asarray(q), np.asarray(gamma))


@lru_cache(maxsize=64)
def _peak(gamma: float) -> float:
    """Where φ = q h is largest."""
    found = minimize_scalar(
        lambda q: -_phi(q, gamma), bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x)


@lru_cache(maxsize=64)
def _crossing(gamma: float) -> float:
    """The frequency above which φ is below 1."""
    return float(brentq(lambda q: _phi(q, gamma) - 1, _peak(gamma), _LARGEST))


def _inverse_h(values: Array, gamma: Array) -> tuple[Array, Array]:
    """Solve h(q) = value, and give the slope of q over log value as well.

    Newton's method for log h over logit q, which is nearly straight. h falls from ∞ to 0, for γ = 0 to 1 only; smaller
    values then give q = 1.
    """
    lowest, highest = np.log(_SMALLEST), -np.log1p(-_LARGEST)
    wanted, at = np.log(values), np.zeros_like(values)
    for _ in range(_STEPS):
        log_q, log_rest = -np.logaddexp(0, -at), -np.logaddexp(0, at)
        q, rest = np.exp(log_q), np.exp(log_rest)
        ratio = -q * log_q / rest
        height = gamma * log_rest - log_q + np.log1p(gamma * ratio)
        slope = -(rest + 2 * gamma * q + gamma * (gamma - 1) * q * ratio) / (1 + gamma * ratio)
        before, at = at, np.minimum(np.maximum(at - (height - wanted) / slope, lowest), highest)
        if np.abs(at - before).max() < 1e-12:
            break
    return np.asarray(np.exp(-np.logaddexp(0, -at))), q * rest / slope


def _distribution(frequencies: ArrayLike) -> Array:
    shares = np.asarray(frequencies, dtype=np.float64)
    if shares.ndim != 1 or not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise ConfigError(f"frequencies must be a list of numbers of at least 0, not all 0; got {frequencies!r}")
    return shares / shares.sum()


def _exponents(gamma: float | Sequence[float], classes: int) -> Array:
    exponents = np.broadcast_to(np.asarray(gamma, dtype=np.float64), (classes,))
    if not (np.isfinite(exponents).all() and (exponents >= 0).all()):
        raise ConfigError(f"gamma must be at least 0 and finite, got {gamma!r}")
    return exponents
