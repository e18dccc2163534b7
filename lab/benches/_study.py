"""The demo models with held-out prompts, loaded once, and measurements of guiders on them.

Shapes: B prompts of a batch, N prompts in all, C H W latent, S steps.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.demo_world.distill_student import TEACHERS
from lab.demo_world.host import MODELS
from lab.demo_world.measure import BATCH, SCHEDULER, STEPS, Bench, pictures, predictions
from teefusion_core.guidance.cfg import cfg_scale_of, effective_guidance
from teefusion_core.guidance.flow import secant, velocity_of


class Study:
    """Models with `prompts` held-out prompts and their noise.

    Trajectories are compared on the first `few` of them, at one of `every` steps. The base is a variant of the demo
    model.
    """

    def __init__(self, prompts: int, few: int, every: int = 1, base: str = "base") -> None:
        from teefusion_core.comfy_host.demo_model import load_demo

        with torch.inference_mode():
            self.base, self.clip, self.vae = load_demo(base)
            self.bench = Bench(self.clip, self.vae, prompts)
            self.sigmas = self.schedule(STEPS)
        self.trajectories: dict[tuple[str, float], tuple] = {}
        self.first, self.few, self.every = first_rows(self.bench.conditionings[0], few), few, every

    def schedule(self, steps: int, scheduler: str = SCHEDULER) -> torch.Tensor:
        from teefusion_core.comfy_host.sampling import schedule

        return schedule(self.base, scheduler, steps, 1.0)

    def batches(self) -> list[tuple[list, torch.Tensor]]:
        return list(zip(self.bench.conditionings, self.bench.noise_NCHW.split(BATCH), strict=True))

    def teacher(self, name: str) -> Any:
        from teefusion_core.comfy_host.training.from_file import teacher_of

        return teacher_of(TEACHERS[name], self.base, MODELS)[0]

    def images(self, teacher: Any, w: float) -> np.ndarray:
        """Return images [N,H,W,3] of a teacher for every prompt, uint8."""
        parts = [teacher.sample(positive, self.bench.null, noise_BCHW, self.sigmas, cfg_scale_of(w))[0][-1]
                 for positive, noise_BCHW in self.batches()]  # fmt: skip
        return np.concatenate([self.decoded(x_BCHW) for x_BCHW in parts])

    def decoded(self, x_BCHW: torch.Tensor) -> np.ndarray:
        """Decode latents of the model's own space to images [B,H,W,3], uint8."""
        return pictures(self.vae, self.base.model.process_latent_out(x_BCHW))

    def passes_per_step(self, guider: Any, counted: int, pictures: int) -> float:
        """Return the forward passes per step; a reflection runs a second network too, so it counts its own passes."""
        return getattr(guider, "passes", counted / pictures) / STEPS

    def effective(self, name: str, w: float, student: Any = None) -> float:
        """Return the effective guidance of a teacher's steps, or of a student at the same states, as a mean."""
        where, moves, cond, uncond = self.trajectory(name, w)
        if student is not None:
            moves = self.student_velocities(student, w, where)
        return mean_guidance(moves, cond, uncond)

    def guidance_errors(self, name: str, student: Any, w: float) -> list[float]:
        """Return the squared error of a student relative to the guidance of a teacher, at each noise level."""
        where, moves, cond, _ = self.trajectory(name, w)
        seen = zip(self.student_velocities(student, w, where), moves, cond, strict=True)
        return [float((v - move).square().sum() / (move - own).square().sum()) for v, move, own in seen]

    def trajectory(self, name: str, w: float) -> tuple:
        """Return states and moves of a teacher, and the base's velocities with and without prompt, lists of [B,...]."""
        if (name, w) not in self.trajectories:
            noise = self.bench.noise_NCHW[: self.few]
            states, _ = self.teacher(name).sample(self.first, self.bench.null, noise, self.sigmas, cfg_scale_of(w))
            where, moves = (part[:: self.every] for part in self.moves(states, self.sigmas))
            self.trajectories[name, w] = (where, moves, *self.branches(where))
        return self.trajectories[name, w]

    def guidance_along(self, states: list[torch.Tensor], sigmas: torch.Tensor) -> float:
        """Return the effective guidance of the moves between a sampler's states, for the first few prompts."""
        where, moves = self.moves(states, sigmas)
        return mean_guidance(moves, *self.branches(where))

    def moves(self, states: list[torch.Tensor], sigmas: torch.Tensor) -> tuple[list, list]:
        """Turn S+1 states into S places (x, sigma), with the velocity of the step from each."""
        where = list(zip(states[:-1], sigmas[:-1], strict=True))
        return where, [secant(x, states[i + 1], sigma, sigmas[i + 1]) for i, (x, sigma) in enumerate(where)]

    def branches(self, where: list) -> list[list[torch.Tensor]]:
        return [self.velocities(self.base, prompt, where) for prompt in (self.first, self.bench.null)]

    def student_velocities(self, student: Any, w: float, where: list) -> list[torch.Tensor]:
        """Return velocities of a student at w at places of the first few prompts."""
        from teefusion_core.comfy_host.guidance.patch import apply_fusion

        return self.velocities(*apply_fusion(student, self.first, self.bench.null, w), where)

    def velocities(self, model: Any, positive: list, where: list) -> list[torch.Tensor]:
        """Return velocities of any model at places of the first few prompts, at cfg 1."""
        seen = predictions(model, positive, self.bench.null, where, self.bench.noise_NCHW[: self.few])
        return [velocity_of(denoised, *at) for at, denoised in zip(where, seen, strict=True)]


def first_rows(conditioning: list, rows: int) -> list:
    [(context_BLE, extras)] = conditioning
    return [[context_BLE[:rows], {"pooled_output": extras["pooled_output"][:rows]}]]


def mean_guidance(moves: list, cond: list, uncond: list) -> float:
    return float(torch.stack([effective_guidance(*at) for at in zip(moves, cond, uncond, strict=True)]).mean())


@lru_cache(maxsize=1)
def load(base: Any, path: Path) -> Any:
    """Load the student of a file; the last one is cached, because it is used repeatedly."""
    from teefusion_core.comfy_host.guidance.student_loader import load_student

    return load_student(base, path)


def uncalibrated(student: Any) -> Any:
    """Return a student without the calibration of its file."""
    from teefusion_core.comfy_host.guidance.attachments import STUDENT_KEY

    plain = student.clone()
    plain.set_attachments(STUDENT_KEY, {**student.get_attachment(STUDENT_KEY), "calibration": ""})
    return plain
