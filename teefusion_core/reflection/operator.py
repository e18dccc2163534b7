"""Reflection: step down with a strong model, up again with a weak one, then down for good.

What the strong model adds over the weak one stays in the state, once per round. Z-Sampling and W2SD are the
same operator: the first contrasts two guidance scales, the second two networks.

Shapes: B batch, `...` any latent shape, S steps. Sigmas are those of the host: x = latent + sigma * noise for
models that predict noise, (1 - sigma) * latent + sigma * noise for flow models. `hi`, `lo`: the ends of a step.
Source: Z-Sampling, arXiv 2412.10891, algorithm 1; W2SD, arXiv 2502.00473, algorithm 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InvalidConfig
from ..guidance.flow import Denoiser, Step, euler, per_row, velocity_of

Inversion = Callable[[Denoiser], Step]
"""Makes the upward Step of a denoiser, (x at lo, lo, hi) -> x at hi; undefined at lo = 0."""


def reflected(strong: Step, invert: Step, final: Step | None = None, *, until: float = 0.0, rounds: int = 1) -> Step:
    """Make the Step that reflects before it moves.

    Args:
        strong: downward move whose effect is kept.
        invert: upward move of the weak model.
        final: the move that ends the step; None: `strong` (Z-Sampling, and W2SD with one setting for both).
        until: reflect only from noise levels above this; at or below it the step is `final` alone. A step that
            ends at sigma 0 never reflects, since nothing can be inverted from there.
        rounds: reflections per step, 1 or more.
    Returns:
        A Step that evaluates strong and invert `rounds` times, final once.
    Raises:
        InvalidConfig: rounds below 1.
    """
    if rounds < 1:
        raise InvalidConfig(f"rounds is {rounds}; reflect once or more, or use the plain sampler")
    last = strong if final is None else final

    def step(x: Tensor, sigma_from: Tensor, sigma_to: Tensor) -> Tensor:
        if bool((sigma_from > until).all()) and bool((sigma_to > 0).all()):
            for _ in range(rounds):
                x = invert(strong(x, sigma_from, sigma_to), sigma_to, sigma_from)
        return last(x, sigma_from, sigma_to)

    return step


def window(sigmas_S: Tensor, reflect_steps: int) -> float:
    """Turn a number of steps from the start into the `until` of `reflected`.

    Args:
        sigmas_S: noise levels [S+1], decreasing.
        reflect_steps: how many of the first steps reflect, 0 to S.
    Raises:
        InvalidConfig: more steps than the schedule has, or fewer than none.
    """
    num_steps = len(sigmas_S) - 1
    if not 0 <= reflect_steps <= num_steps:
        raise InvalidConfig(f"reflect_steps is {reflect_steps}, the schedule has {num_steps} steps; choose 0 to that")
    return float(sigmas_S[reflect_steps])


def exact(denoiser: Denoiser) -> Step:
    """Invert with the network at the noise level of the state it is given."""
    return euler(denoiser)


def upper(denoiser: Denoiser) -> Step:
    """Invert a flow model with the network at the upper noise level, though the state is at the lower.

    Source: W2SD eq. 9, as its authors run it.
    """

    def step(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return x + per_row(hi - lo, x) * velocity_of(denoiser(x, hi), x, hi)

    return step


def core(num_steps: int) -> Inversion:
    """Invert a flow model with the network one linear step below the upper noise level.

    Source: xie-lab-ml/CoRe, SD3.5 pipeline: timestep max(0, t - 1000 / N) whatever the schedule's shift.
    """

    def inversion(denoiser: Denoiser) -> Step:
        def step(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
            # (x - denoised) / sigma has no value at 0; below this level rounding costs more than the level is off
            at = (hi - 1 / num_steps).clamp(min=torch.finfo(x.dtype).eps ** 0.5)
            return x + per_row(hi - lo, x) * velocity_of(denoiser(x, at), x, at)

        return step

    return inversion


def upper_epsilon(denoiser: Denoiser) -> Step:
    """Invert a noise-predicting model with the network at the upper noise level.

    The authors hand the network the variance-preserving state unchanged. Here the network scales its input by its own
    noise level, hence the state is rescaled so that it sees the same numbers.
    Source: W2SD eq. 9, as its authors run it.
    """

    def step(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return x + per_row(hi - lo, x) * _noise_at_upper(denoiser, x, lo, hi)

    return step


def official(sigmas_S: Tensor) -> Inversion:
    """Invert a noise-predicting model as the authors' SDXL code does, one step of alphas off.

    Their inverse scheduler takes the state for one at the level below `lo`, moves it up to `lo`, then calls it one at
    `hi`. Harmless at high noise, plainly wrong in the last two reflections; here for parity.

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
    """Square root of the cumulative alpha at a noise level of a variance-exploding state."""
    return (1 + sigma**2) ** -0.5


def _noise_at_upper(denoiser: Denoiser, x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    seen = x * per_row(_signal(lo) / _signal(hi), x)
    return velocity_of(denoiser(seen, hi), seen, hi)
