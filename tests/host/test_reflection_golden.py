"""Stored trajectories of Z-Sampling with W2SD through the host's sampling, at every step."""

from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(__file__).resolve().parent.parent / "golden" / "data"
LIMIT = 1e-5
BIASES = (0.30, -0.10)
"""Of the toy network, with prompt, without."""
CPU = torch.device("cpu")
FLOW_RUNS = {"z_3.5_0.5": (3.5, 0.5, 3.5), "w2sd_3.5_1_final4": (3.5, 1.0, 4.0)}
NOISE_RUNS = {"z_5.5_0": (5.5, 0.0, 5.5), "w2sd_cfg_5.5_1": (5.5, 1.0, 5.5)}


class Toy(torch.nn.Module):
    """tanh(0.8 x + bias + 0.0005 t): the flow's velocity as well as the noise; the bias is what the text says."""

    dtype = torch.float32

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **kwargs):
        t = timesteps.reshape(-1, 1, 1, 1)
        return torch.tanh(0.8 * x + context[:, :1, :1, None] + 0.0005 * t)


@pytest.fixture(scope="module")
def toy(host):
    """Return a function that puts the toy network into the host's own model of a kind."""

    def build(kind):
        base = host.comfy.model_base
        config = host.comfy.supported_models_base.BASE({"disable_unet_model_creation": True})
        model = base.BaseModel(config, model_type=base.ModelType[kind], device=CPU)
        model.diffusion_model = Toy()
        return host.comfy.model_patcher.ModelPatcher(model, CPU, CPU)

    return build


def conditioning(bias):
    return [[torch.full((1, 1, 1), bias), {}]]


def trajectory(pack, model, noise, sigmas, scales, **options):
    """Return x at every level, [S+1,B,...]."""
    guider = pack.comfy_host.ReflectionGuider(model, scales=pack.comfy_host.Scales(*scales))
    guider.set_conds(*map(conditioning, BIASES))
    starts = {}

    def saw(step, denoised, x, steps):
        # the first evaluation of a step is where the step before ended
        starts.setdefault(step, x)

    sampler = pack.comfy_host.ReflectionSampler(**options)
    end = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, callback=saw, disable_pbar=True, seed=0)
    assert list(starts) == list(range(len(sigmas) - 1))
    return torch.stack([*starts.values(), end])


def worst(found, wanted):
    gaps = (found.double() - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    return float(gaps.max())


@pytest.mark.parametrize(("convention", "inversion"), [("exact", "exact"), ("upper", "upper"), ("core", "official")])
@pytest.mark.parametrize("name", FLOW_RUNS)
def test_flow(name, convention, inversion, pack, toy, record_property):
    stored = np.load(DATA / "reflection_flow.npz")
    sigmas, x = (torch.from_numpy(stored[part]).float() for part in ("sigmas", "x_init"))
    found = trajectory(pack, toy("FLOW"), x, sigmas, FLOW_RUNS[name], inversion=inversion)
    gap = worst(found, torch.from_numpy(stored[f"{name}/{convention}"]).double())
    record_property("gap", gap)
    assert gap < LIMIT


@pytest.fixture(scope="module")
def ddim():
    stored = np.load(DATA / "reflection_ddim.npz")
    alphas, timesteps = torch.from_numpy(stored["alphas_cumprod"]), torch.from_numpy(stored["timesteps"])
    levels = torch.cat([alphas[timesteps.long()], alphas[:1]])
    sigmas = ((1 - levels) / levels).sqrt()
    # the host scales noise by the first sigma; the stored start is a state
    noise = torch.from_numpy(stored["x_init"]) / (1 - levels[0]).sqrt()
    return stored, levels, sigmas.float(), noise.float()


def test_the_hosts_noise_levels_are_the_stored_ones(toy, ddim):
    stored, _, sigmas, _ = ddim
    sampling = toy("EPS").get_model_object("model_sampling")
    torch.testing.assert_close(sampling.sigma(torch.from_numpy(stored["timesteps"])), sigmas[:-1])
    assert torch.equal(sampling.timestep(sigmas[:-1]), torch.from_numpy(stored["timesteps"]).long())


@pytest.mark.parametrize("inversion", ["exact", "upper", "official"])
@pytest.mark.parametrize("name", NOISE_RUNS)
def test_noise_prediction(name, inversion, pack, toy, ddim, record_property):
    stored, levels, sigmas, noise = ddim
    # the stored schedule ends above zero; its last step does not reflect
    options = {"inversion": inversion, "reflect_steps": len(sigmas) - 2}
    found = trajectory(pack, toy("EPS"), noise, sigmas, NOISE_RUNS[name], **options)
    gap = worst(found.double() * levels.sqrt().reshape(-1, 1, 1, 1, 1), torch.from_numpy(stored[f"{name}/{inversion}"]))
    record_property("gap", gap)
    assert gap < LIMIT
