"""Labelled grid of images from several methods."""

from collections.abc import Sequence
from string import ascii_lowercase

from PIL import Image

from ..errors import InvalidConfig
from ..prompts.prompt_list import by_prompt, lines_of
from .grid import Cell, Row, draw_grid


def compared(
    batches: Sequence[Sequence[Image.Image]], *, prompts: str, methods: str, costs: str, side: int
) -> Image.Image:
    """Draw a grid with one row per prompt and one column per method.

    Args:
        batches: images of each method in the order of the prompts, the same number for every prompt.
        prompts: a line per row; empty for one row without a title.
        methods: a line per batch, or empty.
        costs: text below the images: a line per method, or a line per cell, row by row; or empty. A semicolon ends a
            line too.
        side: longer side of an image in pixels; 0 uses that of the largest image.
    Raises:
        InvalidConfig: numbers of images or lines do not match.
    """
    # nodes that join texts produce a single line
    titles, headings, notes = (lines_of(text) for text in (prompts, methods, costs.replace(";", "\n")))
    num_rows, num_columns = max(1, len(titles)), len(batches)
    parts = [
        by_prompt(batch, num_rows, f"images_{letter}") for letter, batch in zip(ascii_lowercase, batches, strict=False)
    ]
    if headings and len(headings) != num_columns:
        raise InvalidConfig(
            f"methods has {len(headings)} lines for {num_columns} batches of images; write one line per batch"
        )
    if notes and len(notes) not in (num_columns, num_columns * num_rows):
        raise InvalidConfig(
            f"costs has {len(notes)} lines for {num_columns} methods with {num_rows} prompts; write one per method, or "
            f"{num_columns * num_rows}, row by row"
        )
    notes = notes or [""] * num_columns
    rows = []
    for row in range(num_rows):
        below = notes[row * num_columns :] if len(notes) > num_columns else notes
        cells = [Cell(part[row], note) for part, note in zip(parts, below[:num_columns], strict=True)]
        rows.append(Row(titles[row] if titles else "", cells))
    largest = max(max(picture.size) for batch in batches for picture in batch)
    return draw_grid(headings, rows, side=side or largest)
