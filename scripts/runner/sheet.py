"""The picture of the demo: prompt by prompt, one method beside the other.

Shapes: H W picture size, 3 colour channels.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .places import ROOT

INNER = 128
"""Pixels of a shown picture: two for each of the 64 that the demo model samples."""
SHOWN = 2
"""Pictures per method, of those made."""
RIGHT, WRONG = (46, 160, 67), (214, 57, 57)
LEGEND = "green frame: shows all of its prompt; red: does not"


@dataclass
class Row:
    """A prompt, with each method's pictures of it, each with whether it shows all of the prompt."""

    text: str
    cells: list[list[tuple[np.ndarray, bool]]]


def draw_sheet(rows: list[Row], labels: list[str], target: Path) -> Path:
    """Write the sheet as a PNG; return where."""
    # last on the path: the repository has a package called nodes, as ComfyUI has a module
    sys.path.append(str(ROOT))
    from teefusion_core.evaluation.grid import Row as GridRow
    from teefusion_core.evaluation.grid import draw_grid

    drawn = [GridRow(row.text, [_cell(cell) for cell in row.cells]) for row in rows]
    sheet = draw_grid(labels, drawn, side=INNER, legend=LEGEND)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
    return target


def _cell(cell: list[tuple[np.ndarray, bool]]):
    from teefusion_core.evaluation.grid import Cell

    shown = cell[:SHOWN]
    frames = [RIGHT if right else WRONG for _, right in shown]
    return Cell([Image.fromarray(image_HW3) for image_HW3, _ in shown], frames=frames)
