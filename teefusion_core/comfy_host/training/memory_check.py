"""Memory that a training will take, told before its first step.

Shapes: B rows, C H W latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import torch

from ...errors import InvalidConfig
from ...guidance.cfg import cfg_scale_of
from ...training.gradient_checkpointing import checkpointed
from ...training.loop_settings import TrainSettings
from ...training.memory_forecast import Forecast, foretold
from ...training.targets import Example
from .distillation import Distillation

GIB = 2**30
TRIAL_STEPS = 2
MOMENTS = 2
"""Tensors that AdamW keeps beside each trained one."""


@dataclass(frozen=True)
class Need:
    """What a training takes beside model, text encoders, trained weights, with what there is.

    Attributes:
        student, teacher: by the rows of `batch`, of `images_per_trajectory`; both count what is there between steps.
        batch, images_per_trajectory: as they are set.
        free: bytes that the device has left.
    """

    student: Forecast
    teacher: Forecast
    batch: int
    images_per_trajectory: int
    free: int

    @property
    def peak(self) -> int:
        """Most bytes at once."""
        return max(self.student.peak(self.batch), self.teacher.peak(self.images_per_trajectory))

    def __str__(self) -> str:
        return f"training needs about {self.peak / GIB:.2f} GiB beside the model, {self.free / GIB:.2f} GiB are free"


def check_memory(distil: Distillation, loop: TrainSettings) -> Need:
    """Foretell the memory of a training whose update is attached, by small trials of teacher with student.

    Raises:
        InvalidConfig: more than the device has left, with what would fit.
    """
    try:
        need = _need(distil, loop)
    except torch.cuda.OutOfMemoryError as error:
        raise InvalidConfig(
            "the device is too small even for 2 rows; set gradient_checkpointing, train less (lora on modulation, a "
            f"smaller rank), paint smaller pictures, or free memory that other programs hold ({error})"
        ) from error
    if need.peak > need.free:
        raise InvalidConfig(f"{need}; {_advice(distil, loop, need)}")
    return need


def _need(distil: Distillation, loop: TrainSettings) -> Need:
    weights = sum(weight.numel() * weight.element_size() for weight in distil.student.update.parameters())
    kept = (MOMENTS + bool(loop.ema_decay)) * weights
    ahead = weights * (loop.gradient_accumulation > 1)  # gradients that are there before the last of several passes
    student, teacher = _of_student(distil, kept + ahead), _of_teacher(distil, kept)
    return Need(student, teacher, loop.batch_size, distil.settings.images_per_trajectory, _free(distil.network.device))


def _free(device: torch.device) -> int:
    return int(comfy.model_management.get_free_memory(device))


def _of_student(distil: Distillation, constant: int) -> Forecast:
    longest = max(range(len(distil.positives)), key=distil.positives.tokens)

    def trial(rows: int) -> None:
        zero_BCHW, half_B = torch.zeros(rows, *distil.latent_CHW), torch.full((rows,), 0.5)
        example = Example(
            x_BCHW=zero_BCHW, sigma_B=half_B, w_B=torch.full((rows,), distil.settings.guidance_max),
            prompt_B=torch.full((rows,), longest), null_B=torch.zeros(rows, dtype=torch.long), target_BCHW=zero_BCHW,
            guidance_BCHW=zero_BCHW + 1, weight_B=half_B,
        )  # fmt: skip
        try:
            distil.loss(example).backward()
        finally:
            distil.student.update.zero_grad()

    return foretold(trial, constant)


def _of_teacher(distil: Distillation, constant: int) -> Forecast:
    def trial(rows: int) -> None:
        positive, negative = distil.positives.batch([0] * rows), distil.nulls.batch([0] * rows)
        noise_BCHW = torch.zeros(rows, *distil.latent_CHW)
        sigmas = distil.grid_S[: TRIAL_STEPS + 1]
        scale = float(cfg_scale_of(distil.settings.guidance_max))
        states, _ = distil.teacher.sample(positive, negative, noise_BCHW, sigmas, scale)
        distil.network.load()
        x_BCHW = states[0].to(distil.network.device)
        distil.network.velocity(x_BCHW, sigmas[0].to(x_BCHW).expand(rows), positive)

    with distil.student.update.disabled(), torch.no_grad():
        return foretold(trial, constant)


def _advice(distil: Distillation, loop: TrainSettings, need: Need) -> str:
    """What to change so that it fits."""
    advice = []
    if need.teacher.peak(need.images_per_trajectory) > need.free:
        advice.append(_at_most("images_per_trajectory", need.teacher.most_rows(need.free, need.images_per_trajectory)))
    if need.student.peak(need.batch) > need.free:
        advice.append(_at_most("batch_size", need.student.most_rows(need.free, need.batch)))
        if not distil.settings.gradient_checkpointing:
            with checkpointed(distil.network.module):
                thrifty = _of_student(distil, need.student.constant)
            fitting = thrifty.most_rows(need.free, need.batch)
            advice.append(f"gradient_checkpointing, with {_at_most('batch_size', fitting)}")
        if distil.student.changes_model and distil.settings.trainable != "lora on modulation":
            advice.append("trainable = lora on modulation")
    return f"change {' or '.join(advice)}"


def _at_most(name: str, rows: int) -> str:
    return f"{name} to {rows} at most" if rows else f"{name} (not even 1 fits)"
