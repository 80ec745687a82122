"""What the drawn phantoms share on the way from shapes to an image."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

__all__ = ["acquire", "pool", "smooth_noise", "triple"]


def triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return three numbers as a tuple, as JSON and dataclasses like them."""
    z, y, x = (float(value) for value in values)
    return z, y, x


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], sigma: float) -> NDArray[np.float64]:
    """Smooth random field with mean 0 and standard deviation 1."""
    noise = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def pool(fine: NDArray[np.generic], factor: int) -> NDArray[np.float64]:
    """Mean over blocks of ``factor`` voxels along each axis."""
    z, y, x = (n // factor for n in fine.shape)
    return fine.reshape(z, factor, y, factor, x, factor).mean(axis=(1, 3, 5))


def acquire(rng: np.random.Generator, image: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """Apply a smooth bias field of about 10 % and Rician noise."""
    bias = np.exp(0.1 * smooth_noise(rng, image.shape, min(image.shape) / 4))
    return np.hypot(image * bias + rng.normal(0, noise, image.shape), rng.normal(0, noise, image.shape))
