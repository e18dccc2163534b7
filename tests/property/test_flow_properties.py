"""Laws of flow with guidance over random numbers."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from literal_flow import denoised_of

from teefusion_core.guidance.cfg import effective_guidance, guided
from teefusion_core.guidance.flow import euler, sample, secant, velocity_of

levels = st.floats(0.01, 1.0)
seeds = st.integers(0, 2**31)


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level(value):
    return torch.tensor(value, dtype=torch.float64)


@given(seeds, levels)
def test_velocity_round_trip(seed, sigma):
    x, velocity = randn(seed, 2, 3, 4)
    torch.testing.assert_close(velocity_of(denoised_of(velocity, x, level(sigma)), x, level(sigma)), velocity)


@given(seeds, st.lists(levels, min_size=2, max_size=6, unique_by=lambda s: round(s, 2)))
def test_a_straight_flow_does_not_depend_on_the_grid(seed, sigmas):
    x, velocity = randn(seed, 2, 2, 3)
    grid = torch.tensor(sorted(sigmas, reverse=True), dtype=torch.float64)
    out = sample(euler(lambda x, sigma: denoised_of(velocity, x, sigma)), x, grid)
    torch.testing.assert_close(out, x + (grid[-1] - grid[0]) * velocity)


@given(seeds, levels, st.floats(0, 0.009))
def test_the_secant_lands_on_the_teacher(seed, sigma_from, sigma_to):
    x = randn(seed, 3, 2)
    a, b = level(sigma_from), level(sigma_to)

    def teacher(x, a, b):
        return torch.tanh(x) * (b - a) + x

    torch.testing.assert_close(x + (b - a) * secant(x, teacher(x, a, b), a, b), teacher(x, a, b))


@given(seeds, st.floats(-2, 20))
def test_effective_guidance_inverts_guided(seed, scale):
    cond, uncond = randn(seed, 2, 3, 5)
    got = effective_guidance(guided(cond, uncond, scale), cond, uncond)
    torch.testing.assert_close(got, torch.full_like(got, scale), rtol=1e-9, atol=1e-9)
