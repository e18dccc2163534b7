"""Metrics of 8-bit images that need no model.

An image is a Pillow image in RGB or an array [...,3]; an array may hold several images.
"""

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

Picture = Image.Image | ArrayLike


def saturation(picture: Picture) -> float:
    """Return the mean over pixels of the largest minus the smallest channel: 0 for grey, 1 for pure colors."""
    values = np.asarray(picture, dtype=np.int16)
    return float((values.max(-1) - values.min(-1)).mean() / 255)


def clipping(picture: Picture) -> float:
    """Return the share of channel values at either end of the scale, 0 or 255."""
    values = np.asarray(picture)
    return float(((values == 0) | (values == 255)).mean())
