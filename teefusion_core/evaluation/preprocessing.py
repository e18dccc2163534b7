"""Image preprocessing of the scoring models.

Shapes: B images, H W pixels, 3 colour channels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Per channel, of the training images of CLIP; BLIP uses the same values."""

Prepare = Callable[[Image.Image, int], Tensor]
"""(image, side) -> values from 0 to 1, [3,H,W] with H = W = side."""


def middle(picture: Image.Image, side: int) -> Tensor:
    """Resize the shorter edge and crop the centre, rounding half pixels down as transformers does."""
    return _cut(picture, side, lambda rest: rest // 2)


def middle_rounded(picture: Image.Image, side: int) -> Tensor:
    """Resize the shorter edge and crop the centre, rounding half pixels to even as torchvision does."""
    return _cut(picture, side, lambda rest: round(rest / 2))


def whole(picture: Image.Image, side: int) -> Tensor:
    """Resize the longer edge and pad with black, as hpsv2 does; the resize works on floats, not on bytes."""
    scale = side / max(picture.size)
    width, height = (round(edge * scale) for edge in picture.size)
    values_3HW = _values(picture)
    if scale != 1:
        values_3HW = interpolate(values_3HW[None], (height, width), mode="bicubic", antialias=True)[0]
    left, top = (side - width) // 2, (side - height) // 2
    return pad(values_3HW, (left, side - width - left, top, side - height - top))


def pixels_of(pictures: Sequence[Image.Image], prepare: Prepare, side: int) -> Tensor:
    """Return normalised pixels [B,3,H,W], H = W = side."""
    values_B3HW = torch.stack([prepare(picture.convert("RGB"), side) for picture in pictures])
    return (values_B3HW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def _values(picture: Image.Image) -> Tensor:
    return rearrange(torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255), "h w c -> c h w")


def _cut(picture: Image.Image, side: int, half: Callable[[int], int]) -> Tensor:
    shorter = min(picture.size)
    width, height = (side if edge == shorter else int(side * edge / shorter) for edge in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = half(width - side), half(height - side)
    return _values(resized.crop((left, top, left + side, top + side)))
