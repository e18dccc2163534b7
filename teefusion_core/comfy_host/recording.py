"""A GUIDER with a SAMPLER, run once, with all that it visited.

Shapes: B batch, C H W latent, S steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
from torch import Tensor, zeros_like

from ..errors import InvalidConfig
from ..guidance.flow import velocity_of


@dataclass(frozen=True)
class Recording:
    """What a run went through, in the model's own latent space."""

    states: list[Tensor]
    """x [B,C,H,W] at every noise level, S+1 of them."""
    predicted: list[Tensor]
    """The velocity that was predicted last in each step, S of them."""
    samples: Tensor
    """The result as a LATENT has it."""


def record(
    guider, sampler, noise_BCHW: Tensor, latent_BCHW: Tensor, sigmas_S: Tensor, *,
    mask: Tensor | None = None, seed: int = 0, on_step: Callable | None = None, silent: bool = True,
) -> Recording:  # fmt: skip
    """Sample as the host does; cancel is asked for at every report of the sampler.

    Args:
        guider, sampler: GUIDER with SAMPLER, prompts and scales set.
        noise_BCHW: what the picture is noised with to sigmas[0].
        latent_BCHW: the picture as a LATENT has it; zeros for none.
        sigmas_S: noise levels [S+1], decreasing, S at least 1.
        mask: `noise_mask` of the LATENT.
        seed: for samplers that draw.
        on_step: the host's callback (step, denoised, x, total).
        silent: without a bar in the terminal.
    Raises:
        InvalidConfig: a sampler that does not report its steps.
    """
    visited: dict[int, Tensor] = {}
    predicted: dict[int, Tensor] = {}

    def report(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        # a sampler may report one step several times, the first is where the step begins
        visited.setdefault(step, x.detach().clone())
        predicted[step] = velocity_of(denoised.detach(), x.detach(), sigmas_S[step].to(x))
        if on_step is not None:
            on_step(step, denoised, x, total)

    samples = guider.sample(
        noise_BCHW, latent_BCHW, sampler, sigmas_S, denoise_mask=mask, callback=report, disable_pbar=silent, seed=seed
    )
    base = guider.model_patcher.model
    last = base.process_latent_in(samples)
    if float(sigmas_S[-1]) > 0:
        last = base.model_sampling.noise_scaling(sigmas_S[-1].to(last), zeros_like(last), last)
    if len(visited) != len(sigmas_S) - 1:
        raise InvalidConfig(
            f"the sampler reports {len(visited)} states in {len(sigmas_S) - 1} steps, each one is needed; connect a "
            "sampler that goes step by step, such as euler or heun"
        )
    order = sorted(visited)
    states = [*(visited[step].to(last) for step in order), last]
    return Recording(states, [predicted[step].to(last) for step in order], samples)
