"""A training as the user of a graph sees it: progress, a line of text, pictures, the cancel button."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
import numpy as np
import torch
from torch import Tensor

from ...training.adapters import exchanged
from ...training.loop import StepReport
from ...training.preview import preview_image
from ...training.sharpener_adapter import ALPHA, ALPHA_MIN
from ..guidance.patch import EMBEDDER_KEY, STUDENT_KEY, apply_fusion
from ..sampling import tell
from .run import Training

PROMPTS_SHOWN, PREVIEW_SIZE, SECONDS_BETWEEN_LINES = 3, 768, 1.0
ALPHAS_SHOWN = (ALPHA_MIN, ALPHA / 2, ALPHA)


class TrainingProgress:
    """Shows a training in the node that runs it."""

    def __init__(self, training: Training, *, every: int, vae=None):
        """Prepare the display.

        Args:
            every: steps between pictures of the student; 0 shows the curve alone.
            vae: decodes them; None leaves a rough preview of the latents.
        """
        self.training, self.every, self.vae = training, every, vae
        self.bar = comfy.utils.ProgressBar(training.settings.steps)
        self.pictures: np.ndarray | None = None
        settings = training.distillation.settings
        self.sharpens = training.distillation.fusion is None
        middle = (settings.guidance_min + settings.guidance_max) / 2
        self.strengths = list(ALPHAS_SHOWN) if self.sharpens else [settings.guidance_min, middle, settings.guidance_max]
        self.rows = min(PROMPTS_SHOWN, len(training.distillation.positives))
        self.told, self.seconds, self.step = 0.0, 0.0, 0

    def on_step(self, report: StepReport) -> None:
        """Show where it stands."""
        self.seconds = report.seconds if not self.seconds else 0.9 * self.seconds + 0.1 * report.seconds
        self.step, last, image = report.step, report.step == report.steps, None
        if self.every and (report.step % self.every == 0 or last):
            self.pictures = self.paint(report.average)
        now = time.monotonic()
        if now - self.told > SECONDS_BETWEEN_LINES or last or (self.every and report.step % self.every == 0):
            self.told = now
            labels = [f"{'alpha' if self.sharpens else 'w'} {strength:g}" for strength in self.strengths]
            image = ("JPEG", preview_image(report.losses, report.steps, self.pictures, labels, self.rows), PREVIEW_SIZE)
            left = (report.steps - report.step) * self.seconds
            pace = report.rows / max(self.seconds, 1e-9)
            tell(f"step {report.step}/{report.steps}, loss {report.loss:.4f}, {pace:.1f} rows/s, {_minutes(left)} left")
        self.bar.update_absolute(report.step, report.steps, image)

    def on_trajectory(self, number: int) -> None:
        """Say what the wait is for."""
        tell(f"the teacher paints, trajectory {number + 1}")

    def should_stop(self) -> bool:
        """Raise the host's own exception where the user has pressed cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        return False

    def stopped(self) -> None:
        """Say what cancel has left."""
        kept = (
            f"stopped at step {self.step}, which is kept" if self.step else "stopped before the first step of this run"
        )
        tell(f"{kept}; Run goes on from there")

    @torch.no_grad()
    def paint(self, average: Mapping[str, Tensor]) -> np.ndarray:
        """Let the student, its weights averaged, paint the first prompts at three strengths; uint8 [N,H,W,3]."""
        distil = self.training.distillation
        student = distil.model.clone()
        student.set_attachments(STUDENT_KEY, asdict(self.training.info(0)))
        student.set_attachments(EMBEDDER_KEY, distil.update.embedder)
        null = distil.nulls.batch([0])
        noise_1CHW = torch.randn(
            1, *distil.latent_CHW, generator=torch.Generator().manual_seed(distil.settings.run_seed)
        )
        painted = []
        try:
            with exchanged(distil.update, average):
                for number in range(self.rows):
                    for strength in self.strengths:
                        if self.sharpens:
                            model, positive = distil.model, distil.sharpened([number], [0], strength)
                        else:
                            model, positive = apply_fusion(student, distil.positives.batch([number]), null, strength)
                        painted.append(self._sampled(model, positive, null, noise_1CHW))
        finally:
            distil.load()
        return np.stack(painted)

    def _sampled(self, model, positive, null, noise_1CHW: Tensor) -> np.ndarray:
        settings = self.training.distillation.settings
        latent = comfy.sample.sample(
            model, noise_1CHW, settings.teacher_steps, 1.0, "euler", settings.scheduler, positive, null,
            torch.zeros_like(noise_1CHW), disable_pbar=True, seed=settings.run_seed,
        )  # fmt: skip
        if self.vae is not None:
            return (self.vae.decode(latent)[0].float().cpu().clamp(0, 1).numpy() * 255).round().astype(np.uint8)
        base = model.model
        rough = latent_preview.Latent2RGBPreviewer(
            base.latent_format.latent_rgb_factors,
            base.latent_format.latent_rgb_factors_bias,
            getattr(base.latent_format, "latent_rgb_factors_reshape", None),
        )
        return np.asarray(rough.decode_latent_to_preview(base.process_latent_in(latent)))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
