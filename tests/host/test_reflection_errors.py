"""What goes wrong in a reflection: one clear message, a model as it was."""

import pytest
import torch

from .reflection_parts import SEED, conditioning, unet, weights_of

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")


@pytest.fixture(scope="module")
def stock(top, world):
    """Of strong with weak model: a stock run, the weights, as they are before anything went wrong."""
    models = world.model, world.weak
    with torch.inference_mode():
        return [(model, top.euler(world, model=model), weights_of(model)) for model in models]


@pytest.fixture
def survived(top, world, stock):
    """After the test: both models clean, stock runs bit-identical to those before."""
    yield
    for model, before, weights in stock:
        assert torch.equal(top.euler(world, model=model), before)
        top.assert_clean(model, weights)


def at_forward(models, number, action):
    """Do something in the middle of a forward pass, counted over all networks from 1; returns what to remove."""
    seen = []

    def hook(module, args):
        seen.append(1)
        if len(seen) == number:
            action()

    return [model.model.diffusion_model.joint_blocks[1].register_forward_pre_hook(hook) for model in models]


@pytest.mark.usefixtures("survived")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_result_that_is_nan_is_named(pack, top, world, caplog, value):
    def predict(apply_model, given):
        out = apply_model(given["input"], given["timestep"], **given["c"])
        out[1::2] = value
        return out

    model = world.model.clone()
    model.set_model_unet_function_wrapper(predict)
    guider, sampler = top.guider(world, model=model), pack.comfy_host.ReflectionSampler()
    arguments = guider, sampler, top.sigmas(world, 2), top.empty(world, 2)
    out, _ = pack.comfy_host.run_reflection(*arguments, SEED)
    assert torch.isfinite(out["samples"][0]).all()
    assert any("NaN" in line and "image 2;" in line for line in caplog.messages)


class TestInTheMiddleOfARun:
    """The first forward is the strong phase, the second the weak one, the third the final one."""

    @pytest.fixture(params=["exchanged", "added", "two networks", "one network"])
    def sides(self, request, top, world, monkeypatch):
        if request.param == "added":
            monkeypatch.setattr(top.module("comfy_host.reflection.lora_gap"), "SMALL", 0)
        if request.param == "two networks":
            return {"model": world.model, "weak": world.weak}
        if request.param == "one network":
            return {"model": world.model, "weak": None}
        lora = top.lora(world.model, world.layers, 0.8)
        return {"model": lora, "weak": top.lora(world.model, world.layers, -1.5)}

    @pytest.fixture
    def broken(self, top, world, sides, survived):
        """Run into an action, then once more without it."""

        def run(number, action, error, match):
            guider = top.guider(world, **sides)
            whole = top.reflect(world, guider=guider, steps=2).samples
            handles = at_forward([world.model, world.weak], number, action)
            try:
                with pytest.raises(error, match=match):
                    top.reflect(world, guider=guider, steps=2)
            finally:
                for handle in handles:
                    handle.remove()
            assert torch.equal(top.reflect(world, guider=guider, steps=2).samples, whole)

        return run

    @pytest.mark.parametrize("phase", [1, 2, 3])
    def test_interrupted(self, top, broken, phase):
        management = top.comfy.model_management
        broken(phase, management.interrupt_current_processing, management.InterruptProcessingException, "")
        assert not management.processing_interrupted()

    @pytest.mark.parametrize("phase", [1, 2, 3])
    def test_out_of_memory(self, broken, phase):
        def action():
            raise torch.OutOfMemoryError("simulated, 1 GiB missing")

        broken(phase, action, torch.OutOfMemoryError, "simulated, 1 GiB missing")


class TestModelsThatDoNotFit:
    @pytest.fixture(scope="class")
    def unets(self, host):
        return {kind: unet(host, kind, 1) for kind in ("EPS", "FLOW", "EDM")}

    def test_another_latent_space(self, top, host, world, unets):
        with pytest.raises(top.pack.errors.CheckpointMismatch, match="SDXL.*SD15"):
            top.guider(top.world("eps"), weak=unet(host, "EPS", 2, latent_format="SDXL"))
        with pytest.raises(top.pack.errors.CheckpointMismatch, match="SD15.*SD3"):
            top.guider(world, weak=unets["EPS"])

    @pytest.mark.parametrize(("strong", "weak"), [("FLOW", "EPS"), ("EPS", "FLOW")])
    def test_flow_with_noise(self, top, unets, strong, weak):
        with pytest.raises(top.pack.errors.CheckpointMismatch, match="flow"):
            top.guider(top.world("eps"), model=unets[strong], weak=unets[weak])

    @pytest.mark.parametrize("inversion", ["upper", "official"])
    def test_an_inversion_that_a_model_lacks(self, top, unets, inversion):
        world, options = top.world("eps"), {"model": unets["EDM"], "steps": 2}
        before = top.euler(world, model=unets["EDM"])
        with pytest.raises(top.pack.errors.InvalidConfig, match=inversion):
            top.reflect(world, operator={"inversion": inversion}, **options)
        top.reflect(world, **options)
        assert torch.equal(top.euler(world, model=unets["EDM"]), before)

    @pytest.mark.parametrize("side", ["strong", "weak"])
    def test_chats_with_a_node_that_replaces_the_negative_prediction(self, top, world, side):
        from comfy_extras.nodes_slg import SkipLayerGuidanceDiTSimple

        model = SkipLayerGuidanceDiTSimple.execute(world.model, 0.0, 1.0, "1", "1").args[0]
        sides = {"model": model} if side == "strong" else {"weak": model}
        top.guider(world, **sides)
        with pytest.raises(top.pack.errors.InvalidConfig, match="SkipLayerGuidanceDiTSimple .* CHATS"):
            top.guider(world, rule="CHATS", **sides)


class TestPrompts:
    @pytest.mark.parametrize(
        ("role", "rule"),
        [("positive", "CFG"), ("negative", "CFG"), ("weak_positive", "CFG"), ("weak_negative", "CFG"),
         ("positive", "CHATS"), ("negative", "CHATS")],
    )  # fmt: skip
    @pytest.mark.parametrize("networks", [1, 2])
    def test_without_pooled_output(self, top, world, survived, role, rule, networks):
        bare = {role: [[world.positive[0][0], {}]]}
        with pytest.raises(top.pack.errors.InvalidConfig, match="pooled_output"):
            top.reflect(world, weak=world.weak if networks == 2 else None, rule=rule, **bare)

    def test_chats_with_prompts_that_do_not_pair(self, top, world):
        short = [[world.negative[0][0][:, :9], world.negative[0][1]]]
        for negative, value in ((world.negative * 2, "2.*1"), (short, "24.*9")):
            with pytest.raises(top.pack.errors.ShapeMismatch, match=value):
                top.guider(world, rule="CHATS", negative=negative)


class TestSettings:
    @pytest.mark.parametrize("given", [{"rounds": 0}, {"rounds": -1}, {"reflect_steps": -2}, {"inversion": "heun"}])
    def test_of_the_sampler(self, top, given):
        ((name, value),) = given.items()
        with pytest.raises(top.pack.errors.InvalidConfig, match=f"{name}.*{value}"):
            top.pack.comfy_host.ReflectionSampler(**given)

    def test_more_steps_than_there_are(self, top, world, survived):
        with pytest.raises(top.pack.errors.InvalidConfig, match="reflect_steps is 4.*3"):
            top.reflect(world, weak=world.weak, operator={"reflect_steps": 4})

    def test_of_guider_and_schedule(self, top, world):
        with pytest.raises(top.pack.errors.InvalidConfig, match="APG"):
            top.guider(world, rule="APG")
        for scheduler, steps, value in (("linear", 3, "linear"), ("normal", 0, "steps is 0")):
            with pytest.raises(top.pack.errors.InvalidConfig, match=value):
                top.pack.comfy_host.schedule(world.model, scheduler, steps, 1.0)


class TestHalfOfThePair:
    @pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral"])
    def test_the_guider_with_a_stock_sampler(self, top, world, survived, name):
        noise, sampler = torch.zeros(1, 16, 8, 8), top.comfy.samplers.sampler_object(name)
        with pytest.raises(top.pack.errors.InvalidConfig, match="Reflection Sampler"):
            top.guider(world).sample(noise, noise, sampler, top.sigmas(world), seed=SEED)

    def test_the_sampler_with_a_stock_guider(self, top, world, survived):
        guider, noise = top.comfy.samplers.CFGGuider(world.model), torch.zeros(1, 16, 8, 8)
        guider.set_conds(world.positive, world.negative)
        with pytest.raises(top.pack.errors.InvalidConfig, match="Reflection Guider"):
            guider.sample(noise, noise, top.pack.comfy_host.ReflectionSampler(), top.sigmas(world), seed=SEED)


class TestThroughTheNodes:
    """The message begins with the name of the node."""

    @pytest.mark.parametrize("changed", [{"rounds": 0}, {"reflect_steps": 3}, {"inversion": "x"}, {"scheduler": "x"}])
    def test_samplers(self, top, world, changed):
        arguments = {
            "positive": world.positive, "negative": world.negative, "latent_image": top.empty(world), "seed": SEED,
            "steps": 2, "scheduler": "normal", "denoise": 1.0, "reflect_steps": -1, "rounds": 1, "inversion": "exact",
        } | changed  # fmt: skip
        nodes, error = top.pack.nodes, top.pack.errors.InvalidConfig
        with pytest.raises(error, match=r"^Z-Sampling \(zigzag\): "):
            nodes["ZSampling"].execute(world.model, cfg=3.0, inversion_cfg=0.0, **arguments)
        with pytest.raises(error, match=r"^W2SD Teacher Sampler: "):
            nodes["W2SDTeacherSampler"].execute(world.model, strong_cfg=3.0, weak_cfg=1.0, final_cfg=3.0, **arguments)

    def test_parts(self, top, world):
        nodes, error = top.pack.nodes, top.pack.errors
        with pytest.raises(error.InvalidConfig, match="^Reflection Sampler: rounds is 0"):
            nodes["ReflectionSampler"].execute(-1, 0, "exact")
        sides, weak = (conditioning(1), conditioning(2), 3.0, 1.0, 3.0, "CFG", 0.5), top.world("eps").model
        with pytest.raises(error.CheckpointMismatch, match="^Reflection Guider: "):
            nodes["ReflectionGuider"].execute(world.model, *sides, weak_model=weak)
