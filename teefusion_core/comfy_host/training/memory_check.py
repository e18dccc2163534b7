"""Forecast the memory of a training run before its first step.

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
from ...training.memory_forecast import Forecast, forecast
from ...training.targets import Example
from .distillation import Distillation
from .network import Network

GIB = 2**30
TRIAL_STEPS = 2
MOMENTS = 2
"""Number of tensors that AdamW stores for each trained one."""


@dataclass(frozen=True)
class Need:
    """The memory that training needs beside model, text encoders and trained weights, and the free memory.

    Attributes:
        student, teacher: by the rows of `batch` and of `images_per_trajectory`; both include what stays between steps.
        batch, images_per_trajectory: the settings.
        free: free bytes of the device.
    """

    student: Forecast
    teacher: Forecast
    batch: int
    images_per_trajectory: int
    free: int

    @property
    def peak(self) -> int:
        """The largest number of bytes at once."""
        return max(self.student.peak(self.batch), self.teacher.peak(self.images_per_trajectory))

    def __str__(self) -> str:
        return f"training needs about {self.peak / GIB:.2f} GiB beside the model; {self.free / GIB:.2f} GiB are free"


def check_memory(distil: Distillation, loop: TrainSettings) -> Need:
    """Forecast the memory of a training run whose update is applied, by small trials of teacher and student.

    Raises:
        InvalidConfig: training needs more than the free memory; the message has settings that fit.
    """
    try:
        need = _need(distil, loop)
    except torch.cuda.OutOfMemoryError as error:
        raise InvalidConfig(
            f"the device has too little memory for 2 rows ({error}); turn on gradient_checkpointing, use lora on "
            "modulation, a smaller rank or smaller images, or close other programs that use the device"
        ) from error
    if need.peak > need.free:
        raise InvalidConfig(f"{need}. {_advice(distil, loop, need)}")
    return need


def _need(distil: Distillation, loop: TrainSettings) -> Need:
    weights = sum(weight.numel() * weight.element_size() for weight in distil.student.update.parameters())
    kept = (MOMENTS + bool(loop.ema_decay)) * weights
    ahead = weights * (loop.gradient_accumulation > 1)  # gradients that exist before the last of several passes
    student, teacher = _of_student(distil, kept + ahead), _of_teacher(distil, kept)
    return Need(student, teacher, loop.batch_size, distil.settings.images_per_trajectory, _free(distil.network))


def _free(network: Network) -> int:
    """Return the free bytes of the device, as the host counts them; a newer one includes what it can evict."""
    count = getattr(network.model, "get_free_memory", comfy.model_management.get_free_memory)
    return int(count(network.device))


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

    return forecast(trial, constant)


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
        return forecast(trial, constant)


def _advice(distil: Distillation, loop: TrainSettings, need: Need) -> str:
    """Return the changes of settings that make it fit."""
    advice = []
    if need.teacher.peak(need.images_per_trajectory) > need.free:
        advice.append(_at_most("images_per_trajectory", need.teacher.most_rows(need.free, need.images_per_trajectory)))
    if need.student.peak(need.batch) > need.free:
        advice.append(_at_most("batch_size", need.student.most_rows(need.free, need.batch)))
        if not distil.settings.gradient_checkpointing:
            with checkpointed(distil.network.module):
                thrifty = _of_student(distil, need.student.constant)
            fitting = thrifty.most_rows(need.free, need.batch)
            advice.append(f"turn on gradient_checkpointing and {_at_most('batch_size', fitting)}")
        if distil.student.changes_model and distil.settings.trainable != "lora on modulation":
            advice.append("set trainable to lora on modulation")
    return f"To reduce it, {', or '.join(advice)}"


def _at_most(name: str, rows: int) -> str:
    return f"set {name} to {rows} or less" if rows else f"lower {name} (though even 1 does not fit)"
