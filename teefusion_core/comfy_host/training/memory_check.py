"""Forecast the memory of a training run before its first step.

Shapes: B rows, C H W latent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import comfy.model_management
import torch
from torch import nn

from ...errors import InvalidConfig
from ...files.output_file import GIB
from ...training.gradient_checkpointing import checkpointed
from ...training.loop_settings import TrainSettings
from ...training.memory_forecast import LiveMemory, most_rows, passes_without_data, peak_of
from ...training.targets import Example, replay_loss
from ..notes import tell
from .distillation import Distillation
from .network import Network

log = logging.getLogger(__name__)
MOMENTS = 2
"""Number of tensors that AdamW stores for each trained one."""
KERNELS = 80 * 2**20
"""Bytes of kernels and of their scratch memory in a process that has not trained before, as measured on a CPU with
networks of 10 million to 2.5 billion parameters."""


@dataclass(frozen=True)
class Need:
    """The memory that training needs beside model, text encoders and trained weights, and the free memory, in bytes.

    Attributes:
        student, teacher: what a training step and a trajectory need; both include what stays between steps.
        free: free bytes of the device.
    """

    student: int
    teacher: int
    free: int

    @property
    def peak(self) -> int:
        """The largest number of bytes at once."""
        return max(self.student, self.teacher)

    def __str__(self) -> str:
        return f"training needs about {self.peak / GIB:.2f} GiB beside the model; {self.free / GIB:.2f} GiB are free"


def check_memory(distil: Distillation, loop: TrainSettings, free: int | None = None) -> Need | None:
    """Forecast the memory of a training run whose update is applied, without the arithmetic of the network.

    Args:
        distil, loop: the run.
        free: free bytes; None asks the host.
    Returns:
        The forecast, or None if the network cannot run without data, e.g. because of a kernel of another pack.
    Raises:
        InvalidConfig: training needs more than the free memory; the message has settings that fit.
    """
    stays = _stays(distil, loop)
    try:
        student = student_peak(distil, loop.batch_size) + sum(stays)
        teacher = teacher_peak(distil) + stays[0]
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:
        log.debug("no memory forecast", exc_info=error)
        tell(f"the memory of this training cannot be forecast ({type(error).__name__}); it starts without")
        return None
    free = _free(distil.network, max(student, teacher)) if free is None else free
    need = Need(student, teacher, free)
    if need.peak > need.free:
        raise InvalidConfig(f"{need}. {_advice(distil, loop, need)}")
    return need


def _stays(distil: Distillation, loop: TrainSettings) -> tuple[int, int]:
    """Return the bytes of optimizer, average and kernels, and of gradients before the last pass of a step."""
    weights = sum(weight.numel() * weight.element_size() for weight in distil.student.update.parameters())
    return KERNELS + (MOMENTS + bool(loop.ema_decay)) * weights, weights * (loop.gradient_accumulation > 1)


def _free(network: Network, needed: int) -> int:
    """Return the free bytes of the device after the host has evicted other models, such as text encoders."""
    management, model = comfy.model_management, network.model
    count = getattr(model, "get_free_memory", management.get_free_memory)
    if count(network.device) < needed:
        ours = [loaded for loaded in management.current_loaded_models if model.is_clone(loaded.model)]
        management.free_memory(needed, network.device, keep_loaded=ours)
    return int(count(network.device))


def student_peak(distil: Distillation, rows: int) -> int:
    """Return the peak bytes of a training step with this batch size, of the longest prompt."""
    longest = max(range(len(distil.positives)), key=distil.positives.tokens)

    def step() -> None:
        device = distil.network.device
        zero_BCHW = torch.zeros(rows, *distil.latent_CHW, device=device)
        half_B = torch.full((rows,), 0.5, device=device)
        example = Example(
            x_BCHW=zero_BCHW, sigma_B=half_B, w_B=half_B, prompt_B=half_B, null_B=half_B,
            target_BCHW=zero_BCHW.clone(), guidance_BCHW=zero_BCHW.clone(), weight_B=half_B,
        )  # fmt: skip
        velocity = distil.velocity([longest] * rows, [0] * rows, example.w_B)
        with distil.precision():
            loss = replay_loss(velocity, example, distil.settings.guidance_error_weight)
        loss.backward()

    return peak_of(step, distil.network.device, distil.network.module, distil.student.update)


def teacher_peak(distil: Distillation, images: int | None = None) -> int:
    """Return the peak bytes of a trajectory, with another number of images than in the settings if one is given."""
    with LiveMemory(distil.network.device) as memory, ExitStack() as stack:
        for network in _networks(distil):
            stack.enter_context(passes_without_data(network, memory))
        distil.trajectory(0, images)
    return memory.peak


def _networks(distil: Distillation) -> Iterator[nn.Module]:
    """Yield each diffusion model that the teacher runs, once."""
    found = [value for value in vars(distil.teacher.guider).values() if hasattr(value, "get_nested_additional_models")]
    models = [distil.network.model, *found, *(m for one in found for m in one.get_nested_additional_models())]
    yield from {id(m.model.diffusion_model): m.model.diffusion_model for m in models}.values()


def _advice(distil: Distillation, loop: TrainSettings, need: Need) -> str:
    """Return the changes of settings that make it fit."""
    advice, stays = [], _stays(distil, loop)

    def fitting(rows: int) -> int:
        return student_peak(distil, rows) + sum(stays)

    def images(rows: int) -> int:
        return teacher_peak(distil, rows) + stays[0]

    if need.teacher > need.free:
        rows = most_rows(images, need.free, distil.settings.images_per_trajectory)
        advice.append(_at_most("images_per_trajectory", rows))
    if need.student > need.free:
        advice.append(_at_most("batch_size", most_rows(fitting, need.free, loop.batch_size)))
        if not distil.settings.gradient_checkpointing:
            with checkpointed(distil.network.module):
                rows = most_rows(fitting, need.free, loop.batch_size)
            advice.append(f"turn on gradient_checkpointing and {_at_most('batch_size', rows)}")
        if distil.student.changes_model and distil.settings.trainable != "lora on modulation":
            advice.append("set trainable to lora on modulation")
    return f"To reduce it, {', or '.join(advice)}"


def _at_most(name: str, rows: int) -> str:
    return f"set {name} to {rows} or less" if rows else f"lower {name} (though even 1 does not fit)"
