"""Guidance fusion inside the real host."""

import gc
import logging
import weakref

import pytest
import torch
from golden_weights import CASES, EULER8_SIGMAS, inputs, state_dict, stored

EXACT = "exact"
CASE = "sd3_w5"
SHORT = torch.tensor((1.0, 0.7, 0.3, 0.0))


def relative(a, b):
    return float((a - b).norm() / b.norm())


def conditioning(context, pooled=None, **extras):
    return [[context, extras if pooled is None else {"pooled_output": pooled, **extras}]]


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def prompts():
    """Prompt, null, negative of the small golden case, one row each."""
    data = inputs(CASE)
    return (
        conditioning(data["context"][:1], data["pooled"][:1]),
        conditioning(data["context"][1:], data["pooled_null"]),
        conditioning(data["context"][1:], data["pooled"][1:]),
    )


@pytest.fixture
def runner(host):
    """Sample with the host's guider and sampler; count the rows of each forward."""
    samplers = host.comfy.samplers

    def run(model, positive, x, sigmas=SHORT, negative=None, cfg=1.0):
        run.rows = []
        seen = model.model.diffusion_model.x_embedder.register_forward_hook(
            lambda module, args, out: run.rows.append(len(args[0]))
        )
        guider = samplers.CFGGuider(model) if negative else host.custom_sampler.Guider_Basic(model)
        if negative:
            guider.set_conds(positive, negative)
            guider.set_cfg(cfg)
        else:
            guider.set_conds(positive)
        try:
            latent = torch.zeros_like(x)
            # x is the state at the first sigma itself, so the empty latent adds nothing
            out = guider.sample(
                x / sigmas[0], latent, samplers.sampler_object("euler"), sigmas, seed=0, disable_pbar=True
            )
        finally:
            seen.remove()
        return model.model.process_latent_in(out)

    return run


def velocity(host, model, x, context, pooled, sigma):
    """Evaluate the bare diffusion model."""
    host.comfy.model_management.load_models_gpu([model])
    t = torch.full((len(x),), 1000 * sigma)
    with torch.no_grad():
        return model.model.diffusion_model(x, t, context=context, y=pooled)


def one_step_velocity(run, model, positive, x, sigma, **options):
    """Read the velocity off one Euler step down to sigma 0."""
    return (x - run(model, positive, x, torch.tensor((sigma, 0.0)), **options)) / sigma


def test_velocity_of_both_golden_cases(case, golden_model, pack, runner, host, record_property):
    config, data, expected, model = CASES[case], inputs(case), stored(case), golden_model(case)
    positive = conditioning(data["context"], data["pooled"])
    null = conditioning(data["context"][:1], data["pooled_null"])
    before = velocity(host, model, data["x"], data["context"], data["pooled"], config["sigma"])
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, config["w"], guidance_precision=EXACT)
    got = one_step_velocity(runner, fused, prompt, data["x"], config["sigma"])
    record_property("relative_error", relative(got, expected["velocity"]))
    assert relative(got, expected["velocity"]) < 1e-5
    assert runner.rows == [config["batch"]]
    assert relative(before, expected["velocity_unfused"]) < 1e-5
    after = velocity(host, model, data["x"], data["context"], data["pooled"], config["sigma"])
    assert torch.equal(before, after)


def test_eight_euler_steps_of_both_golden_cases(case, golden_model, pack, runner, record_property):
    config, data, expected, model = CASES[case], inputs(case), stored(case), golden_model(case)
    positive = conditioning(data["context"], data["pooled"])
    null = conditioning(data["context"][:1], data["pooled_null"])
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, config["w"], guidance_precision=EXACT)
    got = runner(fused, prompt, data["x"], torch.tensor(EULER8_SIGMAS))
    record_property("relative_error", relative(got, expected["euler8"]))
    assert relative(got, expected["euler8"]) < 1e-4
    assert runner.rows == [config["batch"]] * 8


def test_the_model_is_bit_identical_before_and_after(golden_model, pack, runner, prompts):
    model, x = golden_model(CASE), inputs(CASE)["x"][:1]
    positive, null, _ = prompts
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    before = runner(model, positive, x)
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, 5.0)
    assert not torch.equal(runner(fused, prompt, x), before)
    assert torch.equal(runner(model, positive, x), before)
    assert torch.equal(runner(model, prompt, x), before), "conditioning alone must not change a model"
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())
    assert not model.model.diffusion_model.y_embedder._forward_hooks
    assert model.model.extra_conds.__func__ is type(model.model).extra_conds
    assert set(positive[0][1]) == {"pooled_output"}


def test_two_clones_do_not_interact(golden_model, pack, runner, prompts):
    model, x = golden_model(CASE), inputs(CASE)["x"][:1]
    positive, null, _ = prompts
    a = pack.comfy_host.apply_fusion(model, positive, null, 2.0)
    b = pack.comfy_host.apply_fusion(model, positive, null, 9.0)
    first = runner(*a, x)
    assert not torch.equal(runner(*b, x), first)
    assert torch.equal(runner(*a, x), first)


def test_a_model_fused_twice_takes_each_prompt_once(golden_model, pack, runner, prompts):
    model, x = golden_model(CASE), inputs(CASE)["x"][:1]
    positive, null, _ = prompts
    once, prompt = pack.comfy_host.apply_fusion(model, positive, null, 5.0)
    twice, prompt = pack.comfy_host.apply_fusion(once, prompt, null, 5.0)
    assert torch.equal(runner(twice, prompt, x), runner(once, prompt, x))


def test_cfg_other_than_one_leaves_negative_rows_unfused(golden_model, pack, runner, prompts, caplog):
    model, x, sigma = golden_model(CASE), inputs(CASE)["x"][:1], 0.7
    positive, null, negative = prompts
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, 5.0)
    cond = one_step_velocity(runner, fused, prompt, x, sigma)
    uncond = one_step_velocity(runner, model, negative, x, sigma)
    with caplog.at_level(logging.WARNING):
        got = one_step_velocity(runner, fused, prompt, x, sigma, negative=negative, cfg=3.0)
    assert runner.rows == [2], "prompt with negative must share one forward"
    assert relative(got, uncond + 3.0 * (cond - uncond)) < 1e-5
    assert [record for record in caplog.records if "set cfg to 1" in record.message]


def test_the_note_on_cfg_comes_once_per_run(golden_model, pack, runner, prompts, caplog):
    positive, null, negative = prompts
    fused, prompt = pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, 5.0)
    x = inputs(CASE)["x"][:1]
    for cfg, notes in ((4.0, 1), (1.0, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            runner(fused, prompt, x, negative=negative, cfg=cfg)
        assert sum("set cfg to 1" in record.message for record in caplog.records) == notes
    assert runner.rows == [1, 1, 1], "at cfg 1 a step is one pass"


def test_a_run_without_any_guidance_says_so(golden_model, pack, runner, prompts, caplog):
    positive, null, _ = prompts
    fused, prompt = pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, 5.0)
    for given, notes in ((positive, 1), (prompt, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            runner(fused, given, inputs(CASE)["x"][:1])
        assert sum("no prompt of this run carries guidance" in record.message for record in caplog.records) == notes


def test_a_dropped_model_goes_with_its_last_user(pack, host, runner, prompts):
    """The host warns of models that only a full collection of garbage takes away."""
    model = host.comfy.sd.load_diffusion_model_state_dict(state_dict(CASE), model_options={"dtype": torch.float32})
    gc.collect()
    gc.disable()
    try:
        fused, positive = pack.comfy_host.apply_fusion(model, prompts[0], prompts[1], 5.0)
        runner(fused, positive, inputs(CASE)["x"][:1])
        runner(model, prompts[0], inputs(CASE)["x"][:1])  # the host puts back what was patched
        left = weakref.ref(model.model)
        del model, fused, positive
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("null", "told"),
    [
        ("zeros", "null is all zeros"),
        ("prompt", "null is the prompt itself"),
        ("in double", "null is the prompt itself"),
        ("null", ""),
    ],
)
def test_a_null_that_is_none_is_said(golden_model, pack, prompts, caplog, null, told):
    wired = {
        "zeros": conditioning(prompts[1][0][0], torch.zeros_like(prompts[1][0][1]["pooled_output"])),
        "prompt": prompts[0],
        "in double": conditioning(prompts[0][0][0], prompts[0][0][1]["pooled_output"].double()),
        "null": prompts[1],
    }
    with caplog.at_level(logging.WARNING):
        pack.comfy_host.apply_fusion(golden_model(CASE), prompts[0], wired[null], 5.0)
    assert [told in record.message for record in caplog.records] == ([True] if told else [])


def test_every_row_has_its_own_guidance(golden_model, pack, runner, prompts, host):
    model, data = golden_model(CASE), inputs(CASE)
    positive, null, negative = prompts
    x = torch.cat((data["x"], data["x"][:1].flip(-1)))
    rows = [2.0, 5.0, 13.25]
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, rows)
    together = runner(fused, prompt, x, negative=negative, cfg=2.0)
    assert runner.rows == [6] * 3
    for i, w in enumerate(rows):
        alone = pack.comfy_host.apply_fusion(model, positive, null, w)
        assert relative(together[i : i + 1], runner(*alone, x[i : i + 1], negative=negative, cfg=2.0)) < 1e-5


def test_two_prompts_of_different_guidance_share_a_forward(golden_model, pack, runner, prompts):
    model, x, sigma = golden_model(CASE), inputs(CASE)["x"][:1], 0.7
    positive, null, other = prompts
    fused, a = pack.comfy_host.apply_fusion(model, positive, null, 3.0)
    fused, b = pack.comfy_host.apply_fusion(fused, other, null, 11.0)
    parts = [one_step_velocity(runner, fused, part, x, sigma) for part in (a, b, positive)]
    got = one_step_velocity(runner, fused, a + b + positive, x, sigma)
    assert runner.rows == [3]
    assert relative(got, sum(parts) / 3) < 1e-5


def test_areas_with_time_ranges(golden_model, pack, runner, prompts, host):
    model, x = golden_model(CASE), inputs(CASE)["x"][:1]
    positive, null, other = prompts
    fused, a = pack.comfy_host.apply_fusion(model, positive, null, 3.0)
    _, b = pack.comfy_host.apply_fusion(model, other, null, 7.0)
    half = {"area": (8, 16, 0, 0), "strength": 1.0, "set_area_to_bounds": False}
    late = {"start_percent": 0.5, "end_percent": 1.0}
    values = host.node_helpers.conditioning_set_values
    out = runner(fused, values(a, half) + values(b, late) + b, x)
    assert torch.isfinite(out).all()


def test_a_lora_on_the_embedders_is_in_the_term(golden_model, pack, runner, prompts):
    model, x = golden_model(CASE), inputs(CASE)["x"][:1]
    positive, null, _ = prompts
    diff = {
        f"diffusion_model.{name}.weight": ("diff", (torch.full(shape, 0.02),))
        for name, shape in (("y_embedder.mlp.2", (128, 128)), ("t_embedder.mlp.0", (128, 256)))
    }
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, 5.0, gain=1.0)
    plain = runner(fused, prompt, x)
    lora_after = fused.clone()
    assert len(lora_after.add_patches(diff, 1.0)) == 2
    lora_first = model.clone()
    lora_first.add_patches(diff, 1.0)
    before_the_node = runner(*pack.comfy_host.apply_fusion(lora_first, positive, null, 5.0, gain=1.0), x)
    after_the_node = runner(lora_after, prompt, x)
    assert torch.equal(before_the_node, after_the_node)
    assert relative(after_the_node, plain) > 1e-3
    assert torch.equal(runner(fused, prompt, x), plain), "nothing of the LoRA may stay"

    # the same weights without LoRA machinery, as reference
    state = model.model.diffusion_model.state_dict()
    kept = {name: state[name].clone() for name in ("y_embedder.mlp.2.weight", "t_embedder.mlp.0.weight")}
    try:
        for name in kept:
            state[name].add_(0.02)
        assert relative(runner(fused, prompt, x), after_the_node) < 1e-5
    finally:
        for name, value in kept.items():
            state[name].copy_(value)


def test_rows_that_another_pack_appends_stay_unfused(golden_model, pack, runner, prompts):
    model, x = golden_model(CASE), inputs(CASE)["x"][:1]
    positive, null, negative = prompts
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, 5.0, gain=1.0)
    network, extra = model.model.diffusion_model, negative[0][1]["pooled_output"]
    forward, seen = network.forward, {}

    def widened(*args, y, **kwargs):
        """Embed one more row behind the host's, as NAG does in its own forward."""
        seen["wide"], seen["plain"] = network.y_embedder(torch.cat((y, extra))), network.y_embedder.mlp(y)
        return forward(*args, y=y, **kwargs)

    like_nag = fused.clone()
    like_nag.add_object_patch("diffusion_model.forward", widened)
    assert torch.equal(runner(like_nag, prompt, x), runner(fused, prompt, x))
    assert relative(seen["wide"][1:], network.y_embedder.mlp(extra)) < 1e-6
    assert relative(seen["wide"][:1], seen["plain"]) > 1e-2


def test_an_interrupted_run_leaves_nothing_behind(golden_model, pack, runner, prompts):
    model, x = golden_model(CASE), inputs(CASE)["x"][:1]
    positive, null, _ = prompts
    before = runner(model, positive, x)
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, 5.0)
    broken = fused.clone()
    broken.set_model_patch_replace(lambda args, extra: 1 / 0, "dit", "double_block", 0)
    with pytest.raises(ZeroDivisionError):
        runner(broken, prompt, x)
    assert not model.model.diffusion_model.y_embedder._forward_hooks
    assert torch.equal(runner(model, positive, x), before)


def test_ksampler_node_takes_the_pair(golden_model, pack, prompts, host):
    model, x = golden_model(CASE), inputs(CASE)["x"][:1]
    positive, null, negative = prompts
    node = pack.nodes["TeEFusionConditioning"]
    fused, prompt = node.execute(model, positive, null, 5.0).args
    sample = host.comfy.sample.sample
    common = dict(denoise=1.0, seed=1, disable_pbar=True)
    out = sample(fused, x, 3, 1.0, "euler", "normal", prompt, negative, torch.zeros_like(x), **common)
    plain = sample(model, x, 3, 1.0, "euler", "normal", positive, negative, torch.zeros_like(x), **common)
    assert torch.isfinite(out).all() and not torch.equal(out, plain)


def test_compiled_models_see_a_new_guidance(golden_model, pack, runner, prompts, host):
    wrapper = pytest.importorskip("comfy_api.torch_helpers").set_torch_compile_wrapper
    model, x = golden_model(CASE), inputs(CASE)["x"][:1]
    positive, null, _ = prompts
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for w in (2.0, 9.0):
        fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, w, gain=1.0)
        expected = runner(fused, prompt, x)
        compiled = fused.clone()
        wrapper(model=compiled, backend=counted)
        assert relative(runner(compiled, prompt, x), expected) < 1e-5
    assert graphs


def test_half_precision_models(golden_model, pack, runner, prompts, host):
    x = inputs(CASE)["x"][:1]
    positive, null, _ = prompts
    options = {"dtype": torch.bfloat16}
    half = host.comfy.sd.load_diffusion_model_state_dict(state_dict(CASE), model_options=options)
    got = runner(*pack.comfy_host.apply_fusion(half, positive, null, 5.0, gain=0.5), x)
    full = runner(*pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, 5.0, gain=0.5), x)
    assert relative(got, full) < 0.02


def test_student_metadata_sets_gain_precision_range(golden_model, pack, runner, prompts):
    x = inputs(CASE)["x"][:1]
    positive, null, _ = prompts
    student = golden_model(CASE).clone()
    metadata = dict(
        gain=0.25, guidance_min=1.0, guidance_max=8.0, guidance_precision=EXACT, guidance_embedding_scale=1000.0
    )
    student.set_attachments(pack.comfy_host.STUDENT_KEY, metadata)
    by_file = pack.comfy_host.apply_fusion(student, positive, null, 5.0)
    by_hand = pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, 5.0, guidance_precision=EXACT, gain=0.25)
    assert torch.equal(runner(*by_file, x), runner(*by_hand, x))
    for w in (0.5, 8.01, [5.0, 9.0]):
        with pytest.raises(pack.errors.InvalidConfig, match="trained for w from 1 to 8"):
            pack.comfy_host.apply_fusion(student, positive, null, w)


def test_published_students_default_to_official_bf16(golden_model, pack, prompts):
    positive, null, _ = prompts
    _, prompt = pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, 5.0)
    extras = prompt[0][1]
    assert extras["teefusion_guidance_timestep"].tolist() == [4992.0]
    assert extras["teefusion_gain"] == 1 / 256


class TestBadInput:
    """Each is one clear message that names the node, before anything is sampled."""

    @pytest.fixture
    def refuse(self, golden_model, pack, prompts):
        positive, null, _ = prompts

        def check(error, match, **changed):
            arguments = dict(model=golden_model(CASE), positive=positive, null=null, guidance=5.0) | changed
            with pytest.raises(getattr(pack.errors, error), match=match) as caught:
                pack.nodes["TeEFusionConditioning"].execute(**arguments)
            assert str(caught.value).startswith("TeEFusion Conditioning: ")

        return check

    @pytest.mark.parametrize("w", [float("nan"), float("inf"), -1.0])
    def test_guidance_that_is_no_strength(self, refuse, w):
        refuse("InvalidConfig", "finite number, 0 or more", guidance=w)

    def test_unknown_precision(self, refuse):
        refuse("InvalidConfig", "choose one of", guidance_precision="fp4")

    @pytest.mark.parametrize("name", ["positive", "null"])
    def test_prompt_without_pooled_output(self, refuse, prompts, name):
        refuse("InvalidConfig", f"{name} has no pooled_output", **{name: conditioning(prompts[0][0][0])})

    @pytest.mark.parametrize("name", ["positive", "null"])
    def test_prompt_of_another_width(self, refuse, prompts, name):
        other = conditioning(prompts[0][0][0], torch.zeros(1, 768))
        refuse("ShapeMismatch", rf"{name} has shape \[1, 768\], the model takes \[rows, 2048\]", **{name: other})

    @pytest.mark.parametrize("name", ["positive", "null"])
    def test_no_prompt_at_all(self, refuse, name):
        refuse("InvalidConfig", "connect", **{name: []})

    def test_several_nulls(self, refuse, prompts):
        refuse("InvalidConfig", "null holds 2 prompts", null=prompts[1] * 2)

    def test_rows_that_do_not_fit(self, refuse, prompts):
        three = conditioning(prompts[0][0][0], torch.zeros(3, 2048))
        two = conditioning(prompts[0][0][0], torch.zeros(2, 2048))
        refuse("ShapeMismatch", "positive has 3, null has 2", positive=three, null=two)
        refuse("ShapeMismatch", "guidance has 2", positive=three, guidance=[1.0, 2.0])

    def test_model_without_pooled_text(self, refuse, golden_model, host):
        refuse("UnsupportedArchitecture", "takes no pooled text", model=_tiny(host, adm_in_channels=None))

    def test_model_of_another_family(self, refuse, host):
        refuse("UnsupportedArchitecture", "another family: .* SD3.5, .* DICE Sharpen", model=_other_family(host))

    def test_a_latent_batch_that_does_not_fit(self, golden_model, pack, runner, prompts):
        positive, null, _ = prompts
        fused, prompt = pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, [2.0, 3.0])
        with pytest.raises(pack.errors.ShapeMismatch, match="TeEFusion: .* 2 rows, the latent batch 3"):
            runner(fused, prompt, torch.zeros(3, 16, 16, 16))


def _patcher(host, model):
    return host.comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def _tiny(host, **changed):
    config = dict(
        in_channels=16, patch_size=2, depth=1, input_size=None, pos_embed_max_size=8,
        num_patches=64, adm_in_channels=32, num_blocks=1, context_embedder_config=None,
    )  # fmt: skip
    config = host.comfy.supported_models.SD3(config | changed)
    config.set_inference_dtype(torch.float32, None)
    return _patcher(host, config.get_model({}, "", device="cpu"))


def _other_family(host):
    flux = torch.nn.Module()
    flux.time_in, flux.vector_in = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    model = torch.nn.Module()
    model.diffusion_model = flux
    return _patcher(host, model)
