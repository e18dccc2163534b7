"""Whether the shipped student for negative prompts follows one, beside CFG.

The prompts leave their background open, as those of its training did, and each background in turn is the negative
prompt: it must not show up.
"""

from functools import partial
from typing import Any

import torch
from runner.stop import say

from lab.demo_world.captions import open_prompts
from lab.demo_world.distill_student import NEGATIVES
from lab.demo_world.host import MODELS
from lab.demo_world.measure import encode
from lab.demo_world.scenes import BACKGROUNDS

from ._negative_prompts import PROMPTS, Arm, W, row_of
from ._study import Study, load

STUDENT = "demo_sd3_student_negatives.safetensors"


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return how often each method shows the unwanted background."""
    from teefusion_core.comfy_host.guidance.patch import apply_fusion

    study = Study(PROMPTS, few=1)
    student, (texts, claims) = load(study.base, MODELS / STUDENT), open_prompts(PROMPTS)
    positive = encode(study.clip, texts)
    encoded = [encode(study.clip, [text]) for text in NEGATIVES]
    negatives, fused = dict(zip(BACKGROUNDS, encoded, strict=True)), partial(apply_fusion, student, guidance=W)
    arms: list[Arm] = [
        ("no guidance", 1, lambda prompt, _: (study.base, prompt)),
        ("CFG with the negative prompt", 2, lambda prompt, _: (study.base, prompt)),
        ("student, empty prompt", 1, lambda prompt, _: fused(prompt, study.bench.null)),
        ("student with the negative prompt", 1, fused),
    ]
    rows = []
    for arm in arms:
        rows.append(row_of(study, arm, positive, claims, negatives))
        say(f"{rows[-1]}")
    return {"rows": rows, "settings": {"prompts": PROMPTS, "negatives": len(NEGATIVES), "w": W}}


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading and a line per method, with the share of CFG's effect that it reaches."""
    lines = [["method", "passes/step", "unwanted background", "share of CFG's effect", "all right"]]
    none, cfg = result["rows"][0]["unwanted"], result["rows"][1]["unwanted"]
    for row in result["rows"]:
        share = (none - row["unwanted"]) / (none - cfg)
        unwanted = f"{100 * row['unwanted']:.1f} %"
        lines.append([row["method"], str(row["passes"]), unwanted, f"{100 * share:.0f} %", f"{row['overall']:.3f}"])
    return lines
