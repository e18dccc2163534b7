"""Rectified flow as a grammar: a Denoiser makes a Step, a Step is folded over sigmas.

Shapes: B batch, `...` any latent shape (C, H, W in images), S steps.
Sign convention: x = (1 - sigma) * latent + sigma * noise, velocity = dx/dsigma = noise - latent.
Source: SD3, arXiv 2403.03206, sections 2 to 3.1; sampler grammar after k-diffusion.
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
    """View sigma so that it broadcasts over the rows of x.

    Args:
        sigma: scalar [] or one value per row [B].
        x: [B,...].
    Returns:
        sigma as [] or [B,1,...,1].
    """
    return sigma if sigma.ndim == 0 else sigma.reshape(-1, *([1] * (x.ndim - 1)))


def velocity_of(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Turn a denoised prediction into a velocity, (x - denoised) / sigma.

    Args:
        denoised: predicted clean latent [B,...].
        x: noised latent at sigma, [B,...].
        sigma: noise level in (0, 1], [] or [B]; at 0 the velocity is undefined.
    Returns:
        Velocity [B,...].
    """
    return (x - denoised) / per_row(sigma, x)


def denoised_of(velocity: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Turn a velocity into a denoised prediction, x - sigma * velocity.

    Args:
        velocity: dx/dsigma, [B,...].
        x: noised latent at sigma, [B,...].
        sigma: noise level in [0, 1], [] or [B].
    Returns:
        Predicted clean latent [B,...].
    """
    return x - per_row(sigma, x) * velocity


def euler(denoiser: Denoiser) -> Step:
    """Make the first-order Step of a denoiser: follow its velocity in a straight line.

    Args:
        denoiser: evaluated once per step, at sigma_from.
    Returns:
        A Step; sigma_from must be above 0.
    """

    def step(x: Tensor, sigma_from: Tensor, sigma_to: Tensor) -> Tensor:
        velocity = velocity_of(denoiser(x, sigma_from), x, sigma_from)
        return x + per_row(sigma_to - sigma_from, x) * velocity

    return step


def sample(
    step: Step, x: Tensor, sigmas_S: Tensor, callback: Callable[[int, Tensor, Tensor], None] | None = None
) -> Tensor:
    """Fold a Step over a schedule.

    Args:
        step: the move between two neighbouring sigmas.
        x: starting latent at sigmas[0], [B,...].
        sigmas_S: noise levels [S+1], decreasing, last usually 0.
        callback: called after each move with (index, sigma reached, x there).
    Returns:
        x at the last sigma, [B,...].
    """
    for index, (sigma_from, sigma_to) in enumerate(pairwise(sigmas_S)):
        x = step(x, sigma_from, sigma_to)
        if callback is not None:
            callback(index, sigma_to, x)
    return x


def secant(x_from: Tensor, x_to: Tensor, sigma_from: Tensor, sigma_to: Tensor) -> Tensor:
    """Return the constant velocity that leads from one state to another.

    It is what a student has to predict at (x_from, sigma_from) for its Euler step to land where a teacher's landed.

    Args:
        x_from, x_to: noised latents at the two levels, [B,...].
        sigma_from: start, [] or [B].
        sigma_to: end, different from sigma_from in every row.
    Returns:
        (x_to - x_from) / (sigma_to - sigma_from), [B,...].
    """
    return (x_to - x_from) / per_row((sigma_to - sigma_from).to(x_from), x_from)


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels towards 1, as the schedule shift of SD3 does.

    Formula: shift * sigma / (1 + (shift - 1) * sigma); 1 / shift undoes it.

    Args:
        sigma: noise levels in [0, 1], any shape.
        shift: positive factor, 1 changes nothing, SD3 uses 3.
    Returns:
        Shifted levels, same shape.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)
