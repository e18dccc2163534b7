"""Grid of the images of a sweep, with the strength below each."""

from collections.abc import Sequence

from PIL import Image

from .grid import Cell, Row, draw_grid
from .plot import STRONG

WIDEST = 4
"""Number of columns; more would make the images too small to compare in a node."""


def sweep_grid(
    pictures: Sequence[Image.Image], captions: Sequence[str], *, side: int, best: int | None = None
) -> Image.Image:
    """Draw the images in rows.

    Args:
        pictures: one per strength.
        captions: as many texts.
        side: longer side of an image in pixels; 0 uses that of the largest.
        best: number of the image to frame.
    """
    columns = min(WIDEST, len(pictures))
    cells = [
        Cell([picture], caption, [STRONG] if number == best else [])
        for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True))
    ]
    rows = [Row("", cells[first : first + columns]) for first in range(0, len(cells), columns)]
    return draw_grid([], rows, side=side or max(max(picture.size) for picture in pictures))
