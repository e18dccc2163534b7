"""The picture of the demo: prompt by prompt, one method beside the other.

Shapes: H W picture size, 3 colour channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INNER = 192
"""Pixels of a shown picture: three for each of the 64 that the demo model paints."""
SHOWN = 2
"""Pictures per method, of those made."""
GAP, MARGIN, FRAME = 8, 24, 4
SIDE = INNER + 2 * FRAME
BETWEEN = 28
"""Space between the two methods, between two columns of prompts."""
HEAD, CAPTION = 76, 34
ONE_COLUMN_UP_TO = 4
"""More prompts than these stand in two columns, so that the whole fits a screen."""
INK, FAINT, PAPER = (24, 24, 28), (110, 110, 118), (255, 255, 255)
RIGHT, WRONG = (46, 160, 67), (214, 57, 57)


@dataclass
class Row:
    """A prompt, with each method's pictures of it, each with whether it shows all of the prompt."""

    text: str
    cells: list[list[tuple[np.ndarray, bool]]]


def draw_sheet(rows: list[Row], labels: list[str], target: Path) -> Path:
    """Write the sheet as a PNG; return where."""
    num_columns = 1 if len(rows) <= ONE_COLUMN_UP_TO else 2
    num_lines = -(-len(rows) // num_columns)
    block = SHOWN * SIDE + (SHOWN - 1) * GAP
    width = len(labels) * block + (len(labels) - 1) * BETWEEN
    height = CAPTION + SIDE + GAP
    size = (2 * MARGIN + num_columns * width + (num_columns - 1) * 2 * BETWEEN, HEAD + num_lines * height + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    for column in range(num_columns):
        left = MARGIN + column * (width + 2 * BETWEEN)
        _draw_head(sheet, left, block, labels)
        for line, row in enumerate(rows[column * num_lines : (column + 1) * num_lines]):
            _draw_row(sheet, left, HEAD + line * height, block, row)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
    return target


def _draw_head(sheet: Image.Image, left: int, block: int, labels: list[str]) -> None:
    draw = ImageDraw.Draw(sheet)
    for index, label in enumerate(labels):
        draw.text((left + index * (block + BETWEEN), MARGIN), label, INK, font(21))
    legend = "green frame: shows all of its prompt; red: does not"
    draw.text((left, MARGIN + 28), legend, FAINT, font(14))


def _draw_row(sheet: Image.Image, left: int, top: int, block: int, row: Row) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((left, top + 8), _fitted(draw, row.text, 2 * block + BETWEEN), INK, font(17))
    for method, cell in enumerate(row.cells):
        for index, (image_HW3, right) in enumerate(cell[:SHOWN]):
            x = left + method * (block + BETWEEN) + index * (SIDE + GAP)
            y = top + CAPTION
            draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), RIGHT if right else WRONG)
            # nearest: the viewer sees the pixels that were made
            sheet.paste(
                Image.fromarray(image_HW3).resize((INNER, INNER), Image.Resampling.NEAREST), (x + FRAME, y + FRAME)
            )


def _fitted(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    letters = font(17)
    if draw.textlength(text, letters) <= width:
        return text
    while text and draw.textlength(text + "...", letters) > width:
        text = text[:-1]
    return text.rstrip() + "..."


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own letters, the same on every machine."""
    return ImageFont.load_default(size)
