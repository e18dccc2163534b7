"""What the demo says of each method: passes, time beside the student, and its score on many prompts."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol

from .places import ROOT

SIZES = ROOT / "lab" / "results" / "real_size.json"
STUDENT = "Student"
HEAD = ("method", "guidance", "passes per image", "time", "right")


class Measured(Protocol):
    """A method, with what was measured of it for each prompt: seconds, and passes per step."""

    name: str
    guidance: str
    scale: float
    """Its CFG scale, or 1 + w."""
    steps: int
    seconds: list[float]
    passes: list[float]


def table(methods: Sequence[Measured]) -> str:
    """Return a line per method, and what the columns mean."""
    (student,) = (method for method in methods if method.name == STUDENT)
    from lab.demo_world.scored import scored

    prompts, shares = scored()
    lines = [HEAD]
    for method in methods:
        passes, times = f"{method.steps * statistics.mean(method.passes):.0f}", f"{_times(method, student):.1f} x"
        lines.append((method.name, method.guidance, passes, times, _score(method, prompts, shares)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, "", *_meaning(prompts)])


def _times(method: Measured, other: Measured) -> float:
    """Return how many times as long as another method it took for a prompt; the median ignores busy moments."""
    return statistics.median(own / others for own, others in zip(method.seconds, other.seconds, strict=True))


def _score(method: Measured, prompts: int, shares: Mapping[tuple[str, float], float]) -> str:
    """Return the share of right images with its 95 % interval, if the method was scored at this guidance."""
    share = shares.get((method.name, method.scale))
    if share is None:
        return "not scored"
    half = 1.96 * math.sqrt(share * (1 - share) / prompts)
    return f"{share:.2f} ({share - half:.2f} to {share + half:.2f})"


def _meaning(prompts: int) -> list[str]:
    rows = json.loads(SIZES.read_text(encoding="utf-8"))["parts"]["steps and gap"]["steps"]
    (large,) = (row["over_stock"]["median"] for row in rows if row["method"] == "CFG")
    return [
        f"time: beside the student's, on this small model. With SD3-medium CFG takes {large:.2f} times as long.",
        f"right: share of images that show all of their prompt ({prompts} prompts, 95 % interval).",
    ]
