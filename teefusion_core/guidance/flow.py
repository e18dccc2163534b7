"""Rectified-flow sampling by Euler steps along a schedule of noise levels.

Shapes: B batch, `...` any latent shape (C, H, W in images), S steps.
Sign convention: x = (1 - sigma) * latent + sigma * noise, velocity = dx/dsigma = noise - latent.
Source: SD3, arXiv 2403.03206, sections 2 to 3.1; sampler interface after k-diffusion.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x [B,...], sigma) -> denoised [B,...]; sigma is a scalar tensor or one value per row [B]."""

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x at sigma_from, sigma_from, sigma_to) -> x at sigma_to; sigmas as in Denoiser, up or down."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B,...], sigma [B]) -> velocity [B,...]."""


def per_row(sigma: Tensor, x: Tensor) -> Tensor:
    """Reshape sigma so that it broadcasts over x.

    Args:
        sigma: scalar [] or one value per row [B].
        x: [B,...].
    Returns:
        sigma as [] or [B,1,...,1].
    """
    return sigma if sigma.ndim == 0 else sigma.reshape(-1, *([1] * (x.ndim - 1)))


def velocity_of(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Convert a denoised prediction to a velocity, (x - denoised) / sigma.

    Args:
        denoised: predicted clean latent [B,...].
        x: noised latent at sigma, [B,...].
        sigma: noise level in (0, 1], [] or [B]; at 0 the velocity is undefined.
    Returns:
        Velocity [B,...].
    """
    return (x - denoised) / per_row(sigma, x)


def euler_along(velocity: Velocity) -> Step:
    """Return the Euler Step of a velocity field, x + (sigma_to - sigma_from) * velocity(x, sigma_from)."""

    def step(x: Tensor, sigma_from: Tensor, sigma_to: Tensor) -> Tensor:
        return x + per_row(sigma_to - sigma_from, x) * velocity(x, sigma_from)

    return step


def euler(denoiser: Denoiser) -> Step:
    """Return the Euler Step of a denoiser, which is evaluated once per step, for sigma_from above 0."""
    return euler_along(lambda x, sigma: velocity_of(denoiser(x, sigma), x, sigma))


def sample(
    step: Step, x: Tensor, sigmas_S: Tensor, callback: Callable[[int, Tensor, Tensor], None] | None = None
) -> Tensor:
    """Apply a Step along a schedule.

    Args:
        step: moves x from one sigma to the next.
        x: starting latent at sigmas[0], [B,...].
        sigmas_S: noise levels [S+1], decreasing, last usually 0.
        callback: called after each step with (index, sigma reached, x there).
    Returns:
        x at the last sigma, [B,...].
    """
    for index, (sigma_from, sigma_to) in enumerate(pairwise(sigmas_S)):
        x = step(x, sigma_from, sigma_to)
        if callback is not None:
            callback(index, sigma_to, x)
    return x


def secant(x_from: Tensor, x_to: Tensor, sigma_from: Tensor, sigma_to: Tensor) -> Tensor:
    """Return the constant velocity from one state to another.

    A student that predicts it at (x_from, sigma_from) reaches the teacher's x_to in one Euler step.

    Args:
        x_from, x_to: noised latents at the two levels, [B,...].
        sigma_from: start, [] or [B].
        sigma_to: end, different from sigma_from in every row.
    Returns:
        (x_to - x_from) / (sigma_to - sigma_from), [B,...].
    """
    return (x_to - x_from) / per_row((sigma_to - sigma_from).to(x_from), x_from)
