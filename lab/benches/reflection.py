"""Reflection teachers beside plain CFG, at equal cost and at equal effective guidance.

All rows use 512 prompts that were not used in training, and the same noise; the judge is exact. Every reflection row
is compared with CFG at the effective guidance of the reflection, prompt by prompt on the same noise.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from runner.stop import say

from lab.demo_world.measure import SCHEDULER
from lab.demo_world.verifier import judge, score
from teefusion_core.evaluation.image_metrics import clipping, saturation

from ._scores import estimate, interval_text
from ._study import Study

NUM_PROMPTS = 512
PROMPTS_FOR_GUIDANCE = 64


@dataclass(frozen=True)
class Arm:
    """One way to sample: CFG where `strong` is None, else a reflection."""

    name: str
    final: float
    strong: float | None = None
    weak: float = 0.0
    weak_network: bool = False
    steps: int = 20

    @property
    def setting(self) -> str:
        return f"{self.final:g}" if self.strong is None else f"{self.strong:g} / {self.weak:g} / {self.final:g}"


NOMINAL = 2.0
CFG_ARMS = [Arm("CFG", scale) for scale in (1.0, 1.5, NOMINAL, 3.0, 4.0)] + [Arm("CFG", NOMINAL, steps=49)]
"""49 steps of CFG cost the 98 passes of 20 steps of Z-Sampling."""
REFLECTION_ARMS = [
    Arm("Z-Sampling", NOMINAL, NOMINAL, 0.0),
    Arm("W2SD, CFG gap", NOMINAL, NOMINAL, 1.0),
    Arm("W2SD, weak network", 1.0, 1.0, 1.0, weak_network=True),
    Arm("W2SD, weak network", NOMINAL, 1.0, 1.0, weak_network=True),
    Arm("W2SD, weak network", NOMINAL, NOMINAL, NOMINAL, weak_network=True),
    Arm("W2SD, weak network", NOMINAL, NOMINAL, 1.0, weak_network=True),
]


class Reflections(Study):
    """A demo model and a weaker one, sampled as arms say."""

    def __init__(self, weak: Any, base: str = "base", prompts: int = NUM_PROMPTS) -> None:
        super().__init__(prompts, PROMPTS_FOR_GUIDANCE, base=base)
        self.weak = weak

    def teacher_of(self, arm: Arm) -> Any:
        """Return the teacher of an arm; CFG is a reflection in which no step reflects."""
        from teefusion_core.comfy_host.reflection.guider import ReflectionGuider, Scales
        from teefusion_core.comfy_host.reflection.sampler import ReflectionSampler
        from teefusion_core.comfy_host.training.teacher import Teacher

        scales = Scales(arm.final if arm.strong is None else arm.strong, arm.weak, arm.final)
        guider = ReflectionGuider(self.base, self.weak if arm.weak_network else None, scales=scales)
        return Teacher(guider, ReflectionSampler(reflect_steps=0 if arm.strong is None else -1))

    def row(self, arm: Arm) -> tuple[dict[str, Any], np.ndarray]:
        teacher, run = self.teacher_of(arm), (self.schedule(arm.steps), arm.final)
        start = time.perf_counter()
        parts = [teacher.sample(prompt, self.bench.null, noise, *run)[0][-1] for prompt, noise in self.batches()]
        shown = np.concatenate([self.decoded(x_BCHW) for x_BCHW in parts])
        seconds, passes = time.perf_counter() - start, teacher.guider.passes
        states = teacher.sample(self.first, self.bench.null, self.bench.noise_NCHW[: self.few], *run)[0]
        claims = self.bench.claims
        figures = {
            "method": arm.name, "setting": arm.setting, "steps": arm.steps, "passes": passes,
            "effective_guidance": self.guidance_along(states, run[0]), **score(shown, claims),
            "saturation": saturation(shown), "clipped": clipping(shown),
            "seconds": round(seconds, 1),
        }  # fmt: skip
        say(f"{arm.name} {arm.setting}: {figures['overall']:.3f} at w_e {figures['effective_guidance']:.2f}")
        return figures, np.array([judge(image, claim).overall for image, claim in zip(shown, claims, strict=True)])


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return one row per arm of the demo SD3."""
    from teefusion_core.comfy_host.demo_model import load_demo

    return measured(Reflections(load_demo("weak")[0]), CFG_ARMS)


def measured(study: Reflections, cfg_arms: list[Arm]) -> dict[str, Any]:
    """Return one row per arm; each reflection has CFG at its effective guidance and the paired difference."""
    rows = [study.row(arm)[0] for arm in cfg_arms]
    for arm in REFLECTION_ARMS:
        row, right = study.row(arm)
        matched, right_of_cfg = study.row(Arm("CFG, matched", row["effective_guidance"]))
        gain = estimate(lambda x: x, torch.from_numpy(right.astype(float) - right_of_cfg)[None])
        rows.append({**row, "matched": matched, "gain": gain["value"], "gain_interval": [gain["low"], gain["high"]]})
    settings = {"prompts": len(study.bench.claims), "scheduler": SCHEDULER, "inversion": "exact"}
    return {"settings": settings, "rows": rows}


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["method", "cfg", "steps", "passes", "effective", "all right", "saturation", "clipped", "CFG matched",
              "gain"]]  # fmt: skip
    for row in result["rows"]:
        cells = [row["method"], row["setting"], str(row["steps"]), f"{row['passes']:g}"]
        cells += [f"{row['effective_guidance']:.2f}", f"{row['overall']:.3f}", f"{row['saturation']:.3f}"]
        matched = ["", ""]
        if "matched" in row:
            low, high = row["gain_interval"]
            gain = interval_text({"value": row["gain"], "low": low, "high": high}, "+")
            matched = [f"{row['matched']['overall']:.3f}", gain]
        lines.append([*cells, f"{100 * row['clipped']:.1f} %", *matched])
    return lines
