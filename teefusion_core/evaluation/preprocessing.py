"""Pictures as judges were trained to see them.

Shapes: B pictures, H W pixels, 3 colour channels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the training pictures of CLIP, which BLIP goes by too."""

Prepare = Callable[[Image.Image, int], Tensor]
"""(picture, side) -> colours from 0 to 1, [3,H,W] with H = W = side."""


def middle(picture: Image.Image, side: int) -> Tensor:
    """Return the middle square, the shorter edge resized; halves of a pixel round as transformers rounds them."""
    return _cut(picture, side, lambda rest: rest // 2)


def middle_rounded(picture: Image.Image, side: int) -> Tensor:
    """Return the middle square, halves of a pixel round as torchvision rounds them, to the even number."""
    return _cut(picture, side, lambda rest: round(rest / 2))


def whole(picture: Image.Image, side: int) -> Tensor:
    """Return the whole picture, the longer edge resized, black around it; as hpsv2 does, on numbers, not on bytes."""
    scale = side / max(picture.size)
    width, height = (round(edge * scale) for edge in picture.size)
    shown_3HW = _values(picture)
    if scale != 1:
        shown_3HW = interpolate(shown_3HW[None], (height, width), mode="bicubic", antialias=True)[0]
    left, top = (side - width) // 2, (side - height) // 2
    return pad(shown_3HW, (left, side - width - left, top, side - height - top))


def pixels_of(pictures: Sequence[Image.Image], prepare: Prepare, side: int) -> Tensor:
    """Return normalised pixels [B,3,H,W], H = W = side."""
    values_B3HW = torch.stack([prepare(picture.convert("RGB"), side) for picture in pictures])
    return (values_B3HW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def _values(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)


def _cut(picture: Image.Image, side: int, half: Callable[[int], int]) -> Tensor:
    shorter = min(picture.size)
    width, height = (side if edge == shorter else int(side * edge / shorter) for edge in picture.size)
    shown = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = half(width - side), half(height - side)
    return _values(shown.crop((left, top, left + side, top + side)))
