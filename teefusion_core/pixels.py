"""What pictures tell about guidance that is too strong.

Shapes: B batch, H W pixels, 3 colour channels.
"""

from torch import Tensor

ONE_STEP = 1 / 255
"""Values nearer than half of this to 0 or 1 become 0 or 255 in a file."""


def clipped(images_BHW3: Tensor) -> float:
    """Return the share of values that end as 0 or 255.

    Args:
        images_BHW3: colours from 0 to 1.
    """
    values = images_BHW3.float()
    return float(((values < ONE_STEP / 2) | (values > 1 - ONE_STEP / 2)).float().mean())


def saturation(images_BHW3: Tensor) -> float:
    """Return the mean of largest minus least over the channels, 0 for grey to 1.

    Args:
        images_BHW3: colours from 0 to 1.
    """
    values = images_BHW3.float().clamp(0, 1)
    return float((values.amax(-1) - values.amin(-1)).mean())
