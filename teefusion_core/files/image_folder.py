"""A folder of images with a caption file beside each.

Shapes: H W pixels.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import InvalidConfig
from .image_file import is_image, opened
from .text_file import read_text

CAPTION = ".txt"
_NAMED = 5
"""Number of skipped files that a message names."""

log = logging.getLogger(__name__)


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
        fitted = ImageOps.fit(opened(self.path), (width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255)[None]


def pictures_in(folder: Path, *, subfolders: bool = False) -> list[Path]:
    """Find the images of a folder, in the natural order of their names: 2 before 10.

    Hidden files and captions are passed over; other files that are no images are counted and named in the log.

    Args:
        folder: the folder.
        subfolders: whether to look into its folders as well.
    Raises:
        InvalidConfig: the folder does not exist or has no images.
    """
    if not folder.is_dir():
        raise InvalidConfig(f"{folder} is not a folder; give a folder with images")
    inside = (path for path in (folder.rglob("*") if subfolders else folder.iterdir()) if path.is_file())
    visible = [path for path in inside if not any(part[0] == "." for part in path.relative_to(folder).parts)]
    found = sorted(filter(is_image, visible), key=lambda path: _natural(path.relative_to(folder)))
    if not found:
        raise InvalidConfig(f"{folder} has no images (png, jpg, webp, tiff, ...); copy some there")
    skipped = sorted(path.name for path in visible if path.suffix.lower() != CAPTION and not is_image(path))
    if skipped:
        more = ", ..." if len(skipped) > _NAMED else ""
        log.warning("%s: %d files are no images: %s%s", folder, len(skipped), ", ".join(skipped[:_NAMED]), more)
    return found


def captioned(folder: Path, *, subfolders: bool = False) -> list[Captioned]:
    """Find the images of a folder with their captions, in the natural order of their names.

    Raises:
        InvalidConfig: the folder does not exist, it has no images, or an image has no caption.
    """
    return [Captioned(path, _caption(path)) for path in pictures_in(folder, subfolders=subfolders)]


def _caption(image: Path) -> str:
    text = image.with_suffix(CAPTION)
    caption = read_text(text).strip() if text.is_file() else ""
    if not caption:
        raise InvalidConfig(f"{image.name} has no caption; write one to {text.name}, or remove the image")
    return caption


def _natural(path: Path) -> tuple[list[Any], str]:
    """Return a key that orders the numbers in names by their value."""
    words = re.split(r"(\d+)", path.as_posix().casefold())  # every second one is a number
    return [int(word) if number % 2 else word for number, word in enumerate(words)], path.as_posix()
