"""Sample a LATENT with a guider, as KSampler does."""

from __future__ import annotations

import time
from collections.abc import Callable

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..errors import InvalidConfig
from .notes import tell
from .reflection.guider import ReflectionGuider
from .reflection.sampler import ReflectionSampler

RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""What newer hosts note on an empty LATENT, to resize it for the model; the result has its final size."""


def schedulers() -> list[str]:
    """Return the names of the host's schedulers."""
    return list(comfy.samplers.KSampler.SCHEDULERS)


def schedule(model, scheduler: str, steps: int, denoise: float) -> Tensor:
    """Return the last steps + 1 noise levels of the host's schedule for a denoise strength; empty at denoise 0.

    Raises:
        InvalidConfig: the scheduler does not exist, or steps is below 1.
    """
    if scheduler not in schedulers():
        raise InvalidConfig(f"scheduler is {scheduler!r}; choose one of {', '.join(schedulers())}")
    if steps < 1:
        raise InvalidConfig(f"steps is {steps}; choose 1 or more")
    if denoise <= 0:
        return torch.FloatTensor([])
    total = steps if denoise > 0.9999 else int(steps / denoise)
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, total)[-(steps + 1) :]


def start_of(latent: dict, model) -> Tensor:
    """Return the samples of a LATENT; those of an empty one in the channels and the size of the model."""
    ratios = {name: latent[name] for name in RATIOS if name in latent}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios)


def with_samples(latent: dict, samples: Tensor) -> dict:
    """Return a LATENT with the result of a run over it."""
    kept = {name: value for name, value in latent.items() if name not in RATIOS}
    return {**kept, "samples": samples.to(comfy.model_management.intermediate_device())}


def run_reflection(guider: ReflectionGuider, sampler: ReflectionSampler, sigmas: Tensor, latent: dict, seed: int):
    """Sample a LATENT with the host's preview and noise mask, and with progress per evaluation.

    Args:
        guider: guider whose prompts are set.
        sampler: the reflection sampler.
        sigmas: noise levels [S+1].
        latent: LATENT; not modified.
        seed: seed of the noise.
    Returns:
        (LATENT, cost line of the run).
    """
    model = guider.model_patcher
    start = start_of(latent, model)
    noise = comfy.sample.prepare_noise(start, seed, latent.get("batch_index"))
    begin = time.perf_counter()
    samples = guider.sample(
        noise, start, sampler, sigmas, denoise_mask=latent.get("noise_mask"),
        callback=_progress(model, sampler.evaluations(sigmas) if len(sigmas) else 0),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
    )  # fmt: skip
    cost = cost_line(guider, max(len(sigmas) - 1, 0), time.perf_counter() - begin)
    tell(cost)
    return with_samples(latent, samples), cost


def _progress(model, evaluations: int) -> Callable:
    """Return the host's preview callback with progress per evaluation instead of per step."""
    show, done = latent_preview.prepare_callback(model, evaluations), iter(range(1 << 62))
    return lambda step, denoised, x, total: show(next(done), denoised, x, evaluations)


def cost_line(guider, steps: int, seconds: float) -> str:
    """Return the cost of a run, e.g. "20 steps, 97 forward passes (4.85 per step), 3.1 s"; its guider counts passes."""
    per_step = guider.passes / max(steps, 1)
    return f"{steps} steps, {guider.passes:g} forward passes ({per_step:.3g} per step), {seconds:.1f} s"
