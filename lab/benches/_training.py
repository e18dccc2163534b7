"""A training of the embedded model in parts, each of which can be run alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from ._timing import now

PASSES = 5
"""Of the teacher: W2SD at 5.5 / 1 / 1 + w, the last step but two."""
LATENT, STEPS, SCHEDULER = (16, 8, 8), 20, "normal"
PROMPTS = 64


class Parts:
    """Teacher, student, optimizer on one copy of the base."""

    def __init__(self, *, batch: int, rank: int, images_per_trajectory: int = 16, **settings: Any):
        from lab.demo_world.distill_student import captions
        from lab.demo_world.measure import encode
        from teefusion_core.comfy_host.demo_model import load_demo
        from teefusion_core.comfy_host.prompts.encoded import Prompts
        from teefusion_core.comfy_host.reflection.guider import ReflectionGuider, Scales
        from teefusion_core.comfy_host.reflection.sampler import ReflectionSampler
        from teefusion_core.comfy_host.training.distillation import Distillation
        from teefusion_core.comfy_host.training.teacher import Teacher
        from teefusion_core.training.loop_settings import TrainSettings
        from teefusion_core.training.settings import DistillSettings

        self.model, clip, _ = load_demo("base")
        weak = load_demo("weak")[0]
        with torch.no_grad():
            self.prompts = [encode(clip, [text]) for text in captions(PROMPTS, 0)]
            null = encode(clip, [""])
        guider = ReflectionGuider(self.model, weak, scales=Scales(5.5, 1.0, 5.5))
        self.distil = Distillation(
            self.model,
            Teacher(guider, ReflectionSampler()),
            Prompts(self.prompts, "prompt"),
            Prompts([null], "null"),
            DistillSettings(
                teacher_steps=STEPS,
                scheduler=SCHEDULER,
                images_per_trajectory=images_per_trajectory,
                rank=rank,
                initial_gain_ratio=0.25,
                **settings,
            ),
            latent_CHW=LATENT,
        )
        self.batch, self.rank = batch, rank
        self.loop = TrainSettings(steps=STEPS * images_per_trajectory // batch, batch_size=batch, learning_rate=1e-4)
        self.rows = images_per_trajectory

    def trajectories(self, folder: Path, *, cache_size: int, reuse: float) -> Any:
        """Examples from trajectories in a folder."""
        from teefusion_core.training.trajectory_cache import TrajectoryCache

        return TrajectoryCache(
            self.distil.trajectory, folder, examples=STEPS * self.rows, cache_size=cache_size, reuse=reuse
        )

    def trained(self, data: Any) -> list[Any]:
        """Run as many steps as one trajectory has examples for; return their reports."""
        from teefusion_core.training.loop import train

        reports: list[Any] = []
        with self.distil.in_training():
            train(self.distil.student.update, data, self.distil.loss, self.loop, on_step=reports.append)
        return reports

    def teacher_seconds(self) -> tuple[float, float]:
        """Seconds of the host sampling one trajectory, of the unguided passes along it."""
        distil, numbers = self.distil, [random.Random(0).randrange(PROMPTS) for _ in range(self.rows)]
        noise_BCHW = torch.randn(self.rows, *LATENT)
        guider, half = distil.teacher.guider, distil.grid_S[len(distil.grid_S) // 2]
        with torch.no_grad():
            guider.set_conds(distil.positives.batch(numbers), distil.nulls.batch([0] * self.rows))
            guider.set_cfg(5.5)
            start = now()
            guider.sample(
                noise_BCHW,
                torch.zeros_like(noise_BCHW),
                distil.teacher.sampler,
                distil.grid_S,
                disable_pbar=True,
                seed=0,
            )
            sampled = now()
            distil.network.load()
            positive, x_BCHW = distil.positives.batch(numbers), noise_BCHW.to(distil.network.device)
            loaded = now()
            for _ in range(STEPS):
                distil.network.velocity(x_BCHW, half.to(x_BCHW).expand(self.rows), positive)
        return sampled - start, now() - loaded

    def student_seconds(self, example: Any) -> tuple[float, float]:
        """Seconds of a forward with a backward pass, of the optimizer with clipping."""
        from torch.nn.utils import clip_grad_norm_

        weights = list(self.distil.student.update.parameters())
        optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
        with self.distil.in_training():
            student = optimizing = 0.0
            for _ in range(self.loop.steps):
                start = now()
                self.distil.loss(example).backward()
                middle = now()
                clip_grad_norm_(weights, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                student, optimizing = student + middle - start, optimizing + now() - middle
        return student, optimizing

    def stock(self, steps: int, batch: int) -> float:
        """Seconds of ComfyUI's own LoRA trainer."""
        from comfy_extras.nodes_train import TrainLoraNode

        options = {
            "model": self.model,
            "batch_size": batch,
            "steps": steps,
            "grad_accumulation_steps": 1,
            "learning_rate": 1e-4,
            "rank": self.rank,
            "optimizer": "AdamW",
            "loss_function": "MSE",
            "seed": 0,
            "training_dtype": "fp32",
            "lora_dtype": "fp32",
            "algorithm": "LoRA",
            "gradient_checkpointing": False,
            "existing_lora": "[None]",
        }
        start = now()
        TrainLoraNode.execute(
            **{name: [value] for name, value in options.items()},
            latents=[{"samples": torch.randn(1, *LATENT)} for _ in range(PROMPTS)],
            positive=self.prompts,
        )
        return now() - start
