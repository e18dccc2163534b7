"""Conversion of IMAGE tensors to Pillow images or back.

Shapes: B batch, H W pixels, 3 colour channels.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def as_images(picture: Image.Image) -> Tensor:
    """Return a Pillow image as an IMAGE [1,H,W,3], values from 0 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def as_pictures(images_BHWC: Tensor) -> list[Image.Image]:
    """Return the Pillow images of an IMAGE [B,H,W,C] without alpha, rounded as by SaveImage."""
    values = (images_BHWC[..., :3].float().cpu() * 255).clamp(0, 255).numpy().astype(np.uint8)
    return [Image.fromarray(value) for value in values]
