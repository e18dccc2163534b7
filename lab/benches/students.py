"""How close students come to their teachers: three teachers and three seeds.

A student that has not been trained yet is trained first (some minutes each); python -m
lab.demo_world.distill_student trains a single one. The prompts are held out, teacher and students start from the
same noise, and the judge is exact.
"""

import json
import statistics
from functools import partial
from typing import Any

import torch
from runner.stop import say

from lab.demo_world.distill_student import TEACHERS, Recipe, distilled

from . import _negative_prompts
from ._cost import forward_passes
from ._study import STEPS, Study, load

NUM_PROMPTS, PROMPTS_FOR_GUIDANCE = 256, 16
GUIDANCE = (1.0, 2.0, 3.0)
EFFECTIVE = (0.5, 1.0, 2.0, 3.0, 4.0)
SEEDS = (0, 1, 2)
TRAINABLE = ("lora", "everything")


def measure() -> dict[str, Any]:
    """Train missing students; return teachers and students, effective guidance, and negative prompts."""
    study, rows = Study(NUM_PROMPTS, PROMPTS_FOR_GUIDANCE), []
    for name in TEACHERS:
        recipes = [Recipe(name, trainable, seed=seed) for trainable in TRAINABLE for seed in SEEDS]
        for row in (_teacher_row(study, name), *(_student_row(study, recipe) for recipe in recipes)):
            say(f"{row['teacher']} {row['trainable'] or 'teacher'} {row['seed']}: {row['overall']}, {row['effective']}")
            rows.append(row)
    settings = {"prompts": NUM_PROMPTS, "steps": STEPS, "guidance": GUIDANCE}
    return {"settings": settings, "rows": rows, "negatives": _negative_prompts.measure(study)}


@torch.inference_mode()
def _teacher_row(study: Study, name: str) -> dict[str, Any]:
    """Return the alignment of a teacher by w, and its passes per step."""
    teacher = study.teacher(name)
    with forward_passes(teacher.model) as counter:
        overall = {str(w): study.bench.judged(partial(study.images, teacher, w))["overall"] for w in GUIDANCE}
    effective = {str(w): study.effective(name, w) for w in EFFECTIVE}
    passes = study.passes_per_step(teacher.guider, counter.rows, len(GUIDANCE) * NUM_PROMPTS)
    return {"teacher": name, "trainable": None, "seed": None, "overall": overall, "effective": effective,
            "passes": passes}  # fmt: skip


def _student_row(study: Study, recipe: Recipe) -> dict[str, Any]:
    """Return the alignment of a student by w, and the duration of its training."""
    path = distilled(recipe)
    took = json.loads(path.with_suffix(".json").read_text())
    with torch.inference_mode():
        student = load(study.base, path)
        with forward_passes(student) as counter:
            overall = {str(w): study.bench.row("", student, 1.0, w)["overall"] for w in GUIDANCE}
        effective = {str(w): study.effective(recipe.teacher, w, student) for w in EFFECTIVE}
    loss = statistics.fmean(took.pop("losses")[-50:])
    passes = counter.rows / (len(GUIDANCE) * NUM_PROMPTS * STEPS)
    return {**took, "loss": loss, "overall": overall, "effective": effective, "passes": passes}


def _spread(values: list[float]) -> str:
    """Return the mean over seeds, with the smallest and the largest value."""
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _groups(result: dict[str, Any]) -> list[tuple[dict[str, Any], str, list[dict[str, Any]], bool]]:
    """Yield the teacher, what is trained, the students of all seeds, and whether the teacher is new."""
    rows, found = result["rows"], []
    for teacher in (row for row in rows if row["trainable"] is None):
        own = [row for row in rows if row["teacher"] == teacher["teacher"] and row["trainable"]]
        for index, trainable in enumerate(dict.fromkeys(row["trainable"] for row in own)):
            found.append((teacher, trainable, [row for row in own if row["trainable"] == trainable], index == 0))
    return found


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading, one line per teacher and two per kind of student: alignment and share of the teacher's."""
    strengths = [str(w) for w in result["settings"]["guidance"]]
    lines = [["teacher", "trained", "passes/step", *(f"w {float(w):g}" for w in strengths), "minutes"]]
    for teacher, trainable, students, first in _groups(result):
        if first:
            own = [f"{teacher['overall'][w]:.3f}" for w in strengths]
            lines.append([teacher["teacher"], "", f"{teacher['passes']:.3g}", *own, ""])
        scores = [_spread([row["overall"][w] for row in students]) for w in strengths]
        passes, minutes = (statistics.fmean(row[name] for row in students) for name in ("passes", "seconds"))
        lines.append(["", trainable, f"{passes:.3g}", *scores, f"{minutes / 60:.0f}"])
        shares = [_spread([row["overall"][w] / teacher["overall"][w] for row in students]) for w in strengths]
        lines.append(["", "share of the teacher's", "", *shares, ""])
    return lines


def guidance_table(result: dict[str, Any]) -> list[list[str]]:
    strengths = list(result["rows"][0]["effective"])
    lines = [["teacher", "trained", *(f"w {float(w):g}" for w in strengths)]]
    for teacher, trainable, students, first in _groups(result):
        if first:
            lines.append([teacher["teacher"], "", *(f"{teacher['effective'][w]:.2f}" for w in strengths)])
        means = [statistics.fmean(row["effective"][w] for row in students) for w in strengths]
        lines.append(["", trainable, *(f"{mean:.2f}" for mean in means)])
    return lines
