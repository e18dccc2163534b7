"""Reflection on fields whose answers are known."""

import pytest
import torch
from literal_flow import denoised_of

from teefusion_core.guidance.flow import euler, sample, secant
from teefusion_core.reflection.operator import core, exact, reflected, upper, window

SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)


def constant(value):
    return lambda x, sigma: denoised_of(torch.full_like(x, value), x, sigma)


def counting(denoiser, seen):
    def counted(x, sigma):
        seen.append(float(sigma))
        return denoiser(x, sigma)

    return counted


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_gap_stays_once_per_round(x, rounds):
    strong, weak = 0.7, 0.2
    step = reflected(euler(constant(strong)), exact(constant(weak)), rounds=rounds)
    velocity = secant(x, step(x, SIGMAS[1], SIGMAS[2]), SIGMAS[1], SIGMAS[2])
    assert torch.allclose(velocity, torch.full_like(x, strong + rounds * (strong - weak)), atol=1e-12)


@pytest.mark.parametrize(("reflect_steps", "reflections"), [(0, 0), (1, 1), (3, 3), (4, 3)])
def test_the_window_counts_steps_from_the_start(x, reflect_steps, reflections):
    down, up = [], []
    strong, weak = counting(constant(0.7), down), counting(constant(0.1), up)
    sample(reflected(euler(strong), exact(weak), until=window(SIGMAS, reflect_steps)), x, SIGMAS)
    assert len(up) == reflections and len(down) == 4 + reflections
    assert up == [float(s) for s in SIGMAS[1 : reflections + 1]]


def test_where_the_network_is_looked_at(x):
    for inversion, wanted in ((exact, 0.5), (upper, 0.8), (core(4), 0.55)):
        seen = []
        inversion(counting(constant(0.1), seen))(x, SIGMAS[2], SIGMAS[1])
        assert seen == pytest.approx([wanted])


def test_a_final_of_its_own(x):
    step = reflected(euler(constant(0.7)), exact(constant(0.2)), euler(constant(2.0)))
    velocity = secant(x, step(x, SIGMAS[0], SIGMAS[1]), SIGMAS[0], SIGMAS[1])
    assert torch.allclose(velocity, torch.full_like(x, 2.0 + 0.5), atol=1e-12)
