"""Conversion of IMAGE tensors to Pillow images or back.

Shapes: B batch, H W pixels, C channels.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import InvalidConfig, ShapeMismatch
from ...files.image_file import BACKGROUND
from ...files.tensor_file import not_finite, numbered

CHANNELS = (1, 2, 3, 4)


def as_images(picture: Image.Image) -> Tensor:
    """Return a Pillow image as an IMAGE [1,H,W,3], values from 0 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def as_pictures(images_BHWC: Tensor, name: str = "images") -> list[Image.Image]:
    """Return the Pillow images of an IMAGE, rounded as by SaveImage; transparent parts are on white.

    Args:
        images_BHWC: one channel (grey), two (with alpha), three (RGB) or four (with alpha).
        name: of the input, for messages.
    Raises:
        ShapeMismatch: the shape is not that of images.
        InvalidConfig: an image has NaN or infinite pixels.
    """
    if not isinstance(images_BHWC, Tensor) or images_BHWC.ndim != 4 or images_BHWC.shape[-1] not in CHANNELS:
        shape = list(images_BHWC.shape) if isinstance(images_BHWC, Tensor) else type(images_BHWC).__name__
        raise ShapeMismatch(
            f"{name} has the shape {shape}, but images are [number, height, width, channels] with 1 to 4 channels; "
            "connect an IMAGE"
        )
    if 0 in images_BHWC.shape:
        raise ShapeMismatch(
            f"{name} has the shape {list(images_BHWC.shape)}, so it holds no image; connect one or more"
        )
    values = images_BHWC.float().cpu()
    if broken := not_finite(values):
        raise InvalidConfig(
            f"{name} has NaN or infinite pixels in {numbered('image', broken)}; sample again, for example with a "
            "lower cfg, or decode with a VAE in 32 bits"
        )
    colours, alpha = values[..., : 1 if values.shape[-1] < 3 else 3], values.shape[-1] in (2, 4)
    if alpha:
        share = values[..., -1:].clamp(0, 1)
        colours = colours * share + torch.tensor(BACKGROUND[: colours.shape[-1]]) / 255 * (1 - share)
    bytes_BHWC = (colours * 255).clamp(0, 255).numpy().astype(np.uint8)
    return [Image.fromarray(value) for value in bytes_BHWC.repeat(3 // bytes_BHWC.shape[-1], -1)]
