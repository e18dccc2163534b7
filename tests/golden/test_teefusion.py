"""Stored outputs of the published method against our text-book twin, then against the pack."""

import literal
import pytest
import torch
from golden_weights import CASES, EULER8_SIGMAS, inputs, relative, state_dict, stored
from literal_flow import denoised_of

from teefusion_core.guidance.flow import euler, sample
from teefusion_core.guidance.fusion import EXACT, guidance_rows, guidance_term, guidance_timestep, sinusoid

GAIN = 1 / 256


def core_term(weights, pooled_BP, null_BP, w):
    return guidance_term(
        pooled_BP, null_BP, guidance_timestep(guidance_rows(w), precision=EXACT),
        time_embed=lambda t_B: _mlp(weights, "time_text_embed.timestep_embedder", sinusoid(t_B)),
        pooled_embed=lambda p_BP: _mlp(weights, "time_text_embed.text_embedder", p_BP), gain=GAIN,
    )  # fmt: skip


def _mlp(weights, name, x):
    hidden = torch.nn.functional.linear(x, weights[f"{name}.linear_1.weight"], weights[f"{name}.linear_1.bias"])
    return torch.nn.functional.linear(
        torch.nn.functional.silu(hidden), weights[f"{name}.linear_2.weight"], weights[f"{name}.linear_2.bias"]
    )


@pytest.fixture(scope="module", params=CASES)
def case(request):
    name = request.param
    return CASES[name], state_dict(name), inputs(name), stored(name)


def literal_velocity(weights, data, x, sigma, extra_B):
    rows = zip(x, data["context"], data["pooled"], extra_B, strict=True)
    return torch.stack([literal.velocity(weights, x, sigma, c, p, e) for x, c, p, e in rows])


def test_the_core_term_equals_the_literal_one(case):
    config, weights, data, _ = case
    fast = core_term(weights, data["pooled"], data["pooled_null"], config["w"])
    timestep = torch.tensor(1000.0 * config["w"])
    slow = [literal.term(weights, p, data["pooled_null"][0], timestep, GAIN) for p in data["pooled"]]
    assert relative(fast, torch.stack(slow)) < 1e-5


def test_velocity_without_the_term(case):
    config, weights, data, expected = case
    extra = torch.zeros(config["batch"])
    assert (
        relative(literal_velocity(weights, data, data["x"], config["sigma"], extra), expected["velocity_unfused"])
        < 1e-5
    )


def test_velocity_with_the_term(case):
    config, weights, data, expected = case
    extra = core_term(weights, data["pooled"], data["pooled_null"], config["w"])
    assert relative(literal_velocity(weights, data, data["x"], config["sigma"], extra), expected["velocity"]) < 1e-5


def test_eight_euler_steps(case):
    config, weights, data, expected = case
    extra = core_term(weights, data["pooled"], data["pooled_null"], config["w"])

    def denoiser(x, sigma):
        return denoised_of(literal_velocity(weights, data, x, float(sigma), extra), x, sigma)

    assert relative(sample(euler(denoiser), data["x"], torch.tensor(EULER8_SIGMAS)), expected["euler8"]) < 1e-4
