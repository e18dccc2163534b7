"""How well pictures show their prompts, teacher beside shipped student, with what guidance each really has.

512 prompts that training never saw, the same noise for every row; the judge is exact.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from runner.stop import say

from ._passes import Passes
from ._study import Study

NUM_PROMPTS = 512
TEACHER = "W2SD"
"""Of the shipped student."""
CFG_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
GUIDANCE = (1.0, 2.0, 4.0)
EARLIER = 3.0
"""CFG scale at which the earlier checkpoint is shown."""


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return one row per setting, effective guidance per w, forward passes per step counted by a hook."""
    from lab.demo_world.measure import BATCH, SAMPLER, SCHEDULER, STEPS, print_row
    from teefusion_core.comfy_host.demo_model import load_demo

    study, student, weak = Study(NUM_PROMPTS, BATCH), load_demo("student")[0], load_demo("weak")[0]
    settings = [("CFG", study.base, cfg, None) for cfg in CFG_SCALES]
    settings += [("TeEFusion student", student, 1.0, w) for w in GUIDANCE]
    settings += [("CFG, weak base", weak, EARLIER, None)]
    rows = []
    for name, model, cfg, w in settings:
        with Passes(model) as counter:
            row = study.bench.row(name, model, cfg, w)
        row["passes_per_step"] = counter.rows / (NUM_PROMPTS * STEPS)
        rows.append(row)
        print_row(row)
    for w in GUIDANCE:
        rows.insert(-1 - len(GUIDANCE), row := _teacher_row(study, w))
        print_row(row)
    say("effective guidance")
    effective = [_effective_row(study, student, w) for w in GUIDANCE]
    sampling = {"prompts": NUM_PROMPTS, "steps": STEPS, "sampler": SAMPLER, "scheduler": SCHEDULER}
    return {"settings": sampling, "rows": rows, "effective_guidance": effective}


def _teacher_row(study: Study, w: float) -> dict[str, Any]:
    from lab.demo_world.measure import STEPS

    teacher = study.teacher(TEACHER)
    row = study.bench.judged(partial(study.images, teacher, w))
    named = {"method": f"{TEACHER} teacher", "cfg": 1.0, "w": w}
    return {**named, **row, "passes_per_step": teacher.guider.passes / STEPS}


def _effective_row(study: Study, student: Any, w: float) -> dict[str, Any]:
    """Effective guidance of the teacher's steps, of the student at the same states."""
    from teefusion_core.guidance.cfg import cfg_scale_of

    teacher, own = study.effective(TEACHER, w), study.effective(TEACHER, w, student)
    return {"w": w, "cfg": cfg_scale_of(w), "teacher": teacher, "student": own}


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per setting."""
    head = ["method", "guidance", "passes/step", "entity", "attribute", "relation", "count", "all right"]
    lines = [head]
    for row in result["rows"]:
        guidance = f"cfg {row['cfg']:g}" if row["w"] is None else f"w {row['w']:g} (as cfg {1 + row['w']:g})"
        shares = [f"{row[name]:.3f}" for name in ("entity", "attribute", "relation", "other", "overall")]
        lines.append([row["method"], guidance, f"{row['passes_per_step']:g}", *shares])
    return lines


def effective_table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per w."""
    lines = [["w", "CFG", f"{TEACHER} teacher", "student", "difference"]]
    for row in result["effective_guidance"]:
        gap = 100 * (row["student"] / row["teacher"] - 1)
        lines.append(
            [f"{row['w']:g}", f"{row['cfg']:.2f}", f"{row['teacher']:.2f}", f"{row['student']:.2f}", f"{gap:+.0f} %"]
        )
    return lines
