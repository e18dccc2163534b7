"""The reflection operator: a strong step down, a weak inversion up, then the final step down.

Each round adds to the state what the strong model predicts beyond the weak one. Z-Sampling and W2SD use the same
operator: the first with two CFG scales, the second with two networks.

Shapes: B batch, `...` any latent shape, S steps. Sigmas follow the host: x = latent + sigma * noise for models that
predict noise, (1 - sigma) * latent + sigma * noise for flow models. `hi` and `lo` are the two sigmas of a step.
Source: Z-Sampling, arXiv 2412.10891, algorithm 1; W2SD, arXiv 2502.00473, algorithm 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidConfig
from ..guidance.flow import Denoiser, Step, euler, per_row, velocity_of

Inversion = Callable[[Denoiser], Step]
"""denoiser -> its inversion Step, (x at lo, lo, hi) -> x at hi; undefined at lo = 0."""
exact: Inversion = euler
"""The inversion that evaluates the network at the noise level of its input."""


def reflected(strong: Step, invert: Step, final: Step | None = None, *, until: float = 0.0, rounds: int = 1) -> Step:
    """Return the Step that reflects, then moves down.

    Args:
        strong: downward Step of the strong model.
        invert: upward Step of the weak model.
        final: last downward Step; None: `strong` (Z-Sampling, and W2SD with one setting for both).
        until: reflect only at noise levels above this; below, the step is `final` alone. A step to sigma 0 never
            reflects, because the inversion is undefined there.
        rounds: reflections per step, 1 or more.
    Returns:
        A Step that evaluates strong and invert `rounds` times and final once.
    Raises:
        InvalidConfig: rounds below 1.
    """
    if rounds < 1:
        raise InvalidConfig(f"rounds is {rounds}; reflect once or more, or use a sampler without reflection")
    last = strong if final is None else final

    def step(x: Tensor, sigma_from: Tensor, sigma_to: Tensor) -> Tensor:
        if bool((sigma_from > until).all()) and bool((sigma_to > 0).all()):
            for _ in range(rounds):
                x = invert(strong(x, sigma_from, sigma_to), sigma_to, sigma_from)
        return last(x, sigma_from, sigma_to)

    return step


def window(sigmas_S: Tensor, reflect_steps: int) -> float:
    """Return the `until` of `reflected` for a number of reflecting steps.

    Args:
        sigmas_S: noise levels [S+1], decreasing.
        reflect_steps: how many of the first steps reflect, 0 to S.
    Raises:
        InvalidConfig: more steps than the schedule has, or a negative number.
    """
    num_steps = len(sigmas_S) - 1
    if not 0 <= reflect_steps <= num_steps:
        raise InvalidConfig(
            f"reflect_steps is {reflect_steps}, the schedule has {num_steps} steps; choose 0 to {num_steps}"
        )
    return float(sigmas_S[reflect_steps])


def upper(denoiser: Denoiser) -> Step:
    """Return an inversion for flow models that evaluates the network at the upper noise level.

    Source: W2SD eq. 9, as in the authors' code.
    """

    def step(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return x + per_row(hi - lo, x) * velocity_of(denoiser(x, hi), x, hi)

    return step


def core(num_steps: int) -> Inversion:
    """Return an inversion for flow models that evaluates the network one linear step below the upper noise level.

    Source: xie-lab-ml/CoRe, SD3.5 pipeline: timestep max(0, t - 1000 / N), independent of the schedule shift.
    """

    def inversion(denoiser: Denoiser) -> Step:
        def step(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
            # (x - denoised) / sigma is undefined at 0 and loses precision close to it
            at = (hi - 1 / num_steps).clamp(min=torch.finfo(x.dtype).eps ** 0.5)
            return x + per_row(hi - lo, x) * velocity_of(denoiser(x, at), x, at)

        return step

    return inversion


def upper_epsilon(denoiser: Denoiser) -> Step:
    """Return an inversion for noise-predicting models that evaluates the network at the upper noise level.

    The authors pass the variance-preserving state unchanged. ComfyUI scales the input by the noise level, so the state
    is rescaled here to give the network the same values.
    Source: W2SD eq. 9, as in the authors' code.
    """

    def step(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return x + per_row(hi - lo, x) * _noise_at_upper(denoiser, x, lo, hi)

    return step


def official(sigmas_S: Tensor) -> Inversion:
    """Return the inversion of the authors' SDXL code for noise-predicting models, which is off by one step.

    Their inverse scheduler treats the state as one at the level below `lo`, moves it up to `lo` and then uses it as one
    at `hi`. The error is small at high noise and large in the last two reflections; it is kept to reproduce their code.

    Args:
        sigmas_S: noise levels of the run [S+1], decreasing.
    Source: xie-lab-ml/Zigzag-Diffusion-Sampling, SDXL pipeline.
    """

    def inversion(denoiser: Denoiser) -> Step:
        def step(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
            below = sigmas_S[int((sigmas_S - lo).abs().argmin()) + 1].to(x)
            eps = _noise_at_upper(denoiser, x, lo, hi)
            x_vp = x * _signal(lo)
            up_vp = _signal(lo) / _signal(below) * (x_vp - below * _signal(below) * eps) + lo * _signal(lo) * eps
            return up_vp / _signal(hi)

        return step

    return inversion


def _signal(sigma: Tensor) -> Tensor:
    """Return the square root of the cumulative alpha at a noise level, for x = latent + sigma * noise."""
    return (1 + sigma**2) ** -0.5


def _noise_at_upper(denoiser: Denoiser, x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    rescaled = x * per_row(_signal(lo) / _signal(hi), x)
    return velocity_of(denoiser(rescaled, hi), rescaled, hi)
