"""How near students come to their teachers: three teachers, three seeds.

A student that has not been trained yet is trained first (some minutes each); python -m
lab.demo_world.distill_student trains a single one. Prompts are held out, teacher and students paint from the same
noise, the judge is exact.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from typing import Any

import torch
from runner.stop import say

from . import _negatives
from ._passes import Passes
from ._study import STEPS, Study, load

NUM_PROMPTS, PROMPTS_FOR_GUIDANCE = 256, 16
GUIDANCE = (1.0, 2.0, 3.0)
EFFECTIVE = (0.5, 1.0, 2.0, 3.0, 4.0)
SEEDS = (0, 1, 2)
TRAINABLE = ("lora", "everything")
"""What of a student is trained, for each teacher, on each seed."""


def measure() -> dict[str, Any]:
    """Train what is missing; return teachers with students, effective guidance, negative prompts."""
    from lab.demo_world.distill_student import TEACHERS, Recipe

    study, rows = Students(NUM_PROMPTS, PROMPTS_FOR_GUIDANCE), []
    for name in TEACHERS:
        rows.append(_told(study.teacher_row(name)))
        recipes = [Recipe(name, trainable, seed=seed) for trainable in TRAINABLE for seed in SEEDS]
        rows += [_told(study.student_row(recipe)) for recipe in recipes]
    settings = {"prompts": NUM_PROMPTS, "steps": STEPS, "guidance": GUIDANCE}
    negatives = _negatives.measure(study)
    return {"settings": settings, "rows": rows, "negatives": negatives}


def _told(row: dict[str, Any]) -> dict[str, Any]:
    say(f"{row['teacher']} {row['trainable'] or 'teacher'} {row['seed']}: {row['overall']}, {row['effective']}")
    return row


class Students(Study):
    """Teachers with what they have taught."""

    @torch.inference_mode()
    def teacher_row(self, name: str) -> dict[str, Any]:
        """Alignment of a teacher by w, with the passes of a step."""
        teacher = self.teacher(name)
        with Passes(teacher.model) as passes:
            overall = {str(w): self.bench.judged(partial(self.images, teacher, w))["overall"] for w in GUIDANCE}
        effective = {str(w): self.effective(name, w, None) for w in EFFECTIVE}
        # a reflection runs a second network, so it counts for itself
        count = getattr(teacher.guider, "passes", passes.rows / (len(GUIDANCE) * NUM_PROMPTS)) / STEPS
        return {"teacher": name, "trainable": None, "seed": None, "overall": overall, "effective": effective,
                "passes": count}  # fmt: skip

    def student_row(self, recipe: Any) -> dict[str, Any]:
        """Alignment of a student by w, beside what its training took."""
        from lab.demo_world.distill_student import distilled

        path = distilled(recipe)
        took = json.loads(path.with_suffix(".json").read_text())
        with torch.inference_mode():
            student = load(self.base, path)
            with Passes(student) as passes:
                overall = {str(w): self.bench.row("", student, 1.0, w)["overall"] for w in GUIDANCE}
            effective = {str(w): self.effective(recipe.teacher, w, student) for w in EFFECTIVE}
        loss = statistics.fmean(took.pop("losses")[-50:])
        count = passes.rows / (len(GUIDANCE) * NUM_PROMPTS * STEPS)
        return {**took, "loss": loss, "overall": overall, "effective": effective, "passes": count}


def _spread(values: list[float]) -> str:
    """Mean with the least and the largest over seeds."""
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _groups(result: dict[str, Any]) -> list[tuple[dict[str, Any], str, list[dict[str, Any]]]]:
    """Teacher, what is trained, the students of all seeds."""
    rows = result["rows"]
    found = []
    for teacher in (row for row in rows if row["trainable"] is None):
        own = [row for row in rows if row["teacher"] == teacher["teacher"] and row["trainable"]]
        for trainable in dict.fromkeys(row["trainable"] for row in own):
            found.append((teacher, trainable, [row for row in own if row["trainable"] == trainable]))
    return found


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per teacher, two per kind of student: alignment, then its share of the teacher's."""
    strengths = [str(w) for w in result["settings"]["guidance"]]
    lines = [["teacher", "trained", "passes/step", *(f"w {float(w):g}" for w in strengths), "minutes"]]
    named = None
    for teacher, trainable, students in _groups(result):
        if teacher["teacher"] != named:
            named = teacher["teacher"]
            own = [f"{teacher['overall'][w]:.3f}" for w in strengths]
            lines.append([named, "", f"{teacher['passes']:.3g}", *own, ""])
        scores = [_spread([row["overall"][w] for row in students]) for w in strengths]
        minutes = [row["seconds"] / 60 for row in students]
        passes = statistics.fmean(row["passes"] for row in students)
        lines.append(["", trainable, f"{passes:.3g}", *scores, f"{statistics.fmean(minutes):.0f}"])
        shares = [_spread([row["overall"][w] / teacher["overall"][w] for row in students]) for w in strengths]
        lines.append(["", "share of the teacher's", "", *shares, ""])
    return lines


def guidance_table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with the effective guidance of each teacher, of its students."""
    strengths = list(result["rows"][0]["effective"])
    lines = [["teacher", "trained", *(f"w {float(w):g}" for w in strengths)]]
    named = None
    for teacher, trainable, students in _groups(result):
        if teacher["teacher"] != named:
            named = teacher["teacher"]
            lines.append([named, "", *(f"{teacher['effective'][w]:.2f}" for w in strengths)])
        means = [statistics.fmean(row["effective"][w] for row in students) for w in strengths]
        lines.append(["", trainable, *(f"{mean:.2f}" for mean in means)])
    return lines
