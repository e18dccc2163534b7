"""Grid of images: a row per prompt, a column per method."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .labels import Labels
from .plot import PAPER

INK, FAINT = (24, 24, 28), (110, 110, 118)
GAP, MARGIN, FRAME, BETWEEN = 8, 24, 4, 28
"""In pixels: gap in a cell, outer margin, frame width, gap between columns."""
HEADING, TITLE, NOTE = 21, 17, 14
GROWS_FROM = 256
"""Image side in pixels above which the text grows."""
TITLE_LINES = 2

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Cell:
    """Images of one method for one prompt."""

    pictures: Sequence[Image.Image]
    note: str = ""
    """Text below the images."""
    frames: Sequence[Colour] = ()
    """A colour per image, or empty."""


@dataclass(frozen=True)
class Row:
    """A prompt and its cells, one per column."""

    title: str
    cells: Sequence[Cell]


class _Grid:
    """Layout of a grid."""

    def __init__(self, rows: Sequence[Row], side: int):
        cells = [cell for row in rows for cell in row.cells]
        sizes = [_scaled(picture, side) for cell in cells for picture in cell.pictures]
        grow = max(1.0, side / GROWS_FROM)
        self.heading, self.title, self.note = (round(grow * size) for size in (HEADING, TITLE, NOTE))
        self.side, self.frame = side, FRAME if any(cell.frames for cell in cells) else 0
        self.width = max(size[0] for size in sizes) + 2 * self.frame
        self.height = max(size[1] for size in sizes) + 2 * self.frame
        self.block = max(len(cell.pictures) for cell in cells) * (self.width + GAP) - GAP
        self.notes = max(cell.note.count("\n") + 1 if cell.note else 0 for cell in cells)
        self.columns = max(len(row.cells) for row in rows)
        self.inner = self.columns * (self.block + BETWEEN) - BETWEEN

    def lines_of(self, labels: Labels, title: str) -> list[str]:
        """Break a title into at most TITLE_LINES lines: between words, or in a word that is longer than a line."""
        lines: list[str] = []
        rest = " ".join(title.split())
        while rest and len(lines) < TITLE_LINES - 1:
            cut = max(1, labels.fitting(rest, self.inner, self.title))
            space = rest.rfind(" ", 0, cut + 1)
            if cut < len(rest) and space > 0:
                word = rest[space + 1 :].partition(" ")[0]
                cut = space if labels.width(word, self.title) <= self.inner else cut
            lines, rest = [*lines, rest[:cut].rstrip()], rest[cut:].lstrip()
        return [*lines, labels.fitted(rest, self.inner, self.title)] if rest else lines

    def row_height(self, lines: Sequence[str]) -> int:
        """Return the height of a row with these lines of its title."""
        above = len(lines) * (self.title + 6) + (4 if lines else 0)
        return above + self.height + self.notes * (self.note + 5) + (4 if self.notes else 0) + 2 * GAP

    def draw_row(self, image: Image.Image, labels: Labels, top: int, row: Row, lines: Sequence[str]) -> None:
        """Draw the title, images and notes of a row."""
        for line in lines:
            labels.text((MARGIN, top), line, INK, self.title)
            top += self.title + 6
        top += 4 if lines else 0
        for number, cell in enumerate(row.cells):
            left = MARGIN + number * (self.block + BETWEEN)
            for index, picture in enumerate(cell.pictures):
                colour = cell.frames[index] if cell.frames else None
                self.draw_picture(image, labels, left + index * (self.width + GAP), top, picture, colour)
            for index, line in enumerate(cell.note.splitlines()):
                y = top + self.height + 4 + index * (self.note + 5)
                labels.text((left, y), labels.fitted(line, self.block, self.note), FAINT, self.note)

    def draw_picture(
        self, image: Image.Image, labels: Labels, x: int, y: int, picture: Image.Image, colour: Colour | None
    ) -> None:
        """Draw an image in the middle of its place."""
        width, height = size = _scaled(picture, self.side)
        # enlarging without interpolation keeps the original pixels visible
        larger = width > picture.width
        resized = picture.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)
        if colour is not None:
            labels.draw.rectangle((x, y, x + self.width - 1, y + self.height - 1), colour)
        image.paste(resized, (x + (self.width - width) // 2, y + (self.height - height) // 2))


def draw_grid(columns: Sequence[str], rows: Sequence[Row], *, side: int, legend: str = "") -> Image.Image:
    """Draw a grid of images.

    Args:
        columns: a heading per column, or empty.
        rows: at least one, with at least one image.
        side: longer side of an image in pixels.
        legend: a line below the headings.
    """
    grid, canvas = _Grid(rows, side), Labels(Image.new("RGB", (1, 1)))
    head = (grid.heading + 8 if columns else 0) + (grid.note + 10 if legend else 0) + (6 if columns else 0)
    titles = [grid.lines_of(canvas, row.title) for row in rows]
    heights = [grid.row_height(lines) for lines in titles]
    image = Image.new("RGB", (2 * MARGIN + grid.inner, 2 * MARGIN + head + sum(heights) - 2 * GAP), PAPER)
    labels, top = Labels(image), MARGIN + head
    for number, label in enumerate(columns):
        left = MARGIN + number * (grid.block + BETWEEN)
        labels.text((left, MARGIN), labels.fitted(label, grid.block, grid.heading), INK, grid.heading)
    if legend:
        labels.text((MARGIN, MARGIN + (grid.heading + 8 if columns else 0)), legend, FAINT, grid.note)
    for row, lines, height in zip(rows, titles, heights, strict=True):
        grid.draw_row(image, labels, top, row, lines)
        top += height
    labels.report()
    return image


def _scaled(picture: Image.Image, side: int) -> tuple[int, int]:
    """Return (width, height) of an image scaled to the longer side `side`."""
    longer = max(picture.size)
    return max(1, round(picture.width * side / longer)), max(1, round(picture.height * side / longer))
