"""How long a starting ComfyUI waits for this pack, beyond torch and its own modules."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from runner.places import ROOT

TIMES = 10
TARGET_MS = 50
SCRIPT = Path(__file__).with_name("_import.py")


def once() -> dict[str, Any]:
    """Start a host, load the pack; the source is compiled already, as after the first start."""
    run = [sys.executable, str(SCRIPT), os.environ["COMFYUI_PATH"], str(ROOT)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(run, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure() -> dict[str, Any]:
    """Return the median of TIMES starts."""
    once()
    starts = [once() for _ in range(TIMES)]
    wall, busy = (statistics.median(start[name] for start in starts) for name in ("wall_ms", "busy_ms"))
    return {
        "times": TIMES,
        "wall_ms": round(wall, 1),
        "busy_ms": round(busy, 1),
        "others": starts[0]["others"],
        "target_ms": TARGET_MS,
        "met": wall <= TARGET_MS,
    }


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line."""
    head = ["starts", "median ms", "of the processor", "modules that are not ours"]
    return [
        head,
        [str(result["times"]), f"{result['wall_ms']:.0f}", f"{result['busy_ms']:.0f}", str(len(result["others"]))],
    ]
