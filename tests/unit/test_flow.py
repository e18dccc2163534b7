"""The flow grammar on fields with known answers."""

import pytest
import torch
from literal_flow import denoised_of, shifted

from teefusion_core.guidance.flow import euler, per_row, sample, secant

SIGMAS = torch.linspace(1.0, 0.0, 9, dtype=torch.float64)


def linear_field(x, sigma):
    """Denoiser of dx/dsigma = x, whose flow is x * exp(sigma_to - sigma_from)."""
    return denoised_of(x, x, sigma)


def test_euler_converges_at_first_order():
    x = torch.ones(1, 1, dtype=torch.float64)
    exact = torch.exp(torch.tensor(-0.9, dtype=torch.float64))
    errors = []
    for steps in (40, 80):
        sigmas = torch.linspace(1.0, 0.1, steps + 1, dtype=torch.float64)
        errors.append(float((sample(euler(linear_field), x, sigmas) - exact).abs()))
    assert 1.9 < errors[0] / errors[1] < 2.1


def test_rows_may_stand_at_different_sigmas():
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    a_B, b_B = torch.tensor([0.9, 0.5, 0.3]).double(), torch.tensor([0.7, 0.2, 0.0]).double()
    step = euler(linear_field)
    alone = torch.cat([step(x[i : i + 1], a_B[i], b_B[i]) for i in range(3)])
    torch.testing.assert_close(step(x, a_B, b_B), alone)


def test_an_euler_student_on_the_secant_lands_where_the_teacher_lands():
    def teacher(x, a, b):
        return x * torch.exp(per_row(b - a, x)) + 0.1 * x.square()

    x, a, b = torch.randn(2, 5).double(), torch.tensor([0.8, 0.5]).double(), torch.tensor([0.6, 0.1]).double()
    target = secant(x, teacher(x, a, b), a, b)
    student = euler(lambda x, sigma: denoised_of(target, x, sigma))
    torch.testing.assert_close(student(x, a, b), teacher(x, a, b))


def test_sample_reports_each_move_leaving_its_input_alone():
    x, seen = torch.ones(1, 2, dtype=torch.float64), []
    out = sample(euler(linear_field), x, SIGMAS, lambda i, sigma, x: seen.append((i, float(sigma), x)))
    assert [(i, sigma) for i, sigma, _ in seen] == list(enumerate(SIGMAS[1:].tolist()))
    assert torch.equal(seen[-1][2], out) and torch.equal(x, torch.ones_like(x))


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_shift_keeps_the_ends_with_a_known_middle(shift):
    sigma = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(shifted(sigma, shift), torch.tensor([0.0, shift / (1 + shift), 1.0]).double())
