"""Prompts that carry a LoRA of their own, as the host's hook nodes make them."""

import pytest
import torch

from .reflection_parts import randn, relative, weights_of

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")


@pytest.fixture(scope="module")
def hooked(top, world):
    import comfy.hooks

    factors = {"lora_up.weight": randn(1, 768, 2), "lora_down.weight": randn(2, 2, 256)}
    layer = "diffusion_model.joint_blocks.1.x_block.attn.qkv"
    hooks = comfy.hooks.create_hook_lora({f"{layer}.{name}": value for name, value in factors.items()}, 0.3, 0.0)
    return comfy.hooks.set_hooks_for_conditioning(world.positive, hooks)


@pytest.fixture(params=["one network", "clone", "two networks"])
def weak(request, world):
    return {"one network": None, "clone": world.model.clone(), "two networks": world.weak}[request.param]


def test_without_reflection_it_is_the_stock_run(top, world, hooked, weak):
    stock = top.euler(world, positive=hooked)
    assert relative(stock, top.euler(world)) > 1e-3
    out = top.reflect(world, weak=weak, positive=hooked, operator={"reflect_steps": 0}).samples
    assert torch.equal(out, stock)


def test_both_sides_apply_it(top, world, hooked, weak):
    both = top.reflect(world, weak=weak, positive=hooked).samples
    strong = top.reflect(world, weak=weak, positive=hooked, weak_positive=world.positive).samples
    none = top.reflect(world, weak=weak).samples
    assert relative(both, none) > 1e-3 and relative(strong, none) > 1e-3 and relative(strong, both) > 1e-4


def test_one_copy_predicts_as_two(top, world, hooked):
    shared = top.reflect(world, positive=hooked).samples
    apart = top.reflect(world, weak=top.twins(world)[0], positive=hooked).samples
    assert relative(shared, apart) < 1e-5


def test_nothing_is_left(top, world, hooked, weak):
    weights = [(model, weights_of(model)) for model in (world.model, world.weak)]
    top.reflect(world, weak=weak, positive=hooked)
    for model, before in weights:
        assert not model.hook_patches and model.hook_patches_backup is None and model.current_hooks is None
        top.assert_clean(model, before)


def test_not_beside_another_lora(top, world, hooked):
    lora = top.lora(world.model, world.layers)
    weights = weights_of(world.model)
    for side in ({"positive": hooked}, {"weak_positive": hooked}):
        with pytest.raises(top.pack.errors.InvalidConfig, match="LoRA"):
            top.reflect(world, model=lora, weak=world.model, **side)
    top.assert_clean(world.model, weights)
    assert torch.isfinite(top.reflect(world, model=lora, weak=world.weak, positive=hooked).samples).all()
