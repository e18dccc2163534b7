"""Networks of the published sizes without weights, and the memory that training them takes."""

from typing import Any

import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch

from lab.real_size.layouts import CHANNELS, CONTEXT_WIDTH, POOLED_WIDTH, configuration
from lab.real_size.runs import TOKENS
from teefusion_core.comfy_host.prompts.encoded import Prompts
from teefusion_core.comfy_host.training.distillation import Distillation
from teefusion_core.comfy_host.training.memory_check import check_memory
from teefusion_core.comfy_host.training.teacher import Teacher
from teefusion_core.training.loop_settings import TrainSettings
from teefusion_core.training.memory_forecast import shapes_of
from teefusion_core.training.settings import DistillSettings

from ._cost import now

PIXELS = 8
"""Pixels per latent cell along an axis."""


class Weightless(comfy.model_patcher.ModelPatcher):
    """A MODEL whose weights have a shape and no data, so that there is nothing to load."""

    def partially_load(self, *args: object, **kwargs: object) -> int:
        return 0

    def detach(self, *args: object, **kwargs: object) -> Any:
        return self.model


def published(name: str, dtype: str = "bfloat16") -> Weightless:
    """Return a MODEL of a published network."""
    found = comfy.supported_models.SD3(configuration(name))
    stored = getattr(torch, dtype)
    found.set_inference_dtype(stored, torch.bfloat16 if stored.itemsize == 1 else None)
    cpu = torch.device("cpu")
    with shapes_of():
        return Weightless(found.get_model({}, device=cpu), cpu, cpu)


def forecast(model: Weightless, *, checkpointing: bool, size: int, batch: int) -> dict[str, Any]:
    """Return the bytes of the weights and of the training beside them, and the seconds of the forecast."""
    prompts = Prompts(
        [[[torch.zeros(1, TOKENS, CONTEXT_WIDTH), {"pooled_output": torch.zeros(1, POOLED_WIDTH)}]]], "prompt"
    )
    settings = DistillSettings(gradient_checkpointing=checkpointing, images_per_trajectory=batch)
    teacher = Teacher(comfy.samplers.CFGGuider(model), comfy.samplers.sampler_object("euler"))
    latent = (CHANNELS, size // PIXELS, size // PIXELS)
    distil = Distillation(model, teacher, prompts, prompts, settings, latent_CHW=latent)
    loop = TrainSettings(steps=2, batch_size=batch, learning_rate=1e-4)
    with distil.in_training():
        start = now()
        need = check_memory(distil, loop, free=1 << 50)
        seconds = now() - start
    assert need is not None
    weights = sum(weight.nbytes for weight in model.model.diffusion_model.parameters())
    trained = sum(weight.nbytes for weight in distil.student.update.parameters())
    sizes = {"weights": weights, "trained": trained, "student": need.student, "teacher": need.teacher}
    return {**sizes, "total": weights + trained + need.peak, "seconds": round(seconds, 1)}
