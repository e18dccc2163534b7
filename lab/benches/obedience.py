"""Whether students guide as they are told, after a short training.

A student that has not been trained yet is trained first. Guidance is measured at states of the teacher, for prompts
that training did not use, with the student's calibration and without it.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from runner.stop import say

from lab.demo_world.distill_student import Recipe, distilled, ten_minutes
from teefusion_core.errors import InvalidConfig
from teefusion_core.guidance.methods import GUIDANCE_LORA, TEEFUSION

from ._methods import training_record
from ._report import measured_rows
from ._scores import by_kind
from ._study import Study, load, uncalibrated

NUM_PROMPTS, FEW, EVERY = 256, 128, 4
"""Number of prompts that are scored, number of those whose guidance is measured, and at which of 20 steps."""
GUIDANCE = (1.0, 2.0, 3.0)
EFFECTIVE = (0.5, 1.0, 2.0, 3.0, 4.0)
ERROR_AT = 2.0
TEACHERS, METHODS, SEEDS = ("CFG", "W2SD"), (GUIDANCE_LORA, TEEFUSION), (0, 1, 2)


def measure() -> dict[str, Any]:
    """Train missing students; return a row per teacher and per student."""
    study, jobs = Study(NUM_PROMPTS, FEW, EVERY), []
    for name in TEACHERS:
        jobs.append(({"teacher": name, "method": ""}, partial(_teacher, study, name)))
        recipes = [ten_minutes(name, method, seed) for method in METHODS for seed in SEEDS]
        jobs += [(_named(recipe), partial(_student, study, recipe)) for recipe in recipes]
    settings = {"prompts": NUM_PROMPTS, "prompts for guidance": FEW, "every": EVERY}
    return measured_rows("obedience", settings, jobs)


def _named(recipe: Recipe) -> dict[str, Any]:
    names = ("teacher", "method", "seed", "steps", "trajectories", "guidance_margin", "learning_rate")
    return {name: getattr(recipe, name) for name in names}


@torch.inference_mode()
def _teacher(study: Study, name: str) -> dict[str, Any]:
    teacher = study.teacher(name)
    right = {str(w): study.bench.judged(partial(study.images, teacher, w))["overall"] for w in GUIDANCE}
    return {"right": right, "after": {str(w): study.effective(name, w) for w in EFFECTIVE}}


def _student(study: Study, recipe: Recipe) -> dict[str, Any]:
    return _measured(study, recipe, distilled(recipe))


@torch.inference_mode()
def _measured(study: Study, recipe: Recipe, path: Path) -> dict[str, Any]:
    took = training_record(path)
    student = load(study.base, path)
    plain = uncalibrated(student)
    row = {name: took[name] for name in ("seconds", "threads")}
    for when, model in (("before", plain), ("after", student)):
        row[when] = {str(w): _unless_refused(partial(study.effective, recipe.teacher, w, model)) for w in EFFECTIVE}
    row["error"] = statistics.fmean(study.guidance_errors(recipe.teacher, plain, ERROR_AT))
    row["right"] = {
        str(w): _unless_refused(lambda w=w: study.bench.row("", student, 1.0, w)["overall"]) for w in GUIDANCE
    }
    say(f"{recipe.name}: {row}")
    return row


def _unless_refused(measured: Callable[[], float]) -> float | None:
    """Return a figure, or None where the student refuses w."""
    try:
        return measured()
    except InvalidConfig:
        return None


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading, and a line per teacher, method and w, with the students of all seeds in a cell."""
    head = ["teacher", "method", "w", "teacher's CFG scale", "students, uncalibrated", "calibrated"]
    lines = [[*head, "teacher all right", "students all right"]]
    for teacher in (row for row in result["rows"] if not row["method"]):
        for method in METHODS:
            kind = {"teacher": teacher["teacher"], "method": method}
            students = [row for row in result["rows"] if kind.items() <= row.items()]
            for w in map(str, EFFECTIVE):
                wanted = teacher["after"][w]
                cells = [_cell([row[when][w] for row in students], wanted) for when in ("before", "after")]
                right = ["", ""]
                if w in teacher["right"]:
                    right = [f"{teacher['right'][w]:.3f}", _cell([row["right"][w] for row in students], None)]
                lines.append([*kind.values(), w, f"{wanted:.2f}", *cells, *right])
    return lines


def cost_table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading, and a line per teacher and method with minutes and held-out error of each seed."""
    lines = [["teacher", "method", "seeds", "minutes", f"error of the guidance at w {ERROR_AT:g}"]]
    for rows in by_kind([row for row in result["rows"] if row["method"]], "teacher", "method"):
        minutes, errors = ([row["seconds"] / 60 for row in rows], [row["error"] for row in rows])
        cells = [" / ".join(f"{x:.0f}" for x in minutes), " / ".join(f"{x:.2f}" for x in errors)]
        lines.append([rows[0]["teacher"], rows[0]["method"], str(len(rows)), *cells])
    return lines


def _cell(values: list[float | None], wanted: float | None) -> str:
    """Return the values of the seeds, and how far their mean is from the wanted one in percent."""
    known = [value for value in values if value is not None]
    text = " / ".join("refused" if value is None else f"{value:.2f}" if wanted else f"{value:.3f}" for value in values)
    return f"{text} ({100 * (statistics.fmean(known) / wanted - 1):+.0f} %)" if wanted and known else text
