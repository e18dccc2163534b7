"""How well images match their prompts: CFG, the teacher and the shipped student, with their effective guidance.

All rows use 512 prompts that were not used in training, and the same noise. The judge is exact.
"""

from functools import partial
from typing import Any

import torch
from runner.stop import say

from lab.demo_world.measure import BATCH, SAMPLER, SCHEDULER, STEPS, print_row
from teefusion_core.guidance.cfg import cfg_scale_of

from ._cost import forward_passes
from ._study import Study

NUM_PROMPTS = 512
TEACHER = "W2SD"
"""The teacher of the shipped student."""
CFG_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
GUIDANCE = (1.0, 2.0, 3.0)
WEAK_CFG = 3.0
"""CFG scale at which the weak base is shown."""


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return one row per setting, the effective guidance per w, and the forward passes per step, counted by a hook."""
    from teefusion_core.comfy_host.demo_model import load_demo

    study, student, weak = Study(NUM_PROMPTS, BATCH), load_demo("student")[0], load_demo("weak")[0]
    settings = [("CFG", study.base, cfg, None) for cfg in CFG_SCALES]
    settings += [("TeEFusion student", student, 1.0, w) for w in GUIDANCE]
    settings += [("CFG, weak base", weak, WEAK_CFG, None)]
    rows = []
    for name, model, cfg, w in settings:
        with forward_passes(model) as counter:
            row = study.bench.row(name, model, cfg, w)
        row["passes_per_step"] = counter.rows / (NUM_PROMPTS * STEPS)
        rows.append(row)
        print_row(row)
    for w in GUIDANCE:
        teacher = study.teacher(TEACHER)
        row = {"method": f"{TEACHER} teacher", "cfg": 1.0, "w": w}
        row |= study.bench.judged(partial(study.images, teacher, w))
        rows.insert(-1 - len(GUIDANCE), {**row, "passes_per_step": teacher.guider.passes / STEPS})
        print_row(row)
    say("effective guidance")
    effective = []
    for w in GUIDANCE:
        own = {"teacher": study.effective(TEACHER, w), "student": study.effective(TEACHER, w, student)}
        effective.append({"w": w, "cfg": cfg_scale_of(w), **own})
    sampling = {"prompts": NUM_PROMPTS, "steps": STEPS, "sampler": SAMPLER, "scheduler": SCHEDULER}
    return {"settings": sampling, "rows": rows, "effective_guidance": effective}


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["method", "guidance", "passes/step", "entity", "attribute", "relation", "count", "all right"]]
    for row in result["rows"]:
        guidance = f"cfg {row['cfg']:g}" if row["w"] is None else f"w {row['w']:g} (as cfg {1 + row['w']:g})"
        shares = [f"{row[name]:.3f}" for name in ("entity", "attribute", "relation", "other", "overall")]
        lines.append([row["method"], guidance, f"{row['passes_per_step']:g}", *shares])
    return lines


def effective_table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["w", "CFG", f"{TEACHER} teacher", "student", "difference"]]
    for row in result["effective_guidance"]:
        gap = 100 * (row["student"] / row["teacher"] - 1)
        lines.append(
            [f"{row['w']:g}", *(f"{row[name]:.2f}" for name in ("cfg", "teacher", "student")), f"{gap:+.0f} %"]
        )
    return lines
