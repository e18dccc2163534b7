"""Reflection on each kind of model, with what users combine a sampler with."""

import pytest
import torch

from .composition_parts import guidance_node
from .reflection_parts import KINDS, SEED, counted, randn, relative

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
PICTURE = 64


@pytest.fixture(scope="module", params=KINDS)
def world(request, top):
    return top.world(request.param)


@pytest.fixture(scope="module")
def plain(top, world):
    return top.reflect(world).samples


def start(world, batch=1):
    return {"samples": randn(3, batch, world.channels, 8, 8)}


@pytest.mark.parametrize("inversion", ["exact", "upper", "official"])
def test_inversions(top, world, plain, inversion):
    out = top.reflect(world, operator={"inversion": inversion}).samples
    assert torch.equal(out, plain) == (inversion == "exact")
    again = top.reflect(world, operator={"inversion": inversion, "rounds": 2}).samples
    assert relative(again, out) > 1e-4


def test_a_mask_keeps_its_area(top, world, plain):
    latent = start(world) | {"noise_mask": torch.ones(1, PICTURE, PICTURE)}
    latent["noise_mask"][:, :, : PICTURE // 2] = 0
    out = top.reflect(world, weak=world.weak, latent=latent).samples
    assert relative(out[..., :4], latent["samples"][..., :4]) < 1e-5
    assert relative(out[..., 4:], latent["samples"][..., 4:]) > 0.1
    stock = top.euler(world, latent=latent)
    assert torch.equal(top.reflect(world, latent=latent, operator={"reflect_steps": 0}).samples, stock)


def test_rows_of_a_batch_do_not_see_each_other(top, world):
    latent = start(world, batch=3) | {"batch_index": [4, 0, 2]}
    together = top.reflect(world, weak=world.weak, latent=latent).samples
    assert together.shape == (3, world.channels, 8, 8)
    for i, index in enumerate(latent["batch_index"]):
        one = {"samples": latent["samples"][i : i + 1], "batch_index": [index]}
        assert relative(top.reflect(world, weak=world.weak, latent=one).samples, together[i : i + 1]) < 1e-4


def test_two_areas_are_two_pictures(top, world):
    """Disjoint halves at cfg 1 never meet, so that each equals a run on its half alone."""
    values = top.host.node_helpers.conditioning_set_values
    sides = [{"area": (8, 8, 0, x), "strength": 1.0, "set_area_to_bounds": False} for x in (0, 8)]
    halves = [world.positive, world.other]
    prompts = {
        "positive": [*values(halves[0], sides[0]), *values(halves[1], sides[1])],
        "weak_positive": [*values(halves[1], sides[0]), *values(halves[0], sides[1])],
    }
    sampler, sigmas = top.pack.comfy_host.ReflectionSampler(), top.sigmas(world)
    noise = randn(4, 1, world.channels, 8, 16)

    def run(noise, **prompts):
        guider = top.guider(world, scales=(1.0, 1.0, 1.0), **prompts)
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=SEED)

    whole = run(noise, **prompts)
    for i in (0, 1):
        part = (..., slice(8 * i, 8 * i + 8))
        alone = run(noise[part].contiguous(), positive=halves[i], weak_positive=halves[1 - i])
        assert relative(whole[part], alone) < 1e-5


@pytest.fixture
def split(top, world):
    """A run in two halves, as SplitSigmas makes them: (first latent, second latent, passes of both)."""
    parts = top.host.custom_sampler
    high, low = parts.SplitSigmas.execute(top.sigmas(world, steps=4), 2).args
    noise, nothing = parts.RandomNoise.execute(SEED).args[0], parts.DisableNoise.execute().args[0]
    guider = top.guider(world, weak=world.weak)

    def run(**operator):
        sampler = top.pack.comfy_host.ReflectionSampler(**operator)
        first = parts.SamplerCustomAdvanced.execute(noise, guider, sampler, high, top.empty(world)).args[0]
        passes = [guider.passes]
        second = parts.SamplerCustomAdvanced.execute(nothing, guider, sampler, low, first).args[0]
        return first["samples"], second["samples"], [*passes, guider.passes]

    return run


@pytest.mark.parametrize("inversion", ["exact", "upper"])
def test_split_sigmas_make_the_whole(top, world, split, inversion):
    first, second, passes = split(inversion=inversion)
    assert passes == [10, 7], "a part that ends above zero reflects in all of its steps"
    whole = top.reflect(world, weak=world.weak, steps=4, operator={"inversion": inversion}).samples
    assert relative(second, whole) < 1e-4 and relative(first, whole) > 1e-3


def test_official_alphas_need_a_level_after_the_last(top, world, split):
    if world.kind == "flow":
        assert torch.isfinite(split(inversion="official")[1]).all()
        return
    with pytest.raises(top.pack.errors.InvalidConfig, match="official"):
        split(inversion="official")
    first, second, passes = split(inversion="official", reflect_steps=1)
    assert passes == [7, 7] and torch.isfinite(second).all()


def test_a_controlnet(top, world, plain):
    import nodes

    prompts = nodes.ControlNetApplyAdvanced().apply_controlnet(
        world.positive, world.negative, top.control(world), torch.rand(1, PICTURE, PICTURE, 3), 0.8, 0.0, 1.0, world.vae
    )
    controlled = dict(zip(("positive", "negative"), prompts, strict=True))
    out = top.reflect(world, **controlled).samples
    assert relative(out, plain) > 1e-3
    bare = {"weak_positive": world.positive, "weak_negative": world.negative}
    assert relative(top.reflect(world, **controlled, **bare).samples, out) > 1e-4, "a gap of its own"
    assert torch.isfinite(top.reflect(world, weak=world.weak, **controlled).samples).all()
    net = controlled["positive"][0][1]["control"]
    assert net.cond_hint is None and net.model_sampling_current is None, "cleaned up"


@pytest.mark.parametrize(("name", "passes"), [("APG", 8), ("SLG", 12), ("CFGZeroStar", 8)])
def test_nodes_that_act_around_cfg_act_in_every_phase(top, world, name, passes):
    patched, scales = guidance_node(name)(top, world.model), (4.0, 2.0, 4.0)
    run = top.reflect(world, model=patched, scales=scales, steps=2)
    assert run.guider.passes == passes
    if name != "SLG" or world.kind == "flow":  # a node for transformers costs a UNet its pass, nothing else
        assert relative(run.samples, top.reflect(world, scales=scales, steps=2).samples) > 1e-3
        one_sided = top.reflect(world, model=patched, weak=world.model, scales=scales, steps=2)
        assert relative(one_sided.samples, run.samples) > 1e-3
    stock = top.euler(world, model=patched)
    assert torch.equal(top.reflect(world, model=patched, operator={"reflect_steps": 0}).samples, stock)


def test_other_schedules(top, world):
    for scheduler in top.pack.comfy_host.schedulers():
        sigmas = top.pack.comfy_host.schedule(world.model, scheduler, 2, 1.0)
        noise, guider, sampler = (
            randn(1, 1, world.channels, 8, 8), top.guider(world), top.pack.comfy_host.ReflectionSampler(),
        )  # fmt: skip
        with counted(world.model) as seen:
            out = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
        assert torch.isfinite(out).all() and sum(rows for _, rows in seen) == guider.passes == 5 * (len(sigmas) - 2) + 2
