"""Image metrics that need no model.

Shapes: B images, H W size, 3 colour channels; values from 0 to 1, as in ComfyUI's IMAGE.
"""

import torch
from torch import Tensor

from ..errors import ShapeMismatch


def saturation(images_BHW3: Tensor) -> Tensor:
    """Return the mean over pixels of the largest minus the smallest channel.

    Args:
        images_BHW3: values from 0 to 1.
    Returns:
        float64 [B], 0 for grey images, 1 for pure colours.
    Raises:
        ShapeMismatch: no images with three channels.
    """
    x = checked(images_BHW3)
    return (x.amax(-1) - x.amin(-1)).mean((1, 2))


def clipping(images_BHW3: Tensor) -> Tensor:
    """Return the share of channel values at either end of the scale.

    Args:
        images_BHW3: values from 0 to 1; values outside count as clipped.
    Returns:
        float64 [B].
    Raises:
        ShapeMismatch: no images with three channels.
    """
    x = checked(images_BHW3)
    return ((x <= 0) | (x >= 1)).double().mean((1, 2, 3))


def checked(images_BHW3: Tensor) -> Tensor:
    if images_BHW3.ndim != 4 or images_BHW3.shape[-1] != 3:
        raise ShapeMismatch(f"images have shape {tuple(images_BHW3.shape)}; give [images, H, W, 3]")
    return images_BHW3.to(torch.float64)
