"""The demo models with held-out prompts, loaded once: what teachers do there.

Shapes: B prompts, N all of them, C H W latent, S steps.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

STEPS = 20


class Study:
    """Models with prompts, the trajectories of teachers on the first few of them."""

    def __init__(self, prompts: int, few: int) -> None:
        """Load.

        Args:
            prompts: how many, with their noise.
            few: how many of them `trajectory` takes.
        """
        from lab.demo_world.measure import SCHEDULER, Bench
        from teefusion_core.comfy_host.demo_model import load_demo
        from teefusion_core.comfy_host.sampling import schedule

        with torch.inference_mode():
            self.base, self.clip, self.vae = load_demo("base")
            self.bench = Bench(self.clip, self.vae, prompts)
            self.sigmas = schedule(self.base, SCHEDULER, STEPS, 1.0)
        self.trajectories: dict[tuple[str, float], tuple] = {}
        self.first, self.few = first_rows(self.bench.conditionings[0], few), few

    def teacher(self, name: str) -> Any:
        """A teacher by name."""
        from lab.demo_world.distill_student import TEACHERS
        from lab.demo_world.host import MODELS
        from teefusion_core.comfy_host.training.from_file import teacher_of

        return teacher_of(TEACHERS[name], self.base, MODELS)[0]

    def images(self, teacher: Any, w: float) -> np.ndarray:
        """Pictures [N,H,W,3] of a teacher for every prompt, uint8."""
        from lab.demo_world.measure import BATCH, pictures
        from teefusion_core.guidance.cfg import cfg_scale_of

        guider, shown = teacher.guider, []
        for positive, noise_BCHW in zip(self.bench.conditionings, self.bench.noise_NCHW.split(BATCH), strict=True):
            guider.set_conds(positive, self.bench.null)
            guider.set_cfg(cfg_scale_of(w))
            empty, at = torch.zeros_like(noise_BCHW), (teacher.sampler, self.sigmas)
            shown.append(pictures(self.vae, guider.sample(noise_BCHW, empty, *at, disable_pbar=True, seed=0)))
        return np.concatenate(shown)

    def effective(self, name: str, w: float, student: Any = None) -> float:
        """Effective guidance of a teacher's steps, or of a student at the same states; mean over steps with prompts."""
        from teefusion_core.comfy_host.guidance.patch import apply_fusion

        where, moves, cond, uncond = self.trajectory(name, w)
        if student is not None:
            moves = self.velocities(*apply_fusion(student, self.first, self.bench.null, w), where)
        return mean_guidance(moves, cond, uncond)

    def trajectory(self, name: str, w: float) -> tuple:
        """States of a teacher with its moves, the base's velocities with and without prompt, each a list of [B,...]."""
        from teefusion_core.guidance.cfg import cfg_scale_of

        if (name, w) not in self.trajectories:
            noise = self.bench.noise_NCHW[: self.few]
            states, _ = self.teacher(name).sample(self.first, self.bench.null, noise, self.sigmas, cfg_scale_of(w))
            where, moves = self.moves(states)
            self.trajectories[name, w] = (where, moves, *self.branches(where))
        return self.trajectories[name, w]

    def moves(self, states: list[torch.Tensor]) -> tuple[list, list]:
        """Turn S+1 states into S places (x, sigma) with the velocity that led on from each."""
        from teefusion_core.guidance.flow import secant

        where = list(zip(states[:-1], self.sigmas[:-1], strict=True))
        return where, [secant(x, states[i + 1], sigma, self.sigmas[i + 1]) for i, (x, sigma) in enumerate(where)]

    def branches(self, where: list) -> list[list[torch.Tensor]]:
        """Velocities of the base at places of the first few prompts: with the prompt, then without."""
        return [self.velocities(self.base, prompt, where) for prompt in (self.first, self.bench.null)]

    def velocities(self, model: Any, positive: list, where: list) -> list[torch.Tensor]:
        """Velocities of any model at places of the first few prompts, at cfg 1."""
        from lab.demo_world.measure import predictions
        from teefusion_core.guidance.flow import velocity_of

        seen = predictions(model, positive, self.bench.null, where, self.bench.noise_NCHW[: self.few])
        return [velocity_of(denoised, *at) for at, denoised in zip(where, seen, strict=True)]


def first_rows(conditioning: list, rows: int) -> list:
    """The first prompts of a CONDITIONING with one entry."""
    [(context_BLE, extras)] = conditioning
    return [[context_BLE[:rows], {"pooled_output": extras["pooled_output"][:rows]}]]


def mean_guidance(moves: list, cond: list, uncond: list) -> float:
    """Effective guidance, mean over steps with prompts."""
    from teefusion_core.guidance.cfg import effective_guidance

    return float(torch.stack([effective_guidance(*at) for at in zip(moves, cond, uncond, strict=True)]).mean())


@lru_cache(maxsize=1)
def load(base: Any, path: Path) -> Any:
    """The student of a file; the last one stays, since it is asked for again and again."""
    from teefusion_core.comfy_host.guidance.student_loader import load_student

    return load_student(base, path)
