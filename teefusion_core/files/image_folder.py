"""A folder of images with a caption file beside each.

Shapes: H W pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import InvalidConfig

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MOST_PIXELS = 64_000_000
"""Larger images are refused by their header, because a few kilobytes on disk can expand to gigabytes."""


@dataclass(frozen=True)
class Captioned:
    """An image file with its caption."""

    path: Path
    caption: str

    def pixels(self, width: int, height: int) -> Tensor:
        """Return the centre crop of the image at this size, float [1,H,W,3] from 0 to 1.

        Raises:
            InvalidConfig: the file is no image, is damaged or is too large.
        """
        upright = opened(self.path)
        fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255)[None]


def opened(path: Path) -> Image.Image:
    """Return an image as RGB, turned upright.

    Raises:
        InvalidConfig: the file is no image, is damaged or is too large.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > MOST_PIXELS:
                raise InvalidConfig(
                    f"{path.name} is {file.width} x {file.height}, more than {MOST_PIXELS // 10**6} "
                    "megapixels; make it smaller, or remove it from the folder"
                )
            return ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InvalidConfig):
            raise
        raise InvalidConfig(
            f"{path.name} is not an intact image ({error}); repair it or remove it from the folder"
        ) from error


def pictures_in(folder: Path) -> list[Path]:
    """Find the images of a folder, in the order of their names.

    Raises:
        InvalidConfig: the folder does not exist or has no images.
    """
    if not folder.is_dir():
        raise InvalidConfig(f"{folder} is not a folder; give a folder with images")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InvalidConfig(f"{folder} has no images ({', '.join(SUFFIXES)}); copy some there")
    return found


def captioned(folder: Path) -> list[Captioned]:
    """Find the images of a folder with their captions, in the order of their names.

    Raises:
        InvalidConfig: the folder does not exist, it has no images, or an image has no caption.
    """
    return [Captioned(path, _caption(path)) for path in pictures_in(folder)]


def _caption(picture: Path) -> str:
    text = picture.with_suffix(".txt")
    caption = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
    if not caption:
        raise InvalidConfig(f"{picture.name} has no caption; write one to {text.name}, or remove the image")
    return caption
