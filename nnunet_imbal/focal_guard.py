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

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar

from nnunet_imbal.errors import ConfigError

__all__ = ["FocalGuard", "calibrate_focal", "focal_guard", "focal_optimum"]

Array = NDArray[np.float64]
_SMALLEST, _LARGEST = 1e-200, 1 - 1e-13
_BISECTIONS = 64


@dataclass(frozen=True)
class FocalGuard:
    """What `focal_guard` found.

    Attributes:
        level: λ; above 1 the rarest classes are over-suppressed, at most to 1/λ of their frequency.
        optimum: ``(C,)`` frequencies that a perfectly trained network predicts.
        over_suppressed: classes predicted below their frequency because of λ > 1.
        remedy: γ for each class. With these, λ is at most 1, so every class of γ = 0 is predicted at or above its
            frequency. All equal to the γ asked for if there is nothing to repair.
    """

    level: float
    optimum: Array
    over_suppressed: tuple[int, ...]
    remedy: tuple[float, ...]

    @property
    def safe(self) -> bool:
        """Whether no class is over-suppressed."""
        return not self.over_suppressed


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
    if level <= 1 + tolerance:
        return FocalGuard(level, optimum, (), (float(gamma),) * len(truth))
    lower = brentq(lambda q: _phi(q, gamma) - level, _SMALLEST, _peak(gamma))
    hidden = tuple(int(i) for i in np.flatnonzero((truth > 0) & (truth < lower)))
    common = brentq(lambda q: _phi(q, gamma) - 1, _peak(gamma), _LARGEST)
    remedy = tuple(float(gamma) if share >= common else 0.0 for share in truth)
    return FocalGuard(level, optimum, hidden, remedy)


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

    def excess(log_level: float) -> float:
        return float(_inverse_h(np.exp(log_level) / p, g).sum()) - 1

    high = np.log(2 + g.max())  # φ stays below 1 + γ/e
    low = -1.0
    while excess(low) < 0:
        low *= 2
    level = float(np.exp(brentq(excess, low, high, xtol=1e-14)))
    optimum = np.zeros_like(truth)
    optimum[present] = _inverse_h(level / p, g)
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


def _peak(gamma: float) -> float:
    """Where φ = q h is largest."""
    found = minimize_scalar(
        lambda q: -_phi(q, gamma), bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x)


def _inverse_h(values: Array, gamma: Array) -> Array:
    """Solve h(q) = value by bisection of log q and, close to 1, of q; h falls from infinity to 0 (1 for γ = 0)."""
    low, high = np.full(values.shape, _SMALLEST), np.full(values.shape, _LARGEST)
    for _ in range(_BISECTIONS):
        middle = np.where(high > 4 * low, np.sqrt(low * high), (low + high) / 2)
        too_small = _h(middle, gamma) > values
        low, high = np.where(too_small, middle, low), np.where(too_small, high, middle)
    return (low + high) / 2


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
