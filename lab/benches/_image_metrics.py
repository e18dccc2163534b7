"""Further image metrics, for the evidence.

Shapes: B images, H W size, 3 colour channels, S seeds; values from 0 to 1, as in ComfyUI's IMAGE.
"""

from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from teefusion_core.errors import ShapeMismatch

LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in the brightness, ITU-R BT.709."""
SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03
"""From Wang et al., 2004."""


def contrast(images_BHW3: Tensor) -> Tensor:
    """Return the standard deviation of the brightness over the pixels (RMS contrast), float64 [B]."""
    return brightness(images_BHW3).flatten(1).std(1, correction=0)


def brightness(images_BHW3: Tensor) -> Tensor:
    """Return the brightness, float64 [B,H,W]."""
    x = _checked(images_BHW3)
    return x @ x.new_tensor(LUMA)


def psnr(images_BHW3: Tensor, others_BHW3: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of pairs in dB, float64 [B]; infinite for equal images."""
    a, b = _pair(images_BHW3, others_BHW3)
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def ssim(images_BHW3: Tensor, others_BHW3: Tensor) -> Tensor:
    """Return the structural similarity of the brightness of pairs, float64 [B], with a Gaussian window and no padding.

    Source: Wang et al., Image quality assessment, IEEE TIP 2004; without downsampling.
    """
    _pair(images_BHW3, others_BHW3)
    a_BHW, b_BHW = brightness(images_BHW3), brightness(others_BHW3)
    if min(a_BHW.shape[1:]) < SSIM_WINDOW:
        raise ShapeMismatch(
            f"pictures of {tuple(a_BHW.shape[1:])} pixels are smaller than the window; use {SSIM_WINDOW} or more"
        )
    mean_a, mean_b = _windowed(a_BHW), _windowed(b_BHW)
    variance_a = _windowed(a_BHW.square()) - mean_a.square()
    variance_b = _windowed(b_BHW.square()) - mean_b.square()
    covariance = _windowed(a_BHW * b_BHW) - mean_a * mean_b
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (numerator / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2))).mean((1, 2))


def diversity(images_SBHW3: Tensor) -> Tensor:
    """Return the root mean square difference between images of one prompt, mean over pairs of seeds, float64 [B]."""
    if images_SBHW3.ndim != 5 or len(images_SBHW3) < 2:
        raise ShapeMismatch(
            f"pictures have shape {tuple(images_SBHW3.shape)}; give [seeds, prompts, H, W, 3], two seeds or more"
        )
    pairs = (_pair(a, b) for a, b in combinations(images_SBHW3, 2))
    return torch.stack([(a - b).square().mean((1, 2, 3)).sqrt() for a, b in pairs]).mean(0)


def _windowed(x_BHW: Tensor) -> Tensor:
    """Return the Gaussian-weighted mean of every window that lies inside."""
    offset = torch.arange(SSIM_WINDOW, dtype=x_BHW.dtype, device=x_BHW.device) - SSIM_WINDOW // 2
    weight = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    weight = weight / weight.sum()
    down = conv2d(x_BHW[:, None], weight.view(1, 1, -1, 1))
    return conv2d(down, weight.view(1, 1, 1, -1))[:, 0]


def _pair(a_BHW3: Tensor, b_BHW3: Tensor) -> tuple[Tensor, Tensor]:
    if a_BHW3.shape != b_BHW3.shape:
        raise ShapeMismatch(f"shapes {tuple(a_BHW3.shape)} and {tuple(b_BHW3.shape)} differ; give pictures of one size")
    return _checked(a_BHW3), _checked(b_BHW3)


def _checked(images_BHW3: Tensor) -> Tensor:
    if images_BHW3.ndim != 4 or images_BHW3.shape[-1] != 3:
        raise ShapeMismatch(f"images have shape {tuple(images_BHW3.shape)}; give [images, H, W, 3]")
    return images_BHW3.to(torch.float64)
