"""Encoded prompts take half the memory with a model that computes in half precision, and change nothing."""

from pathlib import Path

import pytest
import torch

from .distillation_parts import TEXTS, example_of

BASE = Path(__file__).resolve().parent.parent.parent / "models" / "demo_sd3_base.safetensors"
HALF = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def loaded(host):
    models = {}

    def load(dtype):
        if dtype not in models:
            models[dtype] = host.comfy.sd.load_diffusion_model(str(BASE), model_options={"dtype": dtype})
            models[dtype].set_model_compute_dtype(dtype)  # on a CPU the host would compute in float32
        return models[dtype]

    return load


def contexts(prompts):
    return [context for context, _ in prompts.entries]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_the_same_trajectory_and_loss(pack, distil, loaded, encoded, dtype):
    model, parts, found = loaded(dtype), pack.comfy_host, []
    kept = parts.prompt_dtype(model, "teefusion")
    assert kept == dtype
    for stored in (None, kept):
        distillation = distil(model=model)
        for prompts, texts in ((distillation.positives, TEXTS), (distillation.nulls, ("", "a purple ring on white"))):
            prompts.entries = parts.Prompts([encoded[text] for text in texts], "prompt", stored).entries
        assert all(context.dtype == (stored or torch.float32) for context in contexts(distillation.positives))
        with distillation.in_training():
            trajectory = distillation.trajectory(0)
            found.append((trajectory, distillation.loss(example_of(trajectory))))
    (wide, loss), (narrow, same) = found
    assert all(torch.equal(vars(narrow)[name], value) for name, value in vars(wide).items()) and torch.equal(loss, same)


def test_of_float32_and_for_a_sharpener_they_stay(pack, loaded):
    of = pack.comfy_host.prompt_dtype
    assert of(loaded(torch.float32), "teefusion") is None and of(loaded(torch.bfloat16), "dice") is None


def test_the_node_keeps_half(pack, top, loaded):
    clip, texts = top.load("base")[1], "\n".join(TEXTS)
    whole, half = (
        pack.comfy_host.graph_data(loaded(dtype), "teefusion", clip, texts, "", (), (), ())[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert [c.nbytes * 2 for c in contexts(half)] == [c.nbytes for c in contexts(whole)]
    assert all(extras["pooled_output"].dtype == torch.float32 for _, extras in half.entries)
