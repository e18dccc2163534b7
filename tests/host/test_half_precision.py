"""Models that compute in half precision, as on a GPU, against their float32 twins.

Half precision is as exact as the base alone is: the tolerance of a guided model is a few times the difference that the
base has without guidance, in the same run. CFG scales amplify that difference, so they are part of the tolerance.
"""

from functools import cache, partial

import pytest
import torch

from lab.demo_world.host import computing_in
from teefusion_core.guidance.methods import DISTILL_CFG, GUIDANCE_ONLY, METHODS, SPLIT, TEEFUSION, GuidanceEmbedder
from teefusion_core.training.adapters import TRAINABLE
from teefusion_core.training.loop_settings import TrainSettings

from .distillation_parts import example_of, shaken
from .reflection_parts import SD3_LORA, randn, relative

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
GAINS = {TEEFUSION: 0.02, GUIDANCE_ONLY: 1.0, DISTILL_CFG: 1.0, SPLIT: 0.6}
"""Gains at which each term changes the result by much more than rounding."""
FEW, GUIDANCE, NOISE = 3, 5.0, (2, 16, 8, 8)
LARGE, AGREE = 2.0**-10, {"bf16": 0.9, "fp16": 0.95}
"""Weight of a loss of 8 x 8 latents that makes its gradients as small as those of 256 x 256; share of equal signs."""
each_dtype = pytest.mark.parametrize("dtype", HALF)


@pytest.fixture(scope="module")
def base(top):
    """Return the demo base in a dtype, freshly cloned."""
    made = cache(lambda name: computing_in(top.world().model, {**HALF, "fp32": torch.float32}[name]))
    return lambda name: made(name).clone()


@pytest.fixture(scope="module")
def floor(top, base):
    """Return the difference of the base without guidance from its float32 twin."""
    return cache(lambda name: relative(*(sampled(top, base(kind)) for kind in (name, "fp32"))))


def sampled(top, model, positive=None, steps=2):
    """Sample without CFG from one noise."""
    guider, world = top.host.comfy.samplers.CFGGuider(model), top.world()
    guider.set_conds(positive or world.positive, world.negative)
    guider.set_cfg(1.0)
    sampler, noise = top.host.comfy.samplers.sampler_object("euler"), randn(4, *NOISE)
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), sampler, top.sigmas(world, steps, model=model), seed=0)


def student(top, model, method=TEEFUSION, gain=None):
    """Return the model as a student without an update, with its prompt."""
    world, parts, weights = top.world(), top.pack.comfy_host, None
    if METHODS[method].embeds:
        weights = GuidanceEmbedder(256, 256)
        torch.nn.init.normal_(weights.mlp[2].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    gain = GAINS[method] if gain is None else gain
    model.set_attachments(parts.STUDENT_KEY, {"method": method, "gain": gain, "guidance_precision": "exact"})
    model.set_attachments(parts.EMBEDDER_KEY, weights)
    return parts.apply_fusion(model, world.positive, world.negative, GUIDANCE)


@each_dtype
@pytest.mark.parametrize("method", METHODS)
def test_a_student_is_as_exact_as_its_base(top, base, floor, method, dtype):
    half, exact = (sampled(top, *student(top, base(kind), method)) for kind in (dtype, "fp32"))
    assert relative(exact, sampled(top, base("fp32"))) > 10 * floor(dtype)
    assert 0 < relative(half, exact) < FEW * floor(dtype)


def scaled(model, factor):
    """Scale F of a model; its weights stay within the range of float16."""
    with torch.no_grad():
        for parameter in model.model.diffusion_model.y_embedder.mlp[2].parameters():
            parameter.mul_(factor)
    return model


def term_of(top, model, positive):
    """Return the term that the host gets for a prompt."""
    noise, extras = torch.zeros(NOISE), positive[0][1]
    model.patch_model()
    try:
        with torch.inference_mode():
            given = {**extras, "cross_attn": positive[0][0], "noise": noise, "device": torch.device("cpu")}
            return model.model.extra_conds(**given)[top.pack.comfy_host.TERM_KEY].cond
    finally:
        model.unpatch_model()


@pytest.mark.parametrize("method", [TEEFUSION, SPLIT])
def test_an_embedding_beyond_float16_gives_a_finite_term(top, method):
    terms = {}
    for kind in ("fp16", "fp32"):
        model = computing_in(top.world().model, {**HALF, "fp32": torch.float32}[kind])
        terms[kind] = term_of(top, *student(top, scaled(model, 1000.0), method, gain=2e-5))
    world = top.world()
    pooled = [entry[0][1]["pooled_output"].float() for entry in (world.positive, world.negative)]
    with torch.no_grad():
        largest = model.model.diffusion_model.y_embedder(pooled[0] - pooled[1]).abs().max()
    assert float(largest) > torch.finfo(torch.float16).max or method == SPLIT
    assert torch.isfinite(terms["fp16"]).all() and relative(terms["fp16"].float(), terms["fp32"]) < 2e-3


def test_a_term_beyond_float16_is_refused(top):
    model, positive = student(top, scaled(computing_in(top.world().model, torch.float16), 1000.0), gain=10.0)
    with pytest.raises(top.pack.errors.InvalidConfig, match="beyond the range of float16.*bfloat16"):
        sampled(top, model, positive)


@each_dtype
@pytest.mark.parametrize("scales", [(5.5, 0.0, 5.5), (1.0, 1.0, 5.5)], ids=["z", "w2sd"])
def test_reflection_is_as_exact_as_cfg_with_its_scales(top, base, dtype, scales):
    """A step makes three predictions, each with the rounding of a CFG step with the largest scale."""

    def reflected(kind):
        model = base(kind)
        strong = top.lora(model, SD3_LORA[:2], 0.3)
        return top.reflect(top.world(), guider=top.guider(top.world(), model=strong, weak=model, scales=scales)).samples

    def guided(kind):
        return top.euler(top.world(), model=top.lora(base(kind), SD3_LORA[:2], 0.3), cfg=max(scales))

    floor = relative(guided(dtype), guided("fp32"))
    assert 0 < relative(reflected(dtype), reflected("fp32")) < 3 * FEW * floor


@each_dtype
def test_a_lora_gap_is_as_exact_as_two_loaded_copies(top, base, dtype):
    def gap(strong, weak):
        guider = top.guider(top.world(), model=top.lora(strong, SD3_LORA[:2], 0.3), weak=weak, scales=(1.0, 1.0, 5.5))
        return top.reflect(top.world(), guider=guider).samples

    exact = gap(base("fp32"), base("fp32"))
    copy = computing_in(top.world().model, HALF[dtype])
    assert relative(gap(base(dtype), base(dtype)), exact) < 1.1 * relative(gap(base(dtype), copy), exact) + 1e-3


def gradients(distillation, example, scale=1.0):
    with shaken(distillation).in_training():
        loss = distillation.loss(example)
        (scale * loss).backward()
    grads = [p.grad.flatten() / scale for p in distillation.student.update.parameters() if p.grad is not None]
    assert all(parameter.dtype == torch.float32 for parameter in distillation.student.update.parameters())
    return float(loss.detach()), torch.cat(grads)


@each_dtype
@pytest.mark.parametrize("trainable", TRAINABLE)
def test_training_on_a_half_base_has_the_gradient_of_float32(distil, base, floor, trainable, dtype):
    def trained(kind):
        return distil(model=base(kind), trainable=trainable)

    example = example_of(trained("fp32").trajectory(0))
    (half, half_N), (exact, exact_N) = (gradients(trained(kind), example, 2.0**10) for kind in (dtype, "fp32"))
    assert abs(half - exact) < 10 * floor(dtype) * exact
    assert relative(half_N, exact_N) < 30 * floor(dtype)


@pytest.mark.parametrize(("dtype", "trainable"), [("bf16", "lora"), ("fp16", "lora"), ("fp16", "everything")])
def test_a_whole_run_in_half_precision_learns_what_float32_learns(pack, distil, base, tmp_path, dtype, trainable):
    """Gradients of a large picture, here by a small weight of the loss, are below the range of float16."""
    updates = {}
    for kind in (dtype, "fp32"):
        distillation = distil(model=base(kind), trainable=trainable)
        distillation.loss = partial(shrunk, distillation.loss)
        settings = TrainSettings(steps=3, learning_rate=1e-3, batch_size=3, max_grad_norm=0.0)
        training = pack.comfy_host.Training(distillation, settings, root=tmp_path, name=kind, teacher="CFG")
        start = {name: p.detach().clone() for name, p in distillation.student.update.named_parameters()}
        training.run()
        moved = [p.detach() - start[name] for name, p in distillation.student.update.named_parameters()]
        updates[kind] = torch.cat([update.flatten() for update in moved])
    assert updates[dtype].dtype == torch.float32
    # Adam divides by the size of a gradient, so one that rounding leaves without a sign moves a weight by a whole step
    agree = (updates[dtype].sign() == updates["fp32"].sign())[updates["fp32"] != 0].float().mean()
    assert float(agree) > AGREE[dtype]


def shrunk(loss, example):
    return LARGE * loss(example)
