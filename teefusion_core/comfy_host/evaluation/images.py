"""Pictures as the host has them, as pillow has them.

Shapes: B batch, H W pixels, 3 colour channels.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def as_images(picture: Image.Image) -> Tensor:
    """Return a picture as an IMAGE [1,H,W,3], colours from 0 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def as_pictures(images_BHWC: Tensor) -> list[Image.Image]:
    """Return the pictures of an IMAGE [B,H,W,3], of one with alpha without it, as SaveImage rounds them."""
    values = (images_BHWC[..., :3].float().cpu() * 255).clamp(0, 255).numpy().astype(np.uint8)
    return [Image.fromarray(value) for value in values]
