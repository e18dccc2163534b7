"""The sampling nodes: what they take, what they return, that they are their parts put together."""

import pytest
import torch

from .reflection_parts import SEED, randn, relative

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
RATIO_16 = {"spacial_downscale_ratio": 16, "temporal_downscale_ratio": 1}


@pytest.fixture
def latent(world):
    """What a masked picture of a longer batch looks like."""
    mask = torch.ones(1, 64, 64)
    mask[:, :32] = 0
    return {"samples": randn(3, 2, 16, 8, 8), "noise_mask": mask, "batch_index": [3, 1], "kept": "as it is"}


@pytest.fixture
def w2sd(pack, world):
    def run(latent, **changed):
        arguments = {
            "strong_model": world.model, "positive": world.positive, "negative": world.negative, "seed": SEED,
            "steps": 3, "strong_cfg": 4.0, "weak_cfg": 1.0, "final_cfg": 3.0, "scheduler": "normal", "denoise": 0.7,
            "reflect_steps": 1, "rounds": 2, "inversion": "upper",
        }  # fmt: skip
        return pack.nodes["W2SDTeacherSampler"].execute(latent_image=latent, **arguments | changed).args[0]

    return run


@pytest.fixture
def z_sampling(pack, world):
    def run(latent, **changed):
        arguments = {
            "model": world.model, "positive": world.positive, "negative": world.negative, "seed": SEED, "steps": 3,
            "cfg": 4.0, "inversion_cfg": 0.0, "scheduler": "normal", "denoise": 1.0, "reflect_steps": -1, "rounds": 1,
            "inversion": "exact",
        }  # fmt: skip
        return pack.nodes["ZSampling"].execute(latent_image=latent, **arguments | changed).args[0]

    return run


def by_parts(top, world, latent, *, scales, weak, denoise, operator):
    """The same run by the guider with the sampler in the host's own node."""
    parts, nodes = top.host.custom_sampler, top.pack.nodes
    prompts = world.positive, world.negative
    guider = nodes["ReflectionGuider"].execute(world.model, *prompts, *scales, "CFG", 0.5, weak_model=weak).args[0]
    sampler = nodes["ReflectionSampler"].execute(*operator).args[0]
    sigmas = parts.BasicScheduler.execute(world.model, "normal", 3, denoise).args[0]
    noise = parts.RandomNoise.execute(SEED).args[0]
    return parts.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args[0]


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name], name


class TestTheLatent:
    @pytest.mark.parametrize("node", ["w2sd", "z_sampling"])
    def test_what_comes_in_stays_as_it_is(self, request, node, latent):
        before = {name: value.clone() if torch.is_tensor(value) else value for name, value in latent.items()}
        out = request.getfixturevalue(node)(latent)
        assert_same(latent, before)
        assert_same({**out, "samples": latent["samples"]}, latent)
        assert relative(out["samples"][:, :, :4], latent["samples"][:, :, :4]) < 1e-5
        assert relative(out["samples"][:, :, 4:], latent["samples"][:, :, 4:]) > 0.1

    @pytest.mark.parametrize("node", ["w2sd", "z_sampling"])
    def test_the_batch_index_picks_the_noise(self, request, node, latent):
        run = request.getfixturevalue(node)
        both = run(latent)["samples"]
        second = {**latent, "samples": latent["samples"][1:], "batch_index": [1]}
        assert relative(run(second)["samples"], both[1:]) < 1e-4
        assert relative(run({**second, "batch_index": [2]})["samples"], both[1:]) > 1e-3

    def test_an_empty_latent_of_other_channels(self, top, z_sampling):
        four = z_sampling({"samples": torch.zeros(1, 4, 8, 8)})["samples"]
        assert torch.equal(four, z_sampling(top.empty(top.world()))["samples"])

    def test_an_empty_latent_gets_the_size_of_the_model(self, host, world, w2sd, z_sampling):
        """A newer host notes the ratio of an empty latent, and resizes it for a model of ratio 16."""
        import nodes

        model, latent = world.model.clone(), nodes.EmptyLatentImage().generate(64, 64)[0]
        model.add_object_patch("latent_format", type("Ratio16", (host.comfy.latent_formats.SD3,), RATIO_16)())
        prompts = world.positive, world.negative
        stock = nodes.KSampler().sample(model, SEED, 1, 1.0, "euler", "normal", *prompts, latent)[0]
        for out in (w2sd(latent, strong_model=model), z_sampling(latent, model=model)):
            assert out.keys() == stock.keys() and out["samples"].shape == stock["samples"].shape

    def test_latents_of_several_kinds(self, top, world):
        """A newer host samples video and audio together, packed into one tensor."""
        from comfy.nested_tensor import NestedTensor

        model, weak, seen = world.model.clone(), world.weak.clone(), []

        def nothing(apply_model, given):
            seen.append([getattr(side.model, "latent_shapes", None) for side in (model, weak)])
            return torch.zeros_like(given["input"])

        for side in (model, weak):
            side.set_model_unet_function_wrapper(nothing)
        latent = {"samples": NestedTensor([randn(1, 1, 16, 8, 8), randn(2, 1, 16, 2, 2)])}
        guider, sampler = top.guider(world, model=model, weak=weak), top.pack.comfy_host.ReflectionSampler()
        out, _ = top.pack.comfy_host.run_reflection(guider, sampler, top.sigmas(world, 2), latent, SEED)
        assert [part.shape for part in out["samples"].unbind()] == [(1, 16, 8, 8), (1, 16, 2, 2)]
        assert seen and all(strong == weak for strong, weak in seen), "both networks know how to unpack"

    def test_nothing_to_denoise(self, latent, z_sampling, w2sd):
        for run in (z_sampling, w2sd):
            assert_same(run(latent, denoise=0.0), latent)


class TestTheParts:
    def test_w2sd(self, top, world, w2sd, latent):
        operator = (1, 2, "upper")
        for weak in (None, world.weak):
            whole = w2sd(latent, weak_model=weak)
            parts = by_parts(top, world, latent, scales=(4.0, 1.0, 3.0), weak=weak, denoise=0.7, operator=operator)
            assert_same(whole, parts)

    def test_z_sampling(self, top, world, z_sampling, latent):
        parts = by_parts(top, world, latent, scales=(4.0, 0.0, 4.0), weak=None, denoise=1.0, operator=(-1, 1, "exact"))
        assert_same(z_sampling(latent), parts)


def test_the_cost_is_reported(z_sampling, top, world, caplog):
    with caplog.at_level("INFO"):
        z_sampling(top.empty(world))
    assert [record for record in caplog.records if "12 forward passes" in record.message]
