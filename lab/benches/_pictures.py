"""The pictures of the report: a strip for each method, the same prompts from the same noise."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np

from ._report import RESULTS

PROMPTS, GAP = 8, 2
SHEET = RESULTS / "tables.png"
NAMES = "methods"


def keep(strips: dict[str, np.ndarray], sheet: Path = SHEET) -> None:
    """Write strips of uint8 pictures [8,H,W,3] one below the other; their names stand in the file too."""
    from PIL import Image, PngImagePlugin

    apart = ((0, 0), (0, 0), (GAP, GAP), (0, 0))
    spaced = (np.pad(strip, apart, constant_values=128) for strip in strips.values())
    rows = [strip.swapaxes(0, 1).reshape(strip.shape[1], -1, 3) for strip in spaced]
    info = PngImagePlugin.PngInfo()
    info.add_text(NAMES, json.dumps(list(strips)))
    part = sheet.with_suffix(".tmp")
    Image.fromarray(np.concatenate(rows)).save(part, "PNG", pnginfo=info, optimize=True)
    os.replace(part, sheet)


def strips(sheet: Path = SHEET) -> dict[str, bytes]:
    """Read the strips back, each as a PNG of its own."""
    from PIL import Image

    found = {}
    with Image.open(sheet) as image:
        names = json.loads(image.info[NAMES])
        height = image.height // len(names)
        for index, name in enumerate(names):
            strip = io.BytesIO()
            image.crop((0, index * height, image.width, (index + 1) * height)).save(strip, "PNG", optimize=True)
            found[name] = strip.getvalue()
    return found
