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


def measure() -> dict[str, Any]:
    """Return the median of loading the pack TIMES times into a host that has loaded its own nodes.

    The source is compiled already, as after the first start. The time that the processor was busy is what counts: on a
    machine that does something else as well, the wall shows that too.
    """
    run = [sys.executable, str(SCRIPT), os.environ["COMFYUI_PATH"], str(ROOT), str(TIMES)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(run, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    wall, busy = (statistics.median(found[name]) for name in ("wall_ms", "busy_ms"))
    return {
        "times": TIMES,
        "wall_ms": round(wall, 1),
        "busy_ms": round(busy, 1),
        "ours": found["ours"],
        "others": found["others"],
        "target_ms": TARGET_MS,
        "met": busy <= TARGET_MS,
    }


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line."""
    head = ["times", "ms of the processor (median)", "on the wall", "modules", "of other libraries"]
    times = [f"{result[name]:.0f}" for name in ("busy_ms", "wall_ms")]
    return [head, [str(result["times"]), *times, str(result["ours"]), str(len(result["others"]))]]
