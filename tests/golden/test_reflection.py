"""Stored trajectories of Z-Sampling with W2SD against the reflection operator, at every step."""

from pathlib import Path

import numpy as np
import pytest
import torch
from literal_flow import denoised_of

from teefusion_core.guidance.cfg import guided
from teefusion_core.guidance.flow import euler, sample
from teefusion_core.reflection.operator import core, exact, official, reflected, upper, upper_epsilon, window

DATA = Path(__file__).resolve().parent / "data"
LIMIT = 1e-5
BIASES = (0.30, -0.10)
"""Of the toy network, with prompt, without; the stored runs differ in guidance scale alone."""


def flow_denoiser(cfg):
    """v(x, sigma) = tanh(0.8 x + bias + 0.5 sigma), guided."""

    def denoiser(x, sigma):
        cond, uncond = (torch.tanh(0.8 * x + bias + 0.5 * sigma) for bias in BIASES)
        return denoised_of(guided(cond, uncond, cfg), x, sigma)

    return denoiser


def noise_denoiser(cfg, timestep_of):
    """eps(x, t) = tanh(0.8 x + bias + 0.0005 t) on the variance-preserving state, guided."""

    def denoiser(x, sigma):
        x_vp, t = x / (1 + sigma**2) ** 0.5, timestep_of(sigma)
        cond, uncond = (torch.tanh(0.8 * x_vp + bias + 0.0005 * t) for bias in BIASES)
        return denoised_of(guided(cond, uncond, cfg), x, sigma)

    return denoiser


def trajectory(step, x, sigmas):
    states = [x]
    sample(step, x, sigmas, lambda index, sigma, state: states.append(state))
    return torch.stack(states)


def worst(found, wanted):
    """Largest relative distance over the steps."""
    gaps = (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    return float(gaps.max())


@pytest.mark.parametrize("convention", ["exact", "upper", "core"])
@pytest.mark.parametrize(
    ("name", "strong", "weak", "final"), [("z_3.5_0.5", 3.5, 0.5, 3.5), ("w2sd_3.5_1_final4", 3.5, 1.0, 4.0)],
)  # fmt: skip
def test_flow(name, strong, weak, final, convention, record_property):
    stored = np.load(DATA / "reflection_flow.npz")
    sigmas, x = torch.from_numpy(stored["sigmas"]), torch.from_numpy(stored["x_init"])
    inversion = {"exact": exact, "upper": upper, "core": core(len(sigmas) - 1)}[convention]
    down, last = euler(flow_denoiser(strong)), euler(flow_denoiser(final))
    found = trajectory(reflected(down, inversion(flow_denoiser(weak)), last), x, sigmas)
    gap = worst(found, torch.from_numpy(stored[f"{name}/{convention}"]).double())
    record_property("gap", gap)
    assert gap < LIMIT


@pytest.fixture(scope="module")
def ddim():
    """Stored data, sigmas of the schedule, start, the map from sigma to timestep."""
    stored = np.load(DATA / "reflection_ddim.npz")
    alphas, timesteps = torch.from_numpy(stored["alphas_cumprod"]), torch.from_numpy(stored["timesteps"])
    levels = torch.cat([alphas[timesteps.long()], alphas[:1]])
    sigmas = ((1 - levels) / levels).sqrt()
    return stored, sigmas, torch.from_numpy(stored["x_init"]) / levels[0].sqrt(), levels, timesteps


@pytest.mark.parametrize("convention", ["exact", "upper", "official", "none"])
@pytest.mark.parametrize(("name", "cfg", "weak"), [("z_5.5_0", 5.5, 0.0), ("w2sd_cfg_5.5_1", 5.5, 1.0)])
def test_noise_prediction(name, cfg, weak, convention, ddim, record_property):
    stored, sigmas, x, levels, timesteps = ddim

    def timestep_of(sigma):
        return timesteps[int((sigmas[:-1] - sigma).abs().argmin())]

    down = euler(noise_denoiser(cfg, timestep_of))
    step, key = down, "ddim_cfg5.5"
    if convention != "none":
        inversion = {"exact": exact, "upper": upper_epsilon, "official": official(sigmas)}[convention]
        up = inversion(noise_denoiser(weak, timestep_of))
        step, key = reflected(down, up, until=window(sigmas, len(sigmas) - 2)), f"{name}/{convention}"
    found = trajectory(step, x, sigmas) * levels.sqrt().reshape(-1, 1, 1, 1, 1)
    gap = worst(found, torch.from_numpy(stored[key]))
    record_property("gap", gap)
    assert gap < LIMIT
