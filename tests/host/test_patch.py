"""Guidance fusion inside the real host."""

import gc
import json
import logging
import weakref

import pytest
import torch
from golden_weights import CASES, EULER8_SIGMAS, inputs, state_dict, stored

from .reflection_parts import relative

EXACT = "exact"
CASE = "sd3_w5"
SHORT = torch.tensor((1.0, 0.7, 0.3, 0.0))


def conditioning(context, pooled=None, **extras):
    return [[context, extras if pooled is None else {"pooled_output": pooled, **extras}]]


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def prompts():
    data = inputs(CASE)
    return (
        conditioning(data["context"][:1], data["pooled"][:1]),
        conditioning(data["context"][1:], data["pooled_null"]),
        conditioning(data["context"][1:], data["pooled"][1:]),
    )


@pytest.fixture
def runner(host):
    samplers = host.comfy.samplers

    def run(model, positive, x, sigmas=SHORT, negative=None, cfg=1.0):
        run.rows = []
        seen = model.model.diffusion_model.x_embedder.register_forward_hook(
            lambda module, args, out: run.rows.append(len(args[0]))
        )
        guider = samplers.CFGGuider(model) if negative else host.custom_sampler.Guider_Basic(model)
        if negative:
            guider.set_cfg(cfg)
        guider.set_conds(*((positive, negative) if negative else (positive,)))
        try:
            # x is the state at the first sigma itself, so the empty latent adds nothing
            given = x / sigmas[0], torch.zeros_like(x), samplers.sampler_object("euler"), sigmas
            out = guider.sample(*given, seed=0, disable_pbar=True)
        finally:
            seen.remove()
        return model.model.process_latent_in(out)

    return run


def velocity(host, model, x, context, pooled, sigma):
    host.comfy.model_management.load_models_gpu([model])
    t = torch.full((len(x),), 1000 * sigma)
    with torch.no_grad():
        return model.model.diffusion_model(x, t, context=context, y=pooled)


def one_step_velocity(run, model, positive, x, sigma, **options):
    return (x - run(model, positive, x, torch.tensor((sigma, 0.0)), **options)) / sigma


def test_both_golden_cases(case, golden_model, pack, runner, host, record_property):
    """The velocity at one level, then eight Euler steps."""
    config, data, expected, model = CASES[case], inputs(case), stored(case), golden_model(case)
    positive = conditioning(data["context"], data["pooled"])
    null = conditioning(data["context"][:1], data["pooled_null"])
    before = velocity(host, model, data["x"], data["context"], data["pooled"], config["sigma"])
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, config["w"], guidance_precision=EXACT)
    got = one_step_velocity(runner, fused, prompt, data["x"], config["sigma"])
    record_property("relative_error", relative(got, expected["velocity"]))
    assert relative(got, expected["velocity"]) < 1e-5 and runner.rows == [config["batch"]]
    assert relative(before, expected["velocity_unfused"]) < 1e-5
    assert torch.equal(before, velocity(host, model, data["x"], data["context"], data["pooled"], config["sigma"]))
    got = runner(fused, prompt, data["x"], torch.tensor(EULER8_SIGMAS))
    assert relative(got, expected["euler8"]) < 1e-4 and runner.rows == [config["batch"]] * 8


def test_the_model_is_bit_identical_before_and_after(golden_model, pack, runner, prompts):
    model, x, (positive, null, _) = golden_model(CASE), inputs(CASE)["x"][:1], prompts
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


def test_a_model_fused_twice_takes_each_prompt_once(golden_model, pack, runner, prompts):
    model, x, (positive, null, _) = golden_model(CASE), inputs(CASE)["x"][:1], prompts
    once, prompt = pack.comfy_host.apply_fusion(model, positive, null, 5.0)
    twice, prompt = pack.comfy_host.apply_fusion(once, prompt, null, 5.0)
    assert torch.equal(runner(twice, prompt, x), runner(once, prompt, x))


def test_cfg_other_than_one_leaves_negative_rows_unfused(golden_model, pack, runner, prompts):
    model, x, (positive, null, negative), sigma = golden_model(CASE), inputs(CASE)["x"][:1], prompts, 0.7
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, 5.0)
    cond = one_step_velocity(runner, fused, prompt, x, sigma)
    uncond = one_step_velocity(runner, model, negative, x, sigma)
    got = one_step_velocity(runner, fused, prompt, x, sigma, negative=negative, cfg=3.0)
    assert runner.rows == [2], "prompt with negative must share one forward"
    assert relative(got, uncond + 3.0 * (cond - uncond)) < 1e-5


@pytest.mark.parametrize(("guided", "guider", "scales", "sampler", "said"), [
    (True, "CFGGuider", (1.0,), "euler", None), (True, "CFGGuider", (4.0,), "euler", "cfg to 1: it is 4"),
    (False, "CFGGuider", (1.0,), "euler", "no prompt"), (True, "CFGGuider", (1.0,), "euler_cfg_pp", "choose euler as"),
    (True, "DualCFGGuider", (1.0, 1.0, "regular"), "euler", None),
    (True, "DualCFGGuider", (1.0, 4.0, "regular"), "euler", "it is 4 (cfg_cond2_negative)"),
])  # fmt: skip
def test_a_run_warns_once_of_a_second_guidance_or_of_none(
    golden_model, pack, host, prompts, caplog, guided, guider, scales, sampler, said
):
    positive, null, negative = prompts
    fused, prompt = pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, 5.0)
    given = [prompt if guided else positive, *[negative] * len(scales[:2])]
    guider = getattr(host.custom_sampler, guider).execute(fused, *given, *scales).args[0]
    x, sampler = torch.zeros_like(inputs(CASE)["x"][:1]), host.comfy.samplers.sampler_object(sampler)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        guider.sample(x, x, sampler, SHORT, disable_pbar=True)
    # the host has its own
    ours = [record.getMessage() for record in caplog.records if "teefusion_core" in record.name]
    assert len(ours) == bool(said) and all(said in line for line in ours), ours


def test_at_cfg_1_a_step_is_one_pass(golden_model, pack, runner, prompts):
    positive, null, negative = prompts
    fused, prompt = pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, 5.0)
    runner(fused, prompt, inputs(CASE)["x"][:1], negative=negative)
    assert runner.rows == [1, 1, 1]


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


@pytest.mark.parametrize(("precision", "w", "told", "warnings"), [
    ("official bf16", 5.0, "published student: w from 2 to 14", 0), ("official bf16", 20.0, "published student", 1),
    ("exact", 20.0, "ordinary model", 1), (None, 5.0, "ordinary model", 1),
])  # fmt: skip
def test_a_model_without_a_student_file_is_taken_for(golden_model, pack, prompts, caplog, precision, w, told, warnings):
    with caplog.at_level(logging.INFO):
        pack.comfy_host.apply_fusion(golden_model(CASE), prompts[0], prompts[1], w, guidance_precision=precision)
    assert told in caplog.text
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == warnings


@pytest.mark.parametrize(("method", "uses_null"), [("teefusion", True), ("guidance only", False)])
def test_zeros_or_the_prompt_itself_as_null_are_reported(golden_model, pack, prompts, caplog, method, uses_null):
    (context, extras), *_ = prompts[0]
    student = golden_model(CASE).clone()
    student.set_attachments(pack.comfy_host.STUDENT_KEY, {"method": method})
    zeros, double = torch.zeros_like(extras["pooled_output"]), extras["pooled_output"].double()
    nulls = [(prompts[1], 0), (prompts[0], 1), (conditioning(context, zeros), 1), (conditioning(context, double), 1)]
    for null, warnings in nulls:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            pack.comfy_host.apply_fusion(student, prompts[0], null, 5.0)
        assert len([line for line in caplog.messages if "empty prompt" in line]) == warnings * uses_null


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["context", "pooled_output"])
@pytest.mark.parametrize("name", ["positive", "null"])
def test_prompts_that_are_nan_are_named(golden_model, pack, prompts, name, part, value):
    given = {"positive": prompts[0], "null": prompts[1]}
    context, extras = given[name][0]
    broken = [[context * value, extras]] if part == "context" else [[context, {**extras, part: extras[part] * value}]]
    with pytest.raises(pack.errors.InvalidConfig, match=f"^TeEFusion Conditioning: {name} has NaN .* in prompt 1;"):
        pack.nodes["TeEFusionConditioning"].execute(golden_model(CASE), **given | {name: broken}, guidance=2.0)


def test_every_row_has_its_own_guidance(golden_model, pack, runner, prompts, host):
    model, data, (positive, null, negative) = golden_model(CASE), inputs(CASE), prompts
    x = torch.cat((data["x"], data["x"][:1].flip(-1)))
    rows = [2.0, 5.0, 13.25]
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, rows)
    together = runner(fused, prompt, x, negative=negative, cfg=2.0)
    assert runner.rows == [6] * 3
    for i, w in enumerate(rows):
        alone = pack.comfy_host.apply_fusion(model, positive, null, w)
        assert relative(together[i : i + 1], runner(*alone, x[i : i + 1], negative=negative, cfg=2.0)) < 1e-5


def test_two_prompts_of_different_guidance_share_a_forward(golden_model, pack, runner, prompts):
    model, x, (positive, null, other), sigma = golden_model(CASE), inputs(CASE)["x"][:1], prompts, 0.7
    fused, a = pack.comfy_host.apply_fusion(model, positive, null, 3.0)
    fused, b = pack.comfy_host.apply_fusion(fused, other, null, 11.0)
    parts = [one_step_velocity(runner, fused, part, x, sigma) for part in (a, b, positive)]
    got = one_step_velocity(runner, fused, a + b + positive, x, sigma)
    assert runner.rows == [3]
    assert relative(got, sum(parts) / 3) < 1e-5


def test_a_lora_on_the_embedders_is_in_the_term(golden_model, pack, runner, prompts):
    model, x, (positive, null, _) = golden_model(CASE), inputs(CASE)["x"][:1], prompts
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


def test_rows_that_another_pack_appends_stay_unfused(golden_model, pack, runner, prompts):
    model, x, (positive, null, negative) = golden_model(CASE), inputs(CASE)["x"][:1], prompts
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
    model, x, (positive, null, _) = golden_model(CASE), inputs(CASE)["x"][:1], prompts
    before = runner(model, positive, x)
    fused, prompt = pack.comfy_host.apply_fusion(model, positive, null, 5.0)
    broken = fused.clone()
    broken.set_model_patch_replace(lambda args, extra: 1 / 0, "dit", "double_block", 0)
    with pytest.raises(ZeroDivisionError):
        runner(broken, prompt, x)
    assert not model.model.diffusion_model.y_embedder._forward_hooks
    assert torch.equal(runner(model, positive, x), before)


def test_compiled_models_see_a_new_guidance(golden_model, pack, runner, prompts, host):
    wrapper = pytest.importorskip("comfy_api.torch_helpers").set_torch_compile_wrapper
    model, x, (positive, null, _) = golden_model(CASE), inputs(CASE)["x"][:1], prompts
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
    x, (positive, null, _) = inputs(CASE)["x"][:1], prompts
    options = {"dtype": torch.bfloat16}
    half = host.comfy.sd.load_diffusion_model_state_dict(state_dict(CASE), model_options=options)
    got = runner(*pack.comfy_host.apply_fusion(half, positive, null, 5.0, gain=0.5), x)
    full = runner(*pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, 5.0, gain=0.5), x)
    assert relative(got, full) < 0.02


def test_student_metadata_sets_gain_precision_range(golden_model, pack, runner, prompts):
    x, (positive, null, _) = inputs(CASE)["x"][:1], prompts
    student = golden_model(CASE).clone()
    metadata = dict(gain=0.25, guidance_min=1.0, guidance_max=8.0)
    metadata |= dict(guidance_precision=EXACT, guidance_embedding_scale=1000.0)
    student.set_attachments(pack.comfy_host.STUDENT_KEY, metadata)
    by_file = pack.comfy_host.apply_fusion(student, positive, null, 5.0)
    by_hand = pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, 5.0, guidance_precision=EXACT, gain=0.25)
    assert torch.equal(runner(*by_file, x), runner(*by_hand, x))
    for w in (0.5, 8.01, [5.0, 9.0]):
        with pytest.raises(pack.errors.InvalidConfig, match="allows 1 to 8"):
            pack.comfy_host.apply_fusion(student, positive, null, w)


def test_a_student_says_what_its_guidance_means(golden_model, pack, prompts, caplog):
    positive, null, _ = prompts
    student = golden_model(CASE).clone()
    metadata = dict(gain=0.25, guidance_min=1.0, guidance_max=8.0, guidance_precision=EXACT, teacher="a W2SD guider")
    student.set_attachments(pack.comfy_host.STUDENT_KEY, metadata | {"student_steps": 6, "scheduler": "simple"})
    with caplog.at_level(logging.INFO):
        pack.comfy_host.apply_fusion(student, positive, null, 3.0)
    [said] = [line for line in caplog.messages if "a W2SD guider" in line]
    assert all(part in said for part in ("guidance 3 ", "CFG scale 4,", "Allowed: 1 to 8", "cfg to 1, steps to 6"))


def test_a_calibrated_student_gets_the_w_that_it_needs(golden_model, pack, runner, prompts):
    x, (positive, null, _) = inputs(CASE)["x"][:1], prompts
    columns = {"wanted": [1, 3, 6], "inner": [1.5, 5, 9], "teacher": [2, 4, 7], "before": [1, 2, 3], "after": [2, 4, 7]}
    metadata = dict(gain=0.25, guidance_min=1.0, guidance_max=8.0, guidance_precision=EXACT)
    student, plain = golden_model(CASE).clone(), golden_model(CASE).clone()
    student.set_attachments(pack.comfy_host.STUDENT_KEY, metadata | {"calibration": json.dumps(columns)})
    plain.set_attachments(pack.comfy_host.STUDENT_KEY, metadata | {"guidance_max": 9.0})
    for w, inner in ((1.0, 1.5), (2.0, 3.25), (6.0, 9.0), ([1.0, 4.5], [1.5, 7.0])):
        [(_, wanted)] = pack.comfy_host.apply_fusion(student, positive, null, w)[1]
        [(_, given)] = pack.comfy_host.apply_fusion(plain, positive, null, inner)[1]
        assert torch.equal(wanted["teefusion_guidance_timestep"], given["teefusion_guidance_timestep"])
    assert torch.equal(
        runner(*pack.comfy_host.apply_fusion(student, positive, null, 3.0), x),
        runner(*pack.comfy_host.apply_fusion(plain, positive, null, 5.0), x),
    )
    for w, said in ((7.0, "guidance is 7, but this student allows 1 to 6"), ([2.0, 9.0], "guidance is 9, but")):
        with pytest.raises(pack.errors.InvalidConfig, match=said):
            pack.comfy_host.apply_fusion(student, positive, null, w)


def test_published_students_default_to_official_bf16(golden_model, pack, prompts):
    positive, null, _ = prompts
    _, prompt = pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, 5.0)
    extras = prompt[0][1]
    assert extras["teefusion_guidance_timestep"].tolist() == [4992.0] and extras["teefusion_gain"] == 1 / 256


class TestBadInput:
    """Each is one error that names the node and the value, before anything is sampled."""

    @pytest.fixture
    def refuse(self, golden_model, pack, prompts):
        positive, null, _ = prompts

        def check(error, match, **changed):
            arguments = dict(model=golden_model(CASE), positive=positive, null=null, guidance=5.0) | changed
            with pytest.raises(getattr(pack.errors, error), match=f"^TeEFusion Conditioning: .*{match}"):
                pack.nodes["TeEFusionConditioning"].execute(**arguments)

        return check

    @pytest.mark.parametrize("w", [float("nan"), float("inf"), -1.0])
    def test_guidance_that_is_no_strength(self, refuse, w):
        refuse("InvalidConfig", "guidance", guidance=w)

    def test_unknown_precision(self, refuse):
        refuse("InvalidConfig", "fp4", guidance_precision="fp4")

    @pytest.mark.parametrize("name", ["positive", "null"])
    def test_prompts_that_the_model_cannot_take(self, refuse, prompts, name):
        context = prompts[0][0][0]
        refuse("InvalidConfig", name, **{name: []})
        refuse("InvalidConfig", f"{name}.*pooled_output", **{name: conditioning(context)})
        refuse("ShapeMismatch", f"{name}.*768.*2048", **{name: conditioning(context, torch.zeros(1, 768))})

    def test_several_nulls(self, refuse, prompts):
        refuse("InvalidConfig", "null.*2", null=prompts[1] * 2)

    def test_rows_that_do_not_fit(self, refuse, prompts):
        three, two = (conditioning(prompts[0][0][0], torch.zeros(rows, 2048)) for rows in (3, 2))
        refuse("ShapeMismatch", "positive.*3.*null.*2", positive=three, null=two)
        refuse("ShapeMismatch", "guidance.*2", positive=three, guidance=[1.0, 2.0])

    def test_a_latent_batch_that_does_not_fit(self, golden_model, pack, runner, prompts):
        positive, null, _ = prompts
        fused, prompt = pack.comfy_host.apply_fusion(golden_model(CASE), positive, null, [2.0, 3.0])
        with pytest.raises(pack.errors.ShapeMismatch, match="2.*3"):
            runner(fused, prompt, torch.zeros(3, 16, 16, 16))
