"""The progress and the previews of a training run in ComfyUI."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import comfy.model_management
import comfy.utils
import latent_preview
import numpy as np
import torch
from torch import Tensor

from ...guidance.calibration import Calibration
from ...training.loop import StepReport
from ...training.preview import loss_curve, preview_image
from ...training.update import exchanged
from ..model_files import check_vae
from ..notes import duration, each, tell
from .held_out import HeldOut
from .run import Result, Training

PROMPTS_SHOWN, PREVIEW_SIZE, SECONDS_BETWEEN_LINES = 3, 768, 1.0


class TrainingProgress:
    """Shows a training run in the node that runs it."""

    def __init__(self, training: Training, *, every: int, vae=None):
        """Prepare the display.

        Args:
            every: steps between previews of the student, with its loss on held-out examples; 0 shows the training loss
                only.
            vae: VAE that decodes the previews; without it they are rough.
        Raises:
            CheckpointMismatch: the VAE is for another latent space.
        """
        check_vae(vae, training.distillation.model)
        self.training, self.every, self.vae = training, every, vae
        self.bar = comfy.utils.ProgressBar(training.settings.steps)
        self.images: np.ndarray | None = None
        self.held_out = HeldOut(training.distillation)
        self.held_out_losses: list[tuple[int, float]] = []
        self.strengths = training.distillation.student.strengths_to_preview()
        self.rows = min(PROMPTS_SHOWN, len(training.distillation.positives))
        self.last_line, self.seconds, self.step = 0.0, 0.0, 0

    def on_step(self, report: StepReport) -> None:
        """Show the progress."""
        self.seconds = report.seconds if not self.seconds else 0.9 * self.seconds + 0.1 * report.seconds
        self.step, last, image = report.step, report.step == report.steps, None
        if self.every and (report.step % self.every == 0 or last):
            self.images = self.sample(report.average)
            self.held_out_losses.append((report.step, self.held_out.loss(report.average)))
        now = time.monotonic()
        if now - self.last_line > SECONDS_BETWEEN_LINES or last or (self.every and report.step % self.every == 0):
            self.last_line = now
            image = self._image(report.losses)
            left = (report.steps - report.step) * self.seconds
            pace = report.rows / max(self.seconds, 1e-9)
            done = f"step {report.step}/{report.steps}, loss {report.loss:.4f}"
            held_out = f", held-out {self.held_out_losses[-1][1]:.4f}" if self.held_out_losses else ""
            tell(f"{done}{held_out}, {pace:.1f} examples/s, {duration(left)} left")
        self.bar.update_absolute(report.step, report.steps, image)

    def show_calibration(self, trained: Result) -> None:
        """Show the guidance of the student before and after calibration beside the other previews."""
        if trained.calibration is None:
            return
        steps = self.training.settings.steps
        self.bar.update_absolute(steps, steps, self._image(trained.losses, trained.calibration))

    def _image(self, losses: Sequence[float], calibration: Calibration | None = None) -> tuple:
        curve = loss_curve(losses, self.training.settings.steps, self.held_out_losses)
        labels = [label for label, _ in self.strengths]
        return "JPEG", preview_image(curve, self.images, labels, self.rows, calibration), PREVIEW_SIZE

    def should_stop(self) -> bool:
        """Raise the host's exception if the user has cancelled."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        return False

    def stopped(self) -> None:
        """Show what was saved on cancel."""
        if self.step == self.training.settings.steps:
            tell("stopped before the end of the calibration; the training is saved, so run again to calibrate")
            return
        saved = f"at step {self.step}, which is saved" if self.step else "before the first step of this run"
        tell(f"stopped {saved}; run again to resume")

    @torch.no_grad()
    def sample(self, average: Mapping[str, Tensor]) -> np.ndarray:
        """Sample the averaged student for the first prompts, one column per strength; uint8 [N,H,W,3]."""
        distil = self.training.distillation
        try:
            with exchanged(distil.student.update, average):
                places = [(row, w) for row in range(self.rows) for _, w in self.strengths]
                latents = [distil.preview(row, w) for row, w in each("making preview image", places)]
            return np.stack([self._decoded(latent_1CHW) for latent_1CHW in latents])
        finally:
            distil.network.load()

    def _decoded(self, latent_1CHW: Tensor) -> np.ndarray:
        if self.vae is not None:
            pixels = self.vae.decode(latent_1CHW)
            image_HW3 = pixels.reshape(-1, *pixels.shape[-3:])[0].float().cpu().clamp(0, 1)  # of a video its start
            return (image_HW3.numpy() * 255).round().astype(np.uint8)
        base = self.training.distillation.network.base
        rough = latent_preview.Latent2RGBPreviewer(
            base.latent_format.latent_rgb_factors,
            base.latent_format.latent_rgb_factors_bias,
            getattr(base.latent_format, "latent_rgb_factors_reshape", None),
        )
        return np.asarray(rough.decode_latent_to_preview(base.process_latent_in(latent_1CHW)))
