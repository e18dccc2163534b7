"""Whether students guide as they are told, after a short training.

A student that has not been trained yet is trained first. Guidance is measured at states of the teacher, for prompts
that training did not use, with the student's calibration and without it.
"""

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from runner.stop import say

from lab.demo_world.distill_student import Recipe, distilled, ten_minutes
from teefusion_core.comfy_host.guidance.attachments import STUDENT_KEY
from teefusion_core.comfy_host.guidance.patch import apply_fusion
from teefusion_core.errors import InvalidConfig
from teefusion_core.guidance.methods import GUIDANCE_LORA, TEEFUSION

from ._report import RESULTS, write
from ._study import Study, load

NUM_PROMPTS, FEW, EVERY = 256, 128, 4
"""Number of prompts that are scored, number of those whose guidance is measured, and at which of 20 steps."""
GUIDANCE = (1.0, 2.0, 3.0)
EFFECTIVE = (0.5, 1.0, 2.0, 3.0, 4.0)
ERROR_AT = 2.0
TEACHERS, METHODS, SEEDS = ("CFG", "W2SD"), (GUIDANCE_LORA, TEEFUSION), (0, 1, 2)


def measure() -> dict[str, Any]:
    """Train missing students; return a row per teacher and per student.

    Each row is written when it is measured: the next call measures only rows that are missing, or of another recipe.
    """
    settings = {"prompts": NUM_PROMPTS, "prompts for guidance": FEW, "every": EVERY}
    before = RESULTS / "obedience.json"
    known = json.loads(before.read_text()) if before.is_file() else {}
    rows = known["rows"] if known.get("settings") == settings else []
    study, jobs = Study(NUM_PROMPTS, FEW, EVERY), []
    for name in TEACHERS:
        jobs.append(({"teacher": name, "method": ""}, partial(_teacher, study, name)))
        recipes = [ten_minutes(name, method, seed) for method in METHODS for seed in SEEDS]
        jobs += [(_named(recipe), partial(_student, study, recipe)) for recipe in recipes]
    done: list[dict[str, Any]] = []
    for named, made in jobs:
        done.append(next((row for row in rows if named.items() <= row.items()), None) or named | made())
        write("obedience", {"rows": done + [row for row in rows if row not in done], "settings": settings})
    return {"rows": done, "settings": settings}


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
    took = json.loads(path.with_suffix(".json").read_text())
    student = load(study.base, path)
    plain = student.clone()
    plain.set_attachments(STUDENT_KEY, {**student.get_attachment(STUDENT_KEY), "calibration": ""})
    row = {name: took[name] for name in ("seconds", "threads")}
    for when, model in (("before", plain), ("after", student)):
        row[when] = {str(w): _unless_refused(partial(study.effective, recipe.teacher, w, model)) for w in EFFECTIVE}
    row["error"] = _error(study, recipe.teacher, plain, ERROR_AT)
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


def _error(study: Study, name: str, student: Any, w: float) -> float:
    """Return the squared error relative to the guidance of the teacher, as a mean over noise levels."""
    where, moves, cond, _ = study.trajectory(name, w)
    velocities = study.velocities(*apply_fusion(student, study.first, study.bench.null, w), where)
    seen = zip(velocities, moves, cond, strict=True)
    return statistics.fmean(float((v - move).square().sum() / (move - own).square().sum()) for v, move, own in seen)


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading and a line per teacher and student."""
    head = ["teacher", "student", "seed", "minutes", "error at w 2"]
    head += [f"w {w:g}, uncalibrated" for w in EFFECTIVE] + [f"w {w:g}" for w in EFFECTIVE]
    lines = [head + [f"right at w {w:g}" for w in GUIDANCE]]
    teacher: dict[str, Any] = {}
    for row in result["rows"]:
        teacher = teacher if row["method"] else row
        start = [row["teacher"], row["method"], str(row.get("seed", ""))]
        start += [f"{row['seconds'] / 60:.1f}", f"{row['error']:.3f}"] if row["method"] else ["", ""]
        guided = [_cell(row.get(when, {}), teacher["after"], w) for when in ("before", "after") for w in EFFECTIVE]
        lines.append(start + guided + [_cell(row["right"], teacher["right"], w) for w in GUIDANCE])
    return lines


def _cell(values: dict[str, float | None], teachers: dict[str, float], w: float) -> str:
    """Return a value with its difference from the teacher's in percent."""
    if str(w) not in values:
        return ""
    value, wanted = values[str(w)], teachers[str(w)]
    if value is None:
        return "refused"
    return f"{value:.3f}" if value == wanted else f"{value:.3f} ({100 * (value / wanted - 1):+.1f} %)"
