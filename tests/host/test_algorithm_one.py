"""Algorithm 1 of TeEFusion: what the trainer minimises, against a literal transcription."""

import literal
import pytest
import torch
from golden_weights import CASES, inputs, state_dict

from teefusion_core.training.settings import DistillSettings
from teefusion_core.training.trajectory_cache import generator_of

from .distillation_parts import example_of

GAIN, W_MIN, W_MAX, STEPS = 1 / 256, 2.0, 14.0, 3


def guided(weights, x, sigma, prompt, null, w):
    """Line 5 of the algorithm: the teacher's velocity at guidance w, of one row."""
    with_prompt, without = (literal.velocity(weights, x, float(sigma), *text, 0) for text in (prompt, null))
    return with_prompt + float(w) * (with_prompt - without)


def fused(weights, x, sigma, prompt, null, w):
    """Line 6: the student's velocity, guidance in its embedding, of one row."""
    extra = literal.term(weights, prompt[1], null[1], 1000 * w, GAIN)
    return literal.velocity(weights, x, float(sigma), *prompt, extra)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_of_a_batch(host, pack, golden_model, case):
    parts, data, weights = pack.comfy_host, inputs(case), state_dict(case)
    model = golden_model(case)
    texts = list(zip(data["context"], data["pooled"], strict=True))
    empty = (data["context"][0].flip(0), data["pooled_null"][0])
    prompts = parts.Prompts([[[c[None], {"pooled_output": p[None]}]] for c, p in texts], "prompt")
    nulls = parts.Prompts([[[empty[0][None], {"pooled_output": empty[1][None]}]]], "null")
    teacher = parts.Teacher(host.comfy.samplers.CFGGuider(model), host.comfy.samplers.sampler_object("euler"))
    pictures = [0.5 * row[None] for row in data["x"]]
    settings = DistillSettings(
        guidance_margin=0.0,  # the paper draws w from its range
        guidance_min=W_MIN, guidance_max=W_MAX, teacher_steps=STEPS, target="re-evaluated", guidance_error_weight=1.0,
        mixed_precision=False,
        images_per_trajectory=2, rank=2,
    )  # fmt: skip
    distil = parts.Distillation(model, teacher, prompts, nulls, settings, images=pictures)
    trajectory = distil.trajectory(0)

    generator = generator_of(settings.run_seed, "walk", 0)
    w = W_MIN + (W_MAX - W_MIN) * torch.rand((), generator=generator)
    torch.rand((), generator=generator)  # where between its levels the schedule lies
    assert float(trajectory.w) == float(w)
    for step, sigma in enumerate(trajectory.sigma_S[:STEPS]):
        picked = distil.positives.pick(2, generator)
        clean = model.model.process_latent_in(torch.cat([pictures[number] for number in picked]))
        noise = torch.randn(clean.shape, generator=generator)
        x = (1 - sigma) * clean + sigma * noise
        torch.testing.assert_close(trajectory.x_SBCHW[step], x, rtol=0, atol=1e-6)
        targets = [guided(weights, row, sigma, texts[n], empty, w) for row, n in zip(x, picked, strict=True)]
        found = [fused(weights, row, sigma, texts[n], empty, w) for row, n in zip(x, picked, strict=True)]
        expected = (torch.stack(found) - torch.stack(targets)).square().mean()
        assert distil_loss(distil, trajectory, step) == pytest.approx(float(expected), rel=1e-6)


def distil_loss(distil, trajectory, step):
    with torch.no_grad(), distil.in_training():
        return float(distil.loss(example_of(trajectory, step)))
