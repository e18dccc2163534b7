"""Reflection teachers beside plain CFG, at equal cost with equal effective guidance.

512 prompts that training never saw, the same noise for every row; the judge is exact. Every reflection row is
followed by CFG at the scale that the reflection amounts to, prompt by prompt on the same noise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from runner.stop import say

NUM_PROMPTS = 512
PROMPTS_FOR_GUIDANCE = 64
BOOTSTRAP = 2000


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
        """CFG scales as a reader writes them."""
        return f"{self.final:g}" if self.strong is None else f"{self.strong:g} / {self.weak:g} / {self.final:g}"


NOMINAL = 2.0
CFG_ARMS = [Arm("CFG", scale) for scale in (1.0, 1.5, NOMINAL, 3.0, 4.0)] + [Arm("CFG", NOMINAL, steps=49)]
REFLECTION_ARMS = [
    Arm("Z-Sampling", NOMINAL, NOMINAL, 0.0),
    Arm("W2SD, CFG gap", NOMINAL, NOMINAL, 1.0),
    Arm("W2SD, weak network", 1.0, 1.0, 1.0, weak_network=True),
    Arm("W2SD, weak network", NOMINAL, 1.0, 1.0, weak_network=True),
    Arm("W2SD, weak network", NOMINAL, NOMINAL, NOMINAL, weak_network=True),
    Arm("W2SD, weak network", NOMINAL, NOMINAL, 1.0, weak_network=True),
]
"""49 steps of CFG cost the 98 passes of 20 steps of Z-Sampling."""


class Study:
    """Models with prompts, loaded once."""

    def __init__(self) -> None:
        from lab.demo_world.measure import Bench
        from teefusion_core.comfy_host.demo_model import load_demo

        self.base, clip, vae = load_demo("base")
        self.weak = load_demo("weak")[0]
        self.bench = Bench(clip, vae, NUM_PROMPTS)

    def guider(self, arm: Arm, positive: list) -> Any:
        """The guider of an arm; CFG is a reflection in which no step reflects."""
        from teefusion_core.comfy_host.reflection.guider import ReflectionGuider, Scales

        strong = arm.final if arm.strong is None else arm.strong
        weak = self.weak if arm.weak_network else None
        guider = ReflectionGuider(self.base, weak, scales=Scales(strong, arm.weak, arm.final))
        guider.set_conds(positive, self.bench.null)
        return guider

    def run(self, arm: Arm, positive: list, noise_BCHW: torch.Tensor) -> tuple[Any, list, torch.Tensor]:
        """Sample one batch; return the guider, x at every noise level, the schedule."""
        from lab.demo_world.measure import SCHEDULER
        from teefusion_core.comfy_host.reflection.sampler import ReflectionSampler
        from teefusion_core.comfy_host.sampling import schedule

        guider, sigmas = self.guider(arm, positive), schedule(self.base, SCHEDULER, arm.steps, 1.0)
        sampler = ReflectionSampler(reflect_steps=0 if arm.strong is None else -1)
        states: dict[int, torch.Tensor] = {}
        out = guider.sample(
            noise_BCHW,
            torch.zeros_like(noise_BCHW),
            sampler,
            sigmas,
            callback=lambda step, denoised, x, total: states.setdefault(step, x),
            disable_pbar=True,
            seed=0,
        )
        last = self.base.model.process_latent_in(out)
        return guider, [*(states[step] for step in sorted(states)), last], sigmas

    def row(self, arm: Arm) -> tuple[dict[str, Any], np.ndarray]:
        """Figures of one arm, with what is right prompt by prompt."""
        from lab.demo_world.measure import BATCH, pictures
        from lab.demo_world.verifier import judge, score
        from teefusion_core.evaluation.image_metrics import clipping, saturation

        start, images, passes = time.perf_counter(), [], 0.0
        for index, positive in enumerate(self.bench.conditionings):
            noise = self.bench.noise_NCHW[index * BATCH : (index + 1) * BATCH]
            guider, states, _ = self.run(arm, positive, noise)
            passes = guider.passes
            images.append(pictures(self.bench.vae, self.base.model.process_latent_out(states[-1])))
        seconds, shown = time.perf_counter() - start, np.concatenate(images)
        floats = torch.from_numpy(shown / 255)
        right = np.array([judge(i, claim).overall for i, claim in zip(shown, self.bench.claims, strict=True)])
        figures = {
            "method": arm.name,
            "setting": arm.setting,
            "steps": arm.steps,
            "passes": passes,
            "effective_guidance": self.effective_guidance(arm),
            **score(shown, self.bench.claims),
            "saturation": float(saturation(floats).mean()),
            "clipped": float(clipping(floats).mean()),
            "seconds": round(seconds, 1),
        }
        return figures, right

    def effective_guidance(self, arm: Arm) -> float:
        """CFG scale that the moves of an arm amount to, mean over steps with prompts, along its own path."""
        from lab.demo_world.measure import predictions
        from teefusion_core.guidance.cfg import effective_guidance
        from teefusion_core.guidance.flow import secant, velocity_of

        positive, noise = self.bench.conditionings[0], self.bench.noise_NCHW[:PROMPTS_FOR_GUIDANCE]
        _, states, sigmas = self.run(arm, positive, noise)
        where = list(zip(states[:-1], sigmas[:-1], strict=True))
        cond = predictions(self.base, positive, self.bench.null, where, noise)
        uncond = predictions(self.base, self.bench.null, self.bench.null, where, noise)
        found = []
        for index, (x, sigma) in enumerate(where):
            moved = secant(x, states[index + 1], sigma, sigmas[index + 1])
            velocities = (velocity_of(seen[index], x, sigma) for seen in (cond, uncond))
            found.append(effective_guidance(moved, *velocities).mean())
        return float(torch.stack(found).mean())


def _interval(differences: np.ndarray) -> list[float]:
    """95 % bootstrap interval of a mean over prompts."""
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(differences), (BOOTSTRAP, len(differences)))
    return [float(bound) for bound in np.percentile(differences[picks].mean(1), (2.5, 97.5))]


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return one row per arm; each reflection with CFG at its effective guidance, with the paired difference."""
    study, rows = Study(), []
    for arm in CFG_ARMS:
        rows.append(_told(study.row(arm)[0]))
    for arm in REFLECTION_ARMS:
        row, right = study.row(arm)
        matched, right_of_cfg = study.row(Arm("CFG, matched", row["effective_guidance"]))
        differences = right.astype(float) - right_of_cfg
        row |= {"matched": matched, "gain": float(differences.mean()), "gain_interval": _interval(differences)}
        rows.append(_told(row))
    from lab.demo_world.measure import SCHEDULER

    settings = {"prompts": NUM_PROMPTS, "scheduler": SCHEDULER, "inversion": "exact"}
    return {"settings": settings, "rows": rows}


def _told(row: dict[str, Any]) -> dict[str, Any]:
    say(f"{row['method']} {row['setting']}: {row['overall']:.3f} at w_e {row['effective_guidance']:.2f}")
    return row


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per arm."""
    head = [
        "method",
        "cfg",
        "steps",
        "passes",
        "effective",
        "all right",
        "saturation",
        "clipped",
        "CFG matched",
        "gain",
    ]
    lines = [head]
    for row in result["rows"]:
        cells = [row["method"], row["setting"], str(row["steps"]), f"{row['passes']:g}"]
        cells += [f"{row['effective_guidance']:.2f}", f"{row['overall']:.3f}", f"{row['saturation']:.3f}"]
        cells.append(f"{100 * row['clipped']:.1f} %")
        if "matched" in row:
            low, high = row["gain_interval"]
            cells += [f"{row['matched']['overall']:.3f}", f"{row['gain']:+.3f} ({low:+.3f} to {high:+.3f})"]
        else:
            cells += ["", ""]
        lines.append(cells)
    return lines
