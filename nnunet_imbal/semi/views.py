"""The harder view of an image that a network gets while its teacher sees the image itself."""

import torch
from torch import Tensor

__all__ = ["perturb_intensity"]


def perturb_intensity(
    images: Tensor,
    *,
    contrast: float = 0.25,
    brightness: float = 0.25,
    noise: float = 0.2,
    channels: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Change contrast, brightness and noise of each patch at random, as another scanner or protocol would.

    With mean :math:`m` and standard deviation :math:`s` of a patch and channel:
    :math:`m + (1 + a)(x - m) + s\,(b + c\,\varepsilon)`, where :math:`a, b, c` are drawn once for each patch and
    channel, uniform in ±``contrast``, ±``brightness`` and 0..``noise``, and :math:`\varepsilon` is standard normal.
    Nothing moves, so labels and predictions of the image are those of its view.

    Args:
        images: ``(B, C, *S)`` float, any intensity scale.
        contrast: largest relative change of contrast.
        brightness: largest shift, in standard deviations of the patch.
        noise: largest standard deviation of the noise, in standard deviations of the patch.
        channels: only the first ones are images; the others (a previous stage's labels) stay. None: all.
        generator: of random numbers, on the device of the images.

    Returns:
        A new tensor of the same shape and dtype; a constant patch stays as it is.

    Note:
        Our choice: nnU-Net has rotated, scaled, blurred and mirrored the patch before teacher and network get it, and
        intensities need no second warping of predictions.

    Example:
        >>> perturb_intensity(torch.arange(8.0).view(1, 1, 2, 4), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([1, 1, 2, 4])
    """
    own = images[:, :channels]
    axes = tuple(range(2, images.ndim))
    mean, scale = own.mean(axes, keepdim=True), own.std(axes, keepdim=True, correction=0)
    strength = torch.rand(3, *mean.shape, generator=generator, device=own.device, dtype=own.dtype)
    a, b = contrast * (2 * strength[0] - 1), brightness * (2 * strength[1] - 1)
    grain = torch.randn(own.shape, generator=generator, device=own.device, dtype=own.dtype)
    view = mean + (1 + a) * (own - mean) + scale * (b + noise * strength[2] * grain)
    return view if channels is None else torch.cat([view, images[:, channels:]], dim=1)
