"""Results as a table on the screen and as JSON on the disk."""

import json
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from runner.places import ROOT
from runner.stop import say

RESULTS = ROOT / "lab" / "results"

Row = dict[str, Any]
Job = tuple[Row, Callable[[], Row]]
"""What makes a row different from others, and a function that measures the rest of it."""


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


def measured_rows(name: str, settings: Row, jobs: Iterable[Job]) -> dict[str, Any]:
    """Measure what is missing in lab/results/<name>.json; return rows and settings.

    Each row is written when it is measured, so the next call goes on where this one was stopped.

    Args:
        name: name of the bench.
        settings: what all rows have in common; rows of other settings are dropped.
        jobs: a job per row.
    """
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = known["rows"] if known.get("settings") == settings else []
    wanted = []
    for named, measure in jobs:
        row = next((row for row in rows if named.items() <= row.items()), None)
        if row is None:
            row = named | measure()
            rows.append(row)
            write(name, {"rows": rows, "settings": settings})
        wanted.append(row)
    return {"rows": wanted, "settings": settings}


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
