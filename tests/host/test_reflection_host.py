"""Reflection inside the real host: what it costs, what it leaves alone."""

import logging

import pytest
import torch

from .reflection_parts import SEED, STEPS, counted, relative

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
DEFAULTS = (5.5, 1.0, 5.5)


class TestPasses:
    @pytest.mark.parametrize(
        ("scales", "operator", "passes"),
        [
            ((5.5, 0.0, 5.5), {}, [5, 5, 2]),  # Z-Sampling
            (DEFAULTS, {}, [5, 5, 2]),
            ((1.0, 1.0, 5.5), {}, [4, 4, 2]),
            ((1.0, 0.0, 1.0), {}, [3, 3, 1]),
            ((5.5, 2.0, 4.0), {}, [6, 6, 2]),
            (DEFAULTS, {"rounds": 2}, [8, 8, 2]),
            (DEFAULTS, {"reflect_steps": 1}, [5, 2, 2]),
            (DEFAULTS, {"reflect_steps": 3, "inversion": "upper"}, [5, 5, 2]),
            (DEFAULTS, {"reflect_steps": 0, "rounds": 3}, [2, 2, 2]),
            ((1.0, 0.0, 0.0), {"reflect_steps": 0}, [1, 1, 1]),
        ],
    )
    def test_rows_of_each_step(self, top, world, scales, operator, passes):
        with counted(world.model) as seen:
            run = top.reflect(world, scales=scales, operator=operator)
        assert sum(rows for _, rows in seen) == sum(passes)
        assert run.guider.passes == sum(passes)
        assert f"{STEPS} steps, {sum(passes)} forward passes" in run.cost

    def test_a_batch_is_one_pass(self, top, world):
        with counted(world.model) as seen:
            run = top.reflect(world, scales=DEFAULTS, latent=top.empty(world, 3), steps=2)
        assert [rows for _, rows in seen] == [6, 3, 6, 6] and run.guider.passes == 7

    def test_progress_counts_predictions(self, top, world):
        seen = []
        for operator in ({}, {"rounds": 2}, {"reflect_steps": 1}, {"reflect_steps": 0}):
            sampler, sigmas = top.pack.comfy_host.ReflectionSampler(**operator), top.sigmas(world)
            noise = torch.zeros(1, 16, 8, 8)
            seen.clear()
            top.guider(world).sample(
                noise, noise, sampler, sigmas, callback=lambda *args: seen.append(args), disable_pbar=True, seed=SEED
            )
            assert len(seen) == sampler.evaluations(sigmas)
            assert [step for step, *_ in seen] == sorted(step for step, *_ in seen)


class TestAgainstStock:
    @pytest.mark.parametrize("kind", ["flow", "eps", "v"])
    @pytest.mark.parametrize("cfg", [3.0, 1.0])
    def test_no_reflection_is_the_stock_ksampler_bit_for_bit(self, top, kind, cfg):
        world = top.world(kind)
        run = top.reflect(world, scales=(7.0, 2.0, cfg), operator={"reflect_steps": 0})
        assert torch.equal(run.samples, top.euler(world, cfg=cfg))

    def test_previews_show_the_strong_prediction(self, top, world):
        shown = []
        noise = torch.randn(1, 16, 8, 8)
        sampler = top.pack.comfy_host.ReflectionSampler()
        top.guider(world, weak=world.weak).sample(
            noise, torch.zeros_like(noise), sampler, top.sigmas(world), disable_pbar=True,
            callback=lambda step, denoised, x, steps: shown.append(denoised), seed=SEED,
        )  # fmt: skip
        strong, weak = shown[:2]
        assert weak is strong


class TestSameSeed:
    @pytest.mark.parametrize("networks", [1, 2])
    def test_cold_as_warm(self, top, world, networks):
        def run(seed=SEED):
            return top.reflect(world, weak=world.weak if networks == 2 else None, seed=seed).samples

        top.unload()
        cold = run()
        assert torch.equal(run(), cold)
        top.unload()
        assert torch.equal(run(), cold)
        assert not torch.equal(run(SEED + 1), cold)


class TestNothingDiffers:
    """Strong as good as weak: a reflection that does nothing is reported."""

    @pytest.fixture
    def noted(self, top, world, caplog):
        def check(scales, operator=None, **sides):
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                top.reflect(world, scales=scales, steps=2, operator=operator, **sides)
            return [record.message for record in caplog.records if "bit-identical" in record.message]

        return check

    def test_one_model_at_one_scale(self, noted):
        assert len(noted((2.0, 2.0, 4.0))) == 1

    def test_a_clone_or_an_equal_file(self, top, world, noted):
        for weak in (world.model.clone(), top.twins(world)[0]):
            assert len(noted((2.0, 2.0, 2.0), weak=weak)) == 1

    @pytest.mark.parametrize("size", [0, 2**20], ids=["added", "exchanged"])
    def test_a_lora_without_effect(self, top, world, noted, monkeypatch, size):
        monkeypatch.setattr(top.module("comfy_host.reflection.lora_gap"), "SMALL", size)
        assert len(noted((2.0, 2.0, 2.0), weak=top.lora(world.model, world.layers, 0.0))) == 1
        assert not noted((2.0, 2.0, 2.0), weak=top.lora(world.model, world.layers))

    def test_a_prompt_that_is_its_negative(self, world, noted):
        assert len(noted((3.0, 1.0, 3.0), negative=world.positive)) == 1

    def test_a_run_that_does_not_reflect(self, noted):
        assert not noted((2.0, 2.0, 2.0), {"reflect_steps": 0})

    @pytest.mark.parametrize("gap", ["scale", "model", "lora", "strength", "prompt", "negative", "options", "shift"])
    def test_any_gap_is_enough(self, top, world, noted, gap):
        from comfy_extras import nodes_model_advanced

        lora = top.lora(world.model, world.layers)
        shifted = nodes_model_advanced.ModelSamplingSD3().patch(world.model, 1.0)[0]
        sliced = world.model.clone()
        sliced.set_model_attn1_output_patch(lambda n, extra: n)
        sides = {
            "scale": {}, "model": {"weak": world.weak}, "lora": {"model": lora, "weak": world.model},
            "strength": {"model": lora, "weak": top.lora(world.model, world.layers, 0.5)},
            "prompt": {"weak_positive": world.other}, "negative": {"weak_negative": world.other},
            "options": {"weak": sliced}, "shift": {"weak": shifted},
        }[gap]  # fmt: skip
        assert not noted((2.0, 1.0 if gap == "scale" else 2.0, 2.0), **sides)


class TestTwoNetworks:
    def test_both_are_loaded_at_once(self, top, world, monkeypatch):
        loads = []
        load = top.comfy.model_management.load_models_gpu

        def load_models_gpu(models, *args, **kwargs):
            loads.append({model.model for model in models})
            return load(models, *args, **kwargs)

        monkeypatch.setattr(top.comfy.model_management, "load_models_gpu", load_models_gpu)
        top.unload()
        top.reflect(world, weak=world.weak)
        assert loads == [{world.model.model, world.weak.model}]

    def test_each_phase_runs_on_its_own_network(self, top, world):
        with counted(world.model, world.weak) as seen:
            run = top.reflect(world, weak=world.weak)
        assert seen == [(0, 2), (1, 1), (0, 2)] * (STEPS - 1) + [(0, 2)]
        assert run.guider.passes == 5 * (STEPS - 1) + 2


class TestWhatNodesDidToOneSide:
    """Options that a node put on the strong model are not those of the weak one."""

    @pytest.fixture(params=["shared", "apart"])
    def weak(self, request, world):
        return world.model if request.param == "shared" else world.weak

    def test_a_function_after_cfg(self, top, world, weak):
        seen = []
        strong = world.model.clone()
        strong.set_model_sampler_post_cfg_function(lambda args: (seen.append(len(seen)), args["denoised"])[1])
        top.reflect(world, model=strong, weak=weak)
        assert len(seen) == 2 * (STEPS - 1) + 1
        seen.clear()
        top.reflect(world, model=weak, weak=strong if weak is world.model else _like(strong, weak))
        assert len(seen) == STEPS - 1

    def test_a_wrapper_of_the_network(self, top, world, weak):
        seen = []

        def wrapper(apply_model, args):
            seen.append(1)
            return apply_model(args["input"], args["timestep"], **args["c"])

        strong = world.model.clone()
        strong.set_model_unet_function_wrapper(wrapper)
        top.reflect(world, model=strong, weak=weak)
        assert len(seen) == 2 * (STEPS - 1) + 1

    def test_patches_of_a_clone_go_where_the_run_is_and_back(self, top, world):
        moved, load, offload = [], world.model.model.device, torch.device("meta")

        class Patch:
            def to(self, where):
                moved.append(where)
                return self

            def models(self):
                return [world.weak]

        weak = world.model.clone()
        weak.set_model_patch(Patch(), "unused")
        weak.offload_device = offload
        run = top.reflect(world, weak=weak)
        assert moved == [load, torch.float32, offload]
        [extra] = run.guider.model_patcher.get_additional_models()
        assert extra.model is world.weak.model


def _like(model, network):
    """A model of another network with the same options."""
    other = network.clone()
    other.model_options = dict(model.model_options)
    return other


class TestChats:
    S, ALPHA = 2.5, 0.5

    def literal(self, world, noise, sigmas):
        """Euler on win + s (win - lose), at the bare networks."""
        (context, extras), (null, null_extras) = world.positive[0], world.negative[0]
        win = context, extras["pooled_output"]
        lose = tuple(
            -self.ALPHA * c + (1 + self.ALPHA) * n
            for c, n in zip(win, (null, null_extras["pooled_output"]), strict=True)
        )
        x = noise
        for i in range(len(sigmas) - 1):
            t = 1000 * sigmas[i : i + 1]
            win_v = world.model.model.diffusion_model(x, t, context=win[0], y=win[1])
            lose_v = world.weak.model.diffusion_model(x, t, context=lose[0], y=lose[1])
            x = x + (sigmas[i + 1] - sigmas[i]) * (win_v + self.S * (win_v - lose_v))
        return x

    def test_it_is_the_literal_euler(self, top, world):
        cfg = 1 + self.S
        guider = top.guider(world, weak=world.weak, scales=(cfg, 1.0, cfg), rule="CHATS", alpha=self.ALPHA)
        sigmas, noise = top.sigmas(world), torch.randn(1, 16, 8, 8)
        sampler = top.pack.comfy_host.ReflectionSampler(reflect_steps=0)
        with counted(world.model, world.weak) as seen:
            out = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=SEED)
        assert seen == [(0, 1), (1, 1)] * STEPS and guider.passes == 2 * STEPS
        assert relative(world.model.model.process_latent_in(out), self.literal(world, noise, sigmas)) < 1e-5

    def test_with_reflection_the_weak_phase_is_plain(self, top, world):
        with counted(world.model, world.weak) as seen:
            top.reflect(world, weak=world.weak, rule="CHATS")
        assert seen == [(0, 1), (1, 1), (1, 1), (0, 1), (1, 1)] * (STEPS - 1) + [(0, 1), (1, 1)]
