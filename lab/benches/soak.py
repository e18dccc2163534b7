"""Memory, speed and images of one server over many runs."""

import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from runner.client import pictures, run_prompt
from runner.places import PACK, ROOT
from runner.server import Server, make_base, running
from runner.stop import say

from ._cost import resident_bytes
from ._soak_graphs import PICTURE, furnish, graphs, stock

RUNS, WARM, WINDOW = 300, 80, 40
"""Number of runs, of runs before the first comparison, and of runs in the window of a median."""
TARGET = 0.01
SLOW, SLOW_EVERY = "Distill Trainer", 15
NOBODY = "no_pack_of_this_name"


class _Series:
    def __init__(self, server: Server):
        self.server, self.draw, self.last = server, random.Random(0), ""
        self.rss: list[float] = []
        self.seconds: dict[str, list[float]] = {}
        self.pictures: dict[str, list[np.ndarray]] = {}

    def run(self, number: int) -> None:
        """Queue any graph but the last one, which the server has cached; over time each follows every other."""
        ways = graphs(number)
        quick = [name for name in ways if name not in (SLOW, self.last)]
        name = self.last = SLOW if number % SLOW_EVERY == 0 else self.draw.choice(quick)
        start = time.monotonic()
        done = run_prompt(self.server, ways[name])
        self.seconds.setdefault(name, []).append(time.monotonic() - start)
        self.pictures.setdefault(name, []).append(pictures(self.server, done, PICTURE))
        self.rss.append(resident_bytes(pid=self.server.process.pid) / 2**20)

    def row(self, name: str) -> dict[str, Any]:
        """Return the first and the last seconds of one graph, and whether all its images are equal."""
        seconds, shown = self.seconds[name], self.pictures[name]
        warm = seconds[len(seconds) * WARM // RUNS :]
        third = max(len(warm) // 3, 1)
        return {
            "runs": len(seconds),
            "seconds": [round(statistics.median(part), 3) for part in (warm[:third], warm[-third:])],
            "identical": all(np.array_equal(picture, shown[0]) for picture in shown),
        }


def _stock_picture(server: Server) -> np.ndarray:
    return pictures(server, run_prompt(server, stock()), PICTURE)


def measure() -> dict[str, Any]:
    """Return the state after RUNS runs, and that of a server without the pack."""
    comfyui = Path(os.environ["COMFYUI_PATH"])
    with tempfile.TemporaryDirectory() as folder:
        bases = [make_base(Path(folder) / name, probe=False) for name in ("with", "without")]
        for base in bases:
            furnish(base, ROOT / "models")
        with running(comfyui, bases[0], Path(folder) / "with.log", packs=(PACK,)) as server:
            series = _Series(server)
            for number in range(RUNS):
                series.run(number)
                if number % 20 == 19:
                    say(f"{number + 1} runs, {series.rss[-1]:.0f} MB")
            after = _stock_picture(server)
        with running(comfyui, bases[1], Path(folder) / "without.log", packs=(NOBODY,)) as server:
            never = _stock_picture(server)
    first, last = (statistics.median(part) for part in (series.rss[WARM : WARM + WINDOW], series.rss[-WINDOW:]))
    return {
        "settings": {"runs": RUNS, "warm_up": WARM, "window": WINDOW},
        "megabytes": [round(size, 1) for size in (first, last)],
        "every_20th": [round(size, 1) for size in series.rss[19::20]], "growth": round(last / first - 1, 4),
        "target": TARGET, "ways": {name: series.row(name) for name in series.seconds},
        "stock_identical": bool(np.array_equal(after, never)), "stock_spread": round(float(after.std()), 2),
    }  # fmt: skip


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["way", "runs", "s at first", "s at last", "images"]]
    for name, row in result["ways"].items():
        seconds = [f"{value:.2f}" for value in row["seconds"]]
        lines.append([name, str(row["runs"]), *seconds, "identical" if row["identical"] else "differ"])
    same = "identical to a server without the pack" if result["stock_identical"] else "differ"
    sizes = [f"{size:.0f} MB" for size in result["megabytes"]]
    lines.append(["memory of the server", str(result["settings"]["runs"]), *sizes, f"growth {result['growth']:+.1%}"])
    lines.append(["a stock workflow after them", "1", "", "", same])
    return lines
