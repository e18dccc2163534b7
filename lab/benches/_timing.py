"""When it is, what many ratios come to."""

from __future__ import annotations

import statistics
import time


def now() -> float:
    """Seconds of a clock, what was asked of a GPU being done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def quartiles(ratios: list[float]) -> dict[str, float]:
    """Return the median between its quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"q1": round(low, 4), "median": round(middle, 4), "q3": round(high, 4)}
