"""The cost of a step of the student, relative to a stock step of its base.

The stock sampler runs base and student in one process, in rounds of changing order, so that other work on the machine
slows both alike; each round gives one ratio.
"""

import random
import statistics
from itertools import pairwise
from typing import Any

import torch
from runner.stop import say

from ._cost import now, quartiles, ratio_text

STEPS = 20
PAIRS = 40
W = 3.0
LOW = 1.0
SIZES = ((64, 1), (64, 8), (256, 1))
"""(width and height in pixels, images in the batch); 256 is as far as the demo model's positions reach."""
TARGET = 1.02
METHODS = ("stock", "student", "teacher")
"""Methods whose time is listed."""
PAIRED = (("student", "stock"), ("scheduled", "student"), ("sweep", "student"), ("teacher", "student"))
"""Methods whose steps are compared, the first divided by the second."""
PROMPT = "a red circle left of a small blue square on a white background"


class Case:
    """The runs that are compared.

    stock: base at cfg 1. student: at cfg 1. scheduled: student whose guidance changes in every step. sweep: student
    with another guidance in each row. teacher: base at the student's CFG scale.
    """

    def __init__(self, base: Any, student: Any, clip: Any, *, size: int, batch: int):
        from teefusion_core.comfy_host.guidance.patch import apply_fusion
        from teefusion_core.guidance.schedule import GuidanceSchedule

        positive, null = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
        curve, rows = GuidanceSchedule("cosine down", low=LOW), torch.linspace(LOW, W, batch).tolist()
        self.null = null
        self.noise_BCHW = torch.randn(batch, 16, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
        self.methods = {"stock": (base, positive, 1.0)}
        self.methods["student"] = (*apply_fusion(student, positive, null, W), 1.0)
        self.methods["scheduled"] = (*apply_fusion(student, positive, null, W, schedule=curve), 1.0)
        self.methods["sweep"] = (*apply_fusion(student, positive, null, rows), 1.0)
        self.methods["teacher"] = (base, positive, 1.0 + W)

    def step_seconds(self, method: str) -> float:
        """Sample once with the stock sampler; return the shortest time from one step to the next.

        Every step does the same work, so a longer one was delayed by other work on the machine. The work once per run
        (merging the update, computing the term) is done before the first step ends.
        """
        import comfy.sample

        model, positive, cfg = self.methods[method]
        ends: list[float] = []
        run = (model, self.noise_BCHW, STEPS, cfg, "euler", "normal", positive, self.null)
        empty = torch.zeros_like(self.noise_BCHW)
        comfy.sample.sample(*run, empty, callback=lambda *_: ends.append(now()), seed=0, disable_pbar=True)
        return min(b - a for a, b in pairwise(ends))


def _row(case: Case, size: int, batch: int) -> dict[str, Any]:
    for method in case.methods:
        case.step_seconds(method)  # warm up
    seconds: dict[str, list[float]] = {method: [] for method in case.methods}
    rng = random.Random(0)
    for _ in range(PAIRS):
        for method in rng.sample(list(seconds), len(seconds)):
            seconds[method].append(case.step_seconds(method))
    step_ms = {method: round(1000 * statistics.median(times), 3) for method, times in seconds.items()}
    ratios = {f"{a}_over_{b}": quartiles([x / y for x, y in zip(seconds[a], seconds[b], strict=True)])
              for a, b in PAIRED}  # fmt: skip
    return {"size": size, "batch": batch, "step_ms": step_ms, **ratios}


@torch.inference_mode()
def measure() -> dict[str, Any]:
    from teefusion_core.comfy_host.demo_model import load_demo

    base, clip, _ = load_demo("base")
    student = load_demo("student")[0]
    rows = []
    for size, batch in SIZES:
        say(f"{PAIRS} rounds at {size}x{size}, batch {batch}")
        rows.append(_row(Case(base, student, clip, size=size, batch=batch), size, batch))
    worst = max(row["student_over_stock"]["median"] for row in rows)
    settings = {"pairs": PAIRS, "steps_per_run": STEPS, "w": W, "sampler": "euler", "scheduler": "normal"}
    return {"settings": settings, "rows": rows, "target": TARGET, "worst": worst, "met": worst <= TARGET}


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["image", "batch", *(f"{name} ms" for name in METHODS), *(" / ".join(pair) for pair in PAIRED)]]
    for row in result["rows"]:
        cells = [f"{row['size']}x{row['size']}", str(row["batch"])]
        cells += [f"{row['step_ms'][method]:.2f}" for method in METHODS]
        lines.append(cells + [ratio_text(row[f"{a}_over_{b}"]) for a, b in PAIRED])
    return lines
