"""Results as a table on the screen and as JSON on the disk."""

import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runner.places import ROOT
from runner.stop import say

RESULTS = ROOT / "lab" / "results"


def machine() -> dict[str, Any]:
    """Return what a reader needs to compare the numbers, without names of the machine or of its owner."""
    import torch
    from comfyui_version import __version__ as comfyui

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "device": device, "architecture": platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
        "comfyui": comfyui,
    }  # fmt: skip


def write(name: str, result: dict[str, Any]) -> Path:
    """Write lab/results/<name>.json atomically; return its path inside the repository."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    part = path.with_suffix(".tmp")
    text = json.dumps({"name": name, "machine": machine(), **result}, indent=1)
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)
    return path.relative_to(ROOT)


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for index, row in enumerate(rows):
        say("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
        if index == 0:
            say("  ".join("-" * width for width in widths))


def packed(values: Iterable[float], digits: int = 3) -> str:
    """Return many numbers as one string, which JSON keeps on one line."""
    return " ".join(f"{value:.{digits}f}" for value in values)


def unpacked(text: str) -> list[float]:
    return [float(word) for word in text.split()]
