"""Image files of any kind as 8-bit RGB.

Shapes: H W pixels.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InvalidConfig

MOST_PIXELS = 64_000_000
"""Larger images are refused by their header, because a few kilobytes on disk can expand to gigabytes."""
BACKGROUND = (255, 255, 255)
"""Shown through transparent pixels, whose own colour is arbitrary."""
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
"""Formats of Pillow that start another program, or that it only recognises."""
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_SIXTEEN_BITS_AS_INTEGERS = ("PNG", "PPM", "JPEG2000")
"""Formats whose 16-bit grey values Pillow may give as 32-bit integers."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> how to turn the image upright."""


def formats() -> list[str]:
    """Return the names of the formats that are read."""
    Image.init()
    return sorted(set(Image.OPEN) - _NO_PICTURES)


def is_image(path: Path) -> bool:
    """Return whether the suffix is that of a format that is read."""
    return Image.registered_extensions().get(path.suffix.lower()) in formats()


def opened(path: Path) -> Image.Image:
    """Return an image as RGB, turned upright, transparent parts on white; of an animation the first frame.

    Raises:
        InvalidConfig: the file is no image, is damaged, is too large or has pixels without a known range.
    """
    try:
        with Image.open(path, formats=formats()) as file:
            if file.width * file.height > MOST_PIXELS:
                raise InvalidConfig(
                    f"{path.name} is {file.width} x {file.height}, more than {MOST_PIXELS // 10**6} "
                    "megapixels; make it smaller, or remove it from the folder"
                )
            turn = _TURNS.get(_orientation(file))
            upright = file if turn is None else file.transpose(turn)
            return _rgb(upright, file.format or "", path)
    except InvalidConfig:
        raise
    except Exception as error:  # a decoder may meet damaged bytes with any of them
        reason = str(error).replace(repr(os.fspath(path)), "it")
        raise InvalidConfig(
            f"{path.name} is not an intact image ({reason}); repair it or remove it from the folder"
        ) from error


def _orientation(file: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if there is none, or if the EXIF data is damaged."""
    try:
        return int(file.getexif().get(_ORIENTATION, 1))
    except Exception:  # as above; the pixels may be intact
        return 1


def _rgb(image: Image.Image, kind: str, path: Path) -> Image.Image:
    if image.mode in _SIXTEEN_BITS or image.mode == "I" and kind in _SIXTEEN_BITS_AS_INTEGERS:
        grey_HW = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey_HW.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InvalidConfig(
            f"{path.name} has 32-bit pixels, whose range is unknown; save it with 8 or 16 bits per channel"
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    whole = image.convert("RGBA")
    below = Image.new("RGBA", whole.size, BACKGROUND)
    return Image.alpha_composite(below, whole).convert("RGB")
