"""Two LoRA settings on one copy of the weights, against two copies."""

import pytest
import torch

from .reflection_parts import UNET_LORA, counted, difference, randn, relative, unet, weights_of

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
LIMIT = 1e-5
QKV = "diffusion_model.joint_blocks.0.x_block.attn.qkv"
FC1 = "diffusion_model.joint_blocks.1.x_block.mlp.fc1"


@pytest.fixture(scope="module")
def patches(top):
    """Name -> function that puts something onto a MODEL: what users do to weights."""

    def lora(strength=1.0, seed=0, layers=None):
        def patched(model):
            mine = UNET_LORA if model.model.latent_format.latent_channels == 4 else top.world().layers
            return top.lora(model, layers or mine, strength, seed)

        return patched

    def file(state, strength=1.0):
        return lambda model: top.comfy.sd.load_lora_for_models(model, None, state, strength, 0)[0]

    factors = {"lora_A.weight": randn(1, 2, 256) * 0.3, "lora_B.weight": randn(2, 256, 2) * 0.3}
    attention = [f"transformer.transformer_blocks.0.attn.{part}" for part in ("to_q", "to_v", "to_out.0")]
    swapped = {"lora_A.weight": randn(3, 2, 256) * 0.3, "lora_B.weight": randn(4, 512, 2) * 0.3}
    final = {f"transformer.norm_out.linear.{name}": value for name, value in swapped.items()}
    return {
        "nothing": lambda model: model.clone(), "lora": lora(), "lora 0.8": lora(0.8), "lora -1.5": lora(-1.5),
        "another lora": lora(1.2, seed=7, layers=["joint_blocks.1.x_block.attn.qkv", "joint_blocks.0.x_block.mlp.fc2"]),
        "both": lambda model: lora(1.2, seed=7, layers=["joint_blocks.2.x_block.mlp.fc1"])(lora()(model)),
        "diffusers lora": file({f"{part}.{name}": value for part in attention for name, value in factors.items()}),
        "swapped rows": file(final), "difference": difference(f"{QKV}.weight", 768, 256),
        "bias": difference(f"{FC1}.bias", 1024),
        "lora with bias": lambda model: difference(f"{FC1}.bias", 1024)(lora()(model)),
    }  # fmt: skip


PAIRS = [
    ("lora", "nothing"), ("nothing", "lora"), ("lora 0.8", "lora -1.5"), ("lora", "another lora"), ("both", "lora"),
    ("diffusers lora", "nothing"), ("nothing", "diffusers lora"), ("swapped rows", "nothing"),
    ("nothing", "difference"), ("difference", "lora"), ("bias", "nothing"), ("lora with bias", "lora -1.5"),
]  # fmt: skip


@pytest.fixture(params=["exchanged", "added"])
def form(request, top, monkeypatch):
    """Whether weights as small as these are exchanged, or left with an update added like those of a real model."""
    if request.param == "added":
        monkeypatch.setattr(top.module("comfy_host.reflection.lora_gap"), "SMALL", 0)


@pytest.fixture
def loads(top, monkeypatch):
    """Models whose weights were put in place, in order."""
    seen = []
    load = top.comfy.model_patcher.ModelPatcher.load

    def counting(patcher, *args, **kwargs):
        seen.append(patcher.model)
        return load(patcher, *args, **kwargs)

    top.unload()
    monkeypatch.setattr(top.comfy.model_patcher.ModelPatcher, "load", counting)
    return seen


@pytest.fixture
def compared(top, loads, patches, record_property):
    def check(world, strong, weak):
        weights = weights_of(world.model)
        shared = top.reflect(world, model=patches[strong](world.model), weak=patches[weak](world.model), steps=2)
        assert loads == [world.model.model], "nothing is loaded between phases"
        top.assert_clean(world.model, weights)
        a, b = (patches[name](twin) for name, twin in zip((strong, weak), top.twins(world), strict=True))
        with counted(a, b) as seen:
            apart = top.reflect(world, model=a, weak=b, steps=2)
        assert {network for network, _ in seen} == {0, 1} and shared.guider.passes == apart.guider.passes
        gap = relative(shared.samples, apart.samples)
        record_property("gap", gap)
        assert gap < LIMIT
        return shared.samples, top.reflect(world, model=a, weak=a, steps=2).samples

    return check


@pytest.mark.parametrize(("strong", "weak"), PAIRS)
def test_one_copy_predicts_as_two(form, compared, world, strong, weak):
    out, alike = compared(world, strong, weak)
    assert relative(out, alike) > 100 * LIMIT, "the gap has to matter"


def ranks(top, strong, weak):
    """Return the rank of the change of each layer; the strong model is loaded first."""
    top.comfy.model_management.load_models_gpu([strong])
    gap = top.module("comfy_host.reflection.lora_gap").LoraGap.between(strong, weak)
    return {len(change.down_RI) for change in gap.changes}


def test_one_file_on_both_sides_keeps_its_rank(top, world, patches, monkeypatch):
    """Two LoRA loaders read one file twice, so the factors are equal but not the same tensors."""
    monkeypatch.setattr(top.module("comfy_host.reflection.lora_gap"), "SMALL", 0)
    base, lora = world.model, patches["lora"]
    assert ranks(top, patches["lora 0.8"](base), patches["lora -1.5"](base)) == ranks(top, base, lora(base))
    assert ranks(top, lora(base), lora(base)) == set(), "equal LoRAs are no difference"


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_convolutions(form, compared, top, kind):
    compared(top.world(kind), "lora 0.8", "lora -1.5")


def test_half_precision(form, top, patches):
    world = top.world("eps")
    model = unet(top.host, "EPS", 1, dtype=torch.bfloat16)
    lora, full = patches["lora"], world.model
    shared = top.reflect(world, model=lora(model), weak=model)
    exact = top.reflect(world, model=lora(full), weak=full)
    assert relative(shared.samples, exact.samples) < 0.05
    assert relative(shared.samples, top.reflect(world, model=lora(full)).samples) > 0.1


def test_stock_runs_before_with_after(form, top, world, patches):
    strong, weak = patches["lora 0.8"](world.model), patches["lora -1.5"](world.model)
    before, patched = top.euler(world), top.euler(world, model=strong)
    top.reflect(world, model=strong, weak=weak)
    assert torch.equal(top.euler(world, model=strong), patched)
    assert torch.equal(top.euler(world), before)


def test_a_shift_of_its_own(top, world, patches):
    from comfy_extras import nodes_model_advanced

    def shifted(model):
        return nodes_model_advanced.ModelSamplingSD3().patch(model, 1.5)[0]

    shared = top.reflect(world, model=patches["lora"](world.model), weak=shifted(world.model))
    a, b = top.twins(world)
    a, b = patches["lora"](a), shifted(b)
    assert relative(shared.samples, top.reflect(world, model=a, weak=b).samples) < LIMIT
    assert world.model.model.model_sampling.shift == 3.0


def test_what_cannot_change_during_a_run(top, world, pack):
    wrapped = world.model.clone()
    wrapped.add_weight_wrapper(f"{QKV}.weight", lambda weight: 2 * weight)
    with pytest.raises(pack.errors.InvalidConfig, match="weight wrappers"):
        top.guider(world, weak=wrapped)


@pytest.mark.parametrize("way", ["wrapper", "in its place"])
def test_compiled_networks_need_a_newer_torch(top, world, pack, patches, monkeypatch, way):
    """torch before 2.6 cannot run a compiled network eagerly for the length of a block."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    plain, lora = world.model, patches["lora"](world.model)
    compiled = TorchCompileModel.execute(plain, "eager").args[0] if way == "wrapper" else plain.clone()
    if way == "in its place":
        network = torch.compile(plain.model.diffusion_model, backend="eager")
        compiled.add_object_patch("diffusion_model", network)
    expected = top.reflect(world, model=lora, weak=plain).samples
    monkeypatch.delattr(torch.compiler, "set_stance")
    for sides in ({"model": lora, "weak": compiled}, {"model": compiled, "weak": lora}):
        with pytest.raises(pack.errors.InvalidConfig, match="torch.compile"):
            top.reflect(world, **sides)
    assert torch.equal(top.reflect(world, model=lora, weak=plain).samples, expected)
