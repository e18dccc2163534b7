"""What limits learning: students that differ in one number of their training.

The error of their guidance is measured at states of the teacher, for prompts that training did not use, without
calibration.
"""

from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from runner.stop import say

from lab.demo_world.distill_student import Recipe, distilled, ten_minutes
from teefusion_core.guidance.methods import GUIDANCE_LORA

from ._report import measured_rows
from ._study import Study, load, uncalibrated

FEW, EVERY = 128, 4
"""Number of prompts whose guidance is measured, and at which of 20 steps."""
GUIDANCE = (0.5, 1.0, 2.0, 4.0)
TEACHER = "CFG"
TRIED: tuple[dict[str, Any], ...] = (
    {"steps": 1200, "batch_size": 16},
    {"steps": 600},
    {"steps": 300, "batch_size": 64},
    {"steps": 600, "rank": 16},
    {"steps": 1500},
    {"steps": 1500, "trajectories": 160},
)
"""How each training differs from that of ten minutes; the first four see as many examples."""
SHOWN, LEVELS_AT = {"steps": 1500, "trajectories": 80}, 2.0
"""Which of these students is shown at each noise level, and at which w."""


def measure() -> dict[str, Any]:
    """Train missing students; return a row for each."""
    study = Study(FEW, FEW, EVERY)
    recipes = [replace(ten_minutes(TEACHER, GUIDANCE_LORA), **tried) for tried in TRIED]
    levels = [round(float(sigma), 3) for sigma in study.sigmas[:-1:EVERY]]
    jobs = [(_named(recipe), partial(_measured, study, recipe)) for recipe in recipes]
    return measured_rows("learning", {"prompts for guidance": FEW, "levels": levels}, jobs)


def _named(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in ("steps", "batch_size", "trajectories", "rank")}


def _measured(study: Study, recipe: Recipe) -> dict[str, Any]:
    path = distilled(recipe)
    with torch.inference_mode():
        student = uncalibrated(load(study.base, path))
        row = {
            "errors": {str(w): study.guidance_errors(recipe.teacher, student, w) for w in GUIDANCE},
            "guidance": {str(w): study.effective(recipe.teacher, w, student) for w in GUIDANCE},
        }
    say(f"{recipe.name}: {row}")
    return row


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading, and a line per student."""
    head = ["steps", "examples per step", "trajectories", "rank"]
    lines = [[*head, *(f"error at w {w:g}" for w in GUIDANCE), f"CFG scale at w {GUIDANCE[-1]:g} (teacher 5)"]]
    for row in result["rows"]:
        size = [str(row[name]) for name in ("steps", "batch_size", "trajectories", "rank")]
        errors = [f"{fmean(row['errors'][str(w)]):.2f}" for w in GUIDANCE]
        lines.append([*size, *errors, f"{row['guidance'][str(GUIDANCE[-1])]:.2f}"])
    return lines


def level_table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading, and a line per noise level of one student."""
    errors = next(row for row in result["rows"] if SHOWN.items() <= row.items())["errors"][str(LEVELS_AT)]
    levels = result["settings"]["levels"]
    return [
        ["noise level", "error"],
        *([f"{level:g}", f"{error:.2f}"] for level, error in zip(levels, errors, strict=True)),
    ]
