"""Sampling that records every state.

Shapes: B batch, C H W latent, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor, zeros_like

from ..errors import InvalidConfig
from ..guidance.flow import velocity_of


def count_rows(model_options: dict, key: str, counted: Callable[[int], None]) -> None:
    """Call a function with the number of rows of each forward pass of a run.

    Args:
        model_options: of the run; a wrapper is added.
        key: of the wrapper.
        counted: called before each pass.
    """

    def count(executor, x, *args, **kwargs):
        counted(len(x))
        return executor(x, *args, **kwargs)

    add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, count, model_options, is_model_options=True)


@dataclass(frozen=True)
class Recording:
    """The states of a run in the latent space of the model."""

    states: list[Tensor]
    """x [B,C,H,W] at every noise level, S+1 of them."""
    predicted: list[Tensor]
    """Last predicted velocity of each step, S of them."""
    samples: Tensor
    """The result, scaled as in a LATENT."""


def record(
    guider, sampler, noise_BCHW: Tensor, latent_BCHW: Tensor, sigmas_S: Tensor, *,
    mask: Tensor | None = None, seed: int = 0, on_step: Callable | None = None, silent: bool = True,
    start_BCHW: Tensor | None = None,
) -> Recording:  # fmt: skip
    """Sample with the host and record all states; the run can be cancelled at every callback.

    Args:
        guider, sampler: GUIDER (with prompts and scales set) and SAMPLER.
        noise_BCHW: noise of level sigmas[0].
        latent_BCHW: start image as in a LATENT; zeros for none.
        sigmas_S: noise levels [S+1], decreasing, S at least 1.
        mask: `noise_mask` of the LATENT.
        seed: for samplers that add noise.
        on_step: the host's callback (step, denoised, x, total).
        silent: whether to hide the progress bar in the terminal.
        start_BCHW: state at sigmas[0], bit by bit, instead of the noised image.
    Raises:
        InvalidConfig: the sampler does not report all steps.
    """
    visited: dict[int, Tensor] = {}
    predicted: dict[int, Tensor] = {}

    def report(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        # a sampler may report a step several times; the first report has the state at its start
        visited.setdefault(step, x.detach().clone())
        predicted[step] = velocity_of(denoised.detach(), x.detach(), sigmas_S[step].to(x))
        if on_step is not None:
            on_step(step, denoised, x, total)

    options = {"denoise_mask": mask, "callback": report, "disable_pbar": silent, "seed": seed}
    with _starting_from(start_BCHW, guider.model_patcher.get_model_object("model_sampling")):
        samples = guider.sample(noise_BCHW, latent_BCHW, sampler, sigmas_S, **options)
    base = guider.model_patcher.model
    last = base.process_latent_in(samples)
    if float(sigmas_S[-1]) > 0:
        last = base.model_sampling.noise_scaling(sigmas_S[-1].to(last), zeros_like(last), last)
    if len(visited) != len(sigmas_S) - 1:
        raise InvalidConfig(
            f"the sampler reports {len(visited)} states in {len(sigmas_S) - 1} steps; connect a sampler that reports "
            "every step, such as euler or heun"
        )
    order = sorted(visited)
    states = [*(visited[step].to(last) for step in order), last]
    return Recording(states, [predicted[step].to(last) for step in order], samples)


@contextmanager
def _starting_from(start_BCHW: Tensor | None, sampling) -> Iterator[None]:
    """Replace the noised image by a state inside the block.

    Dividing a state by sigma and having the host multiply again can round an element the other way, which half
    precision inside the network turns into a difference of several percent.
    """
    if start_BCHW is None:
        yield
        return
    sampling.noise_scaling = lambda sigma, noise, latent_image, max_denoise=False: start_BCHW.to(noise, copy=True)
    try:
        yield
    finally:
        del sampling.noise_scaling
