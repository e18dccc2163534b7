"""Guidance Report on real guiders: its reading against known values, what it leaves behind."""

import logging

import numpy as np
import pytest
import torch

from .reflection_parts import SEED, counted, randn, relative, weights_of

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
STEPS = 4


@pytest.fixture
def cfg(host, world):
    def make(scale, model=None, positive=None):
        guider = host.comfy.samplers.CFGGuider(model or world.model)
        guider.set_conds(positive or world.positive, world.negative)
        guider.set_cfg(scale)
        return guider

    return make


@pytest.fixture
def judge(pack, top, host, world):
    def run(guider, *, sampler="euler", latent=None, steps=STEPS, model=None, **prompts):
        sampler = host.comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
        prompts = {"positive": world.positive, "negative": world.negative, **prompts}
        latent = latent or top.empty(world, 2)
        arguments = guider, sampler, top.sigmas(world, steps), latent
        return pack.comfy_host.report_guidance(
            model or world.model, *arguments, prompts["positive"], prompts["negative"], SEED, prompts.get("vae")
        )

    return run


class TestTheMeasure:
    @pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
    def test_cfg_is_found_at_every_step(self, judge, cfg, scale):
        _, report = judge(cfg(scale))
        for found in (report.predicted_SB, report.moved_SB):
            assert found.shape == (STEPS, 2)
            assert float((found - scale).abs().max()) < 2e-3

    def test_a_fused_student_beside_its_teacher(self, judge, host, pack, top, world):
        student = top.load("student")[0]
        model, fused = pack.comfy_host.apply_fusion(student, world.positive, world.negative, 2.0)
        guider = host.custom_sampler.BasicGuider.execute(model, fused).args[0]
        _, report = judge(guider, steps=10)
        assert report.name == "BasicGuider" and report.passes == 10 and 1.8 < float(report.moved_SB.mean()) < 4

    def test_outside_of_a_mask_nothing_counts(self, judge, cfg, top, world):
        mask = torch.ones(1, 64, 64)
        mask[:, :32] = 0
        latent = {"samples": randn(3, 2, 16, 8, 8), "noise_mask": mask}
        out, report = judge(cfg(3.0), latent=latent)
        assert float((report.predicted_SB - 3).abs().max()) < 2e-3
        assert relative(out["samples"][:, :, :4], latent["samples"][:, :, :4]) < 1e-5

    def test_the_same_prompt_twice_is_undefined(self, judge, cfg, world, caplog):
        with caplog.at_level(logging.INFO):
            _, report = judge(cfg(3.0), negative=world.positive)
        assert "connect an encoded empty prompt" in caplog.text, "what to do"
        assert bool(report.moved_SB.isnan().all()) and "cfg nan" not in report.text()
        assert report.plot().size == (768, 512)


def test_colors_are_measured_as_they_are_saved(judge, cfg, world):
    out, report = judge(cfg(8.0), vae=world.vae)
    decoded_BHW3 = 255.0 * world.vae.decode(out["samples"]).cpu().numpy()
    saved_BHW3 = np.clip(decoded_BHW3, 0, 255).astype(np.uint8)  # as SaveImage does it
    assert report.clipped == pytest.approx(np.isin(saved_BHW3, (0, 255)).mean()) and report.clipped > 0
    assert report.saturation == pytest.approx(np.ptp(saved_BHW3, axis=-1).mean() / 255)


class TestTheCost:
    def test_passes_are_those_of_the_networks(self, judge, cfg, top, world):
        sampler = top.pack.comfy_host.ReflectionSampler()
        for guider, kind, models in (
            (cfg(3.0), "euler", [world.model]),
            (cfg(1.0), "euler", [world.model]),
            (top.guider(world, weak=world.weak), sampler, [world.model, world.weak]),
        ):
            with counted(*models) as seen:
                _, report = judge(guider, sampler=kind)
            rows = sum(rows for _, rows in seen)
            assert report.own_passes == 2 * STEPS
            assert rows == 2 * (report.passes + report.own_passes), "two pictures"


class TestTheRun:
    def test_the_picture_is_that_of_the_hosts_own_node(self, judge, cfg, host, top, world):
        import nodes

        empty = nodes.EmptyLatentImage().generate(64, 64, 2)[0]  # of a newer host, with its ratio
        parts, latent = host.custom_sampler, {**empty, "batch_index": [1, 0], "kept": "as it is"}
        sampler = host.comfy.samplers.sampler_object("euler")
        arguments = parts.RandomNoise.execute(SEED).args[0], cfg(3.0), sampler, top.sigmas(world, STEPS), latent
        stock = parts.SamplerCustomAdvanced.execute(*arguments).args[0]
        out, _ = judge(cfg(3.0), latent=latent)
        assert torch.equal(out["samples"], stock["samples"])
        assert out.keys() == stock.keys() and out["kept"] == "as it is" and torch.count_nonzero(latent["samples"]) == 0

    def test_nothing_stays_behind(self, judge, cfg, top, world):
        weights, guider = weights_of(world.model), cfg(3.0)
        before = {name: value for name, value in vars(guider).items()}
        options = str(world.model.model_options)
        judge(guider)
        assert vars(guider) == before and str(world.model.model_options) == options
        assert str(guider.model_options) == options
        top.assert_clean(world.model, weights)

    def test_cancel_stops_the_run_and_the_measurement(self, judge, cfg, host, monkeypatch, top, world):
        management = host.comfy.model_management
        weights = weights_of(world.model)
        for after in (2, STEPS + 2):
            asked = iter(range(100))

            def ask(asked=asked, after=after):
                if next(asked) == after:
                    raise management.InterruptProcessingException

            with monkeypatch.context() as patched, pytest.raises(management.InterruptProcessingException):
                patched.setattr(management, "throw_exception_if_processing_interrupted", ask)
                judge(cfg(3.0))
        top.assert_clean(world.model, weights)

    def test_every_step_is_shown(self, judge, cfg, monkeypatch):
        import latent_preview

        shown = []

        def prepare(model, steps, *_):
            return lambda step, denoised, x, total: shown.append((step, tuple(denoised.shape), total))

        monkeypatch.setattr(latent_preview, "prepare_callback", prepare)
        judge(cfg(3.0))
        assert shown == [(step, (2, 16, 8, 8), STEPS) for step in range(STEPS)]


@pytest.fixture
def breaking(world):
    """Return a function that makes a model whose predictions for one image are no numbers from a step on."""

    def make(step, value, image=1):
        calls = iter(range(1000))

        def predict(apply_model, given):
            out = apply_model(given["input"], given["timestep"], **given["c"])
            if next(calls) + 1 >= step:
                out[image::2] = value
            return out

        model = world.model.clone()
        model.set_model_unet_function_wrapper(predict)
        return model

    return make


class TestNaN:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("step", [1, 3])
    def test_a_run_is_named_with_step_and_image_and_has_no_reading(self, judge, cfg, breaking, world, step, value):
        _, report = judge(cfg(3.0, model=breaking(step, value)), vae=world.vae)
        assert report.broken == f"step {step} (image 2)"
        text, lines = report.text(), report.text().splitlines()
        assert f"NaN or infinite values from step {step} (image 2) on" in lines[1] and "no reading" in lines[1]
        assert "CFG scale" not in text and "clipped" not in text and "undefined" not in text and "|" not in text
        assert report.plot().size == (768, 512)

    def test_the_reference_is_named_too(self, judge, cfg, breaking):
        _, report = judge(cfg(3.0), model=breaking(2, float("nan")))
        assert report.broken == "step 2 (image 2, in the predictions of model)"

    def test_a_step_without_direction_is_no_nan_of_the_run(self, judge, cfg, world):
        _, report = judge(cfg(3.0), negative=world.positive)
        assert not report.broken and "undefined" in report.text()

    def test_inputs_are_named(self, judge, cfg, top, world, pack):
        latent = top.empty(world, 2)
        latent["samples"][1, 0, 0, 0] = float("nan")
        broken = [[world.positive[0][0] * float("inf"), world.positive[0][1]]]
        for given, said in (
            ({"latent": latent}, "latent_image.*image 2"),
            ({"negative": broken}, "negative.*prompt 1"),
        ):
            with pytest.raises(pack.errors.InvalidConfig, match=said):
                judge(cfg(3.0), **given)

    def test_a_vae_of_another_model(self, judge, cfg, world, pack):
        class Other:
            latent_channels = 4

        with pytest.raises(pack.errors.CheckpointMismatch, match="vae has latents of 4 channels, .* 16"):
            judge(cfg(3.0), vae=Other())


class TestErrors:
    def test_another_kind_of_model(self, pack, judge, cfg, top):
        with pytest.raises(pack.errors.CheckpointMismatch, match="SD3.*SD15"):
            judge(cfg(3.0), model=top.world("eps").model)

    def test_latents_of_several_kinds(self, pack, judge, cfg):
        from comfy.nested_tensor import NestedTensor

        both = {"samples": NestedTensor([randn(1, 1, 16, 8, 8), randn(2, 1, 16, 2, 2)])}
        with pytest.raises(pack.errors.InvalidConfig, match="latent_image holds several"):
            judge(cfg(3.0), latent=both)

    def test_no_step(self, pack, cfg, top, world, host):
        sampler, sigmas = host.comfy.samplers.sampler_object("euler"), torch.tensor([1.0])
        latent, prompts = top.empty(world), (world.positive, world.negative)
        with pytest.raises(pack.errors.InvalidConfig, match="^Guidance Report: sigmas"):
            pack.nodes["GuidanceReport"].execute(world.model, cfg(3.0), sampler, sigmas, latent, *prompts, SEED)

    def test_a_sampler_that_keeps_its_steps_to_itself(self, pack, judge, cfg, host):
        silent = host.comfy.samplers.KSAMPLER(lambda model, x, sigmas, **_: x)
        with pytest.raises(pack.errors.InvalidConfig, match="0.*4"):
            judge(cfg(3.0), sampler=silent)


def test_noise_predicting_models_are_judged_too(pack, top, host):
    world = top.world("eps")
    guider = host.comfy.samplers.CFGGuider(world.model)
    guider.set_conds(world.positive, world.negative)
    guider.set_cfg(4.0)
    sigmas, sampler = top.sigmas(world, STEPS), host.comfy.samplers.sampler_object("euler")
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    arguments = world.model, guider, sampler, sigmas, latent, world.positive, world.negative, SEED
    _, report = pack.comfy_host.report_guidance(*arguments)
    assert float((report.moved_SB - 4).abs().max()) < 5e-3


def test_the_node_gives_latent_plot_texts(pack, cfg, host, top, world):
    sampler = host.comfy.samplers.sampler_object("euler")
    arguments = world.model, cfg(2.0), sampler, top.sigmas(world, 2), top.empty(world), world.positive, world.negative
    latent, plot, text, cost, _ = pack.nodes["GuidanceReport"].execute(*arguments, SEED, world.vae).args
    assert latent["samples"].shape == (1, 16, 8, 8) and plot.shape == (1, 512, 768, 3)
    assert 0 <= float(plot.min()) < float(plot.max()) <= 1 and text.startswith(cost + "\n") and "4 passes" in cost


def test_the_node_shows_a_run_beside_another(pack, host, cfg, top, world):
    node, sampler = pack.nodes["GuidanceReport"], host.comfy.samplers.sampler_object("euler")
    shared = dict(model=world.model, sampler=sampler, sigmas=top.sigmas(world, STEPS), latent_image=top.empty(world, 1))
    shared |= dict(positive=world.positive, negative=world.negative, noise_seed=SEED)
    first = node.execute(guider=cfg(3.0), run_name=" my teacher ", **shared).args
    both = node.execute(guider=cfg(2.0), beside=first[4], **shared).args
    assert first[3].startswith("my teacher: ") and both[3].startswith("CFGGuider: ")
    assert [reading.name for reading in both[4]] == ["my teacher", "CFGGuider"] and len(first[4]) == 1
    assert both[1].shape == first[1].shape and not torch.equal(both[1], first[1])
