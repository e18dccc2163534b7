"""A folder of pictures with a text file beside each.

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
"""Larger ones are refused by their header: a few kilobytes on disk can unpack to gigabytes."""


@dataclass(frozen=True)
class Captioned:
    """A picture file with what it shows."""

    path: Path
    caption: str

    def pixels(self, width: int, height: int) -> Tensor:
        """Return the middle of the picture at this size, float [1,H,W,3] from 0 to 1.

        Raises:
            InvalidConfig: no picture, a broken one, or too large a one.
        """
        upright = opened(self.path)
        fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255)[None]


def opened(path: Path) -> Image.Image:
    """Return a picture as colours, upright.

    Raises:
        InvalidConfig: no picture, a broken one, or too large a one.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > MOST_PIXELS:
                raise InvalidConfig(
                    f"{path.name} is {file.width} x {file.height}, more than {MOST_PIXELS // 10**6} "
                    "megapixels; make it smaller, or take it out of the folder"
                )
            return ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InvalidConfig):
            raise
        raise InvalidConfig(
            f"{path.name} is no whole picture ({error}); mend it or take it out of the folder"
        ) from error


def pictures_in(folder: Path) -> list[Path]:
    """Find the pictures of a folder, in the order of their names.

    Raises:
        InvalidConfig: no such folder, or no picture.
    """
    if not folder.is_dir():
        raise InvalidConfig(f"{folder} is no folder; give one with pictures")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InvalidConfig(f"{folder} has no pictures ({', '.join(SUFFIXES)}); put some there")
    return found


def captioned(folder: Path) -> list[Captioned]:
    """Find the pictures of a folder with their captions, in the order of their names.

    Raises:
        InvalidConfig: no such folder, no picture, or one without a caption.
    """
    return [Captioned(path, _caption(path)) for path in pictures_in(folder)]


def _caption(picture: Path) -> str:
    text = picture.with_suffix(".txt")
    caption = text.read_text(encoding="utf-8").strip() if text.is_file() else ""
    if not caption:
        raise InvalidConfig(f"{picture.name} has no caption; write one into {text.name}, or take it out")
    return caption
