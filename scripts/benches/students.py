"""How near students come to their teachers: three teachers, three seeds.

A student that has not been trained yet is trained first (some minutes each); python -m tiny_sd3.distill_student trains
a single one. Prompts are held out, teacher and students paint from the same noise, the judge is exact.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from runner.stop import say

from ._passes import Passes
from ._study import STEPS, Study, load

NUM_PROMPTS, PROMPTS_FOR_GUIDANCE = 256, 16
GUIDANCE = (1.0, 2.0, 3.0)
EFFECTIVE = (0.5, 1.0, 2.0, 3.0, 4.0)
SEEDS = (0, 1, 2)
TRAINED: dict[str, dict[str, tuple[int, ...]]] = {
    "CFG": {"lora": SEEDS},
    "Z-Sampling": {"lora": SEEDS},
    "W2SD": {"lora": SEEDS},
}
"""What is trained on which seeds, by teacher."""
LIMIT_RATIO, LIMIT_MINUTES = 0.95, 20.0
NEGATIVE_SHARE, NEGATIVE_W, NEGATIVE_PROMPTS = 0.3, 2.0, 64


def measure() -> dict[str, Any]:
    """Train what is missing; return teachers with students, effective guidance, negative prompts."""
    from tiny_sd3.distill_student import TEACHERS, Recipe

    study, rows = Students(NUM_PROMPTS, PROMPTS_FOR_GUIDANCE), []
    for name in TEACHERS:
        rows.append(_told(study.teacher_row(name)))
        recipes = [Recipe(name, trainable, seed=seed) for trainable, seeds in TRAINED[name].items() for seed in seeds]
        rows += [_told(study.student_row(recipe)) for recipe in recipes]
    settings = {"prompts": NUM_PROMPTS, "steps": STEPS, "guidance": GUIDANCE, "negative_w": NEGATIVE_W}
    negatives = study.negatives(Recipe("CFG", "lora", negatives=NEGATIVE_SHARE))
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
        from tiny_sd3.distill_student import distilled

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

    def negatives(self, recipe: Any) -> list[dict[str, Any]]:
        """How often a picture has the background that its negative prompt names, the prompt leaving it open."""
        from teefusion_core.comfy_host import STUDENT_KEY, apply_fusion
        from tiny_sd3.distill_student import distilled
        from tiny_sd3.measure import encode
        from tiny_sd3.scenes import BACKGROUNDS

        path = distilled(recipe)
        with torch.inference_mode():
            student, untrained = load(self.base, path), self.base.clone()
            untrained.set_attachments(STUDENT_KEY, student.get_attachment(STUDENT_KEY))
            grounds = {name: encode(self.clip, [f"on a {name} background"]) for name in BACKGROUNDS}
            fused = partial(apply_fusion, student, guidance=NEGATIVE_W)
            arms: dict[str, tuple[int, Callable]] = {  # passes, (prompt, negative) -> (model, prompt)
                "base": (1, lambda prompt, _: (self.base, prompt)),
                "base with the term, untrained": (1, partial(apply_fusion, untrained, guidance=NEGATIVE_W)),
                "CFG teacher": (2, lambda prompt, _: (self.base, prompt)),
                "student, empty prompt": (1, lambda prompt, _: fused(prompt, self.bench.null)),
                "student": (1, fused),
            }
            return [self._negative(name, passes, arm, grounds) for name, (passes, arm) in arms.items()]

    def _negative(self, name: str, passes: int, arm: Callable, grounds: dict[str, list]) -> dict[str, Any]:
        from teefusion_core.guidance import cfg_scale_of
        from tiny_sd3.measure import encode, pictures, sample
        from tiny_sd3.verifier import judge

        texts, claims = _open_prompts()
        positive, noise = encode(self.clip, texts), self.bench.noise_NCHW[: len(texts)]
        cfg = cfg_scale_of(NEGATIVE_W) if passes == 2 else 1.0
        unwanted, right = [], []
        for ground, null in grounds.items():
            model, prompt = arm(positive, null)
            shown = pictures(self.vae, sample(model, prompt, null, cfg, noise, 0))
            verdicts = [judge(image, claim) for image, claim in zip(shown, claims, strict=True)]
            unwanted += [verdict.background == ground for verdict in verdicts]
            right += [verdict.overall for verdict in verdicts]
        return {
            "method": name,
            "passes": passes,
            "unwanted": float(np.mean(unwanted)),
            "overall": float(np.mean(right)),
        }


def _open_prompts() -> tuple[list[str], list[Any]]:
    """Held-out prompts that say nothing of the background, with their claims."""
    from tiny_sd3.captions import caption
    from tiny_sd3.scenes import sample_picture

    rng = random.Random(7)
    scenes = (sample_picture(rng, held_out=True)[0] for _ in range(NEGATIVE_PROMPTS))
    claims = [replace(scene, background=None) for scene in scenes]
    return [caption(claim, rng) for claim in claims], claims


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


def negative_table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per way to sample."""
    lines = [["method", "passes/step", "unwanted background", "all right"]]
    for row in result["negatives"]:
        lines.append([row["method"], str(row["passes"]), f"{100 * row['unwanted']:.1f} %", f"{row['overall']:.3f}"])
    return lines
