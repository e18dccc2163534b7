"""Students of few steps, beside their teacher and beside plain samplers at as many steps.

A student that has not been trained yet is trained first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from runner.stop import say

from lab.demo_world.distill_student import FEW_STEPS, distilled, few_steps

from . import _methods
from ._methods import TEACHER, Arm, Wanted, student_arm
from ._report import Job, Row, measured_rows
from ._sampling import sampled
from ._scores import mean_text, values
from ._study import STEPS, Study

NUM_PROMPTS, SEEDS = 256, (0,)
GUIDANCE = (1.0, 2.0, 3.0)
SCHEDULER = "sgm_uniform"


def measure() -> dict[str, Any]:
    """Train missing students; return scores and costs of the teacher, of plain samplers and of the students."""
    study = Study(NUM_PROMPTS, few=1)
    teachers = {arm.teacher: arm for arm in _methods.teachers() if arm.method == TEACHER}
    unguided = next(arm for arm in _methods.teachers() if arm.method == _methods.BASE)
    jobs = _jobs(study, STEPS, "normal", teachers["W2SD"])
    for steps in FEW_STEPS:
        jobs += _jobs(study, steps, SCHEDULER, teachers["CFG"]) + _jobs(study, steps, SCHEDULER, unguided)
        for seed in SEEDS:
            recipe = few_steps(steps, seed)
            kind = Wanted(recipe.method, recipe.teacher, recipe.trainable)
            arm = student_arm(kind, seed, recipe.student, recipe.steps)
            jobs += _jobs(study, steps, SCHEDULER, arm, partial(distilled, recipe))
    settings = {"prompts": NUM_PROMPTS, "guidance": list(GUIDANCE), "scheduler": SCHEDULER}
    return measured_rows("few_steps", settings, jobs)


def _jobs(study: Study, steps: int, scheduler: str, arm: Arm, make: Callable[[], Any] | None = None) -> list[Job]:
    """Return a job per w; `make` trains the student of the arm, unless that has been done."""
    grid = GUIDANCE if len(arm.grid) > 1 else arm.grid
    return [
        ({"steps": steps, **arm.named, "strength": w}, partial(_row, study, steps, scheduler, arm, w, make))
        for w in grid
    ]


def _row(study: Study, steps: int, scheduler: str, arm: Arm, w: float, make: Callable[[], Any] | None) -> Row:
    if make is not None:
        make()
    study.sigmas = study.schedule(steps, scheduler)
    with torch.inference_mode():
        row = sampled(study, arm, w).row
    row["passes"] = round(row["passes"] * STEPS)  # of the whole image
    say(f"{row['method']} {steps} steps w {w:g}: {row['right']['overall'].count('1') / NUM_PROMPTS:.3f}")
    return row


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading, and a line per method and number of steps."""
    wanted = result["settings"]["guidance"]
    lines = [["method", "steps", "passes per image", "ms per image", *(f"w {w:g}" for w in wanted)]]
    kinds = dict.fromkeys((row["steps"], row["method"], row["teacher"]) for row in result["rows"])
    for steps, method, teacher in kinds:
        kind = {"steps": steps, "method": method, "teacher": teacher}
        rows = [row for row in result["rows"] if row | kind == row]
        name = method if method == _methods.BASE else teacher if method == TEACHER else f"student of {teacher}"
        milliseconds = sum(row["milliseconds"] for row in rows) / len(rows)
        scores = [mean_text(values([row for row in rows if row["strength"] == w] or rows)) for w in wanted]
        lines.append([name, str(steps), str(rows[0]["passes"]), f"{milliseconds:.1f}", *scores])
    return lines
