"""What users combine a sampler with, as rows; what of this pack they combine it with, as columns.

A column runs a set-up twice: with our nodes, then as a literal twin of stock parts, in which the published formula is
written out. A row changes a set-up the same way for both.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .reflection_parts import SD3_LORA, randn

STEPS, SEED, W = 3, 5, 3.0
CFG = 2.5  # of a student that is guided a second time
STRONG, WEAK, FINAL = 3.0, 1.5, 3.0
CHANGES, SAME, NOTHING = "works", "works, same image", "nothing on SD3, as without this pack"


@dataclass(frozen=True)
class Setup:
    """What is wired into a sampler.

    Attributes:
        model, weak: MODEL, with a second one where the column has it.
        positive, other, negative: prompts.
        latent: LATENT.
        denoise, steps, cfg: of the schedule, of a student.
        split: SplitSigmas, then two samplers?
        around: context of every run.
        dtype: of the base's weights.
    """

    model: Any = None
    weak: Any = None
    positive: Any = None
    other: Any = None
    negative: Any = None
    latent: Any = None
    denoise: float = 1.0
    steps: int = STEPS
    cfg: float = 1.0
    split: bool = False
    around: Callable = contextlib.nullcontext
    dtype: torch.dtype = torch.float32

    def with_models(self, change: Callable) -> "Setup":
        weak = None if self.weak is None else change(self.weak)
        return replace(self, model=change(self.model), weak=weak)


@dataclass(frozen=True)
class Row:
    """One thing that users wire in.

    Attributes:
        name: as the table has it.
        change: (bench, set-up) -> set-up.
        expected: CHANGES the picture as it changes the twin's, SAME picture as without, NOTHING even in stock.
        refused: column -> part of the reason.
        settings: fields of the set-up, with the thing wired or without.
        own: fields that are the thing itself.
        on_model: is it a patch of the MODEL, so that it could come before our node as well?
    """

    name: str
    change: Callable = lambda top, setup: setup
    expected: str = CHANGES
    refused: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    on_model: bool = False


def values(setup, name="positive", **extras):
    import node_helpers

    return node_helpers.conditioning_set_values(getattr(setup, name), extras)


def on_model(make):
    return lambda top, setup: setup.with_models(lambda model: make(top, model))


def lora(seed, strength=1.0):
    return lambda top, model: top.lora(model, SD3_LORA, strength, seed)


def _two_loras(top, model):
    return lora(21, -0.7)(top, lora(11)(top, model))


def _controlnet(top, setup):
    import nodes

    world, picture = top.world(), torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    if "control" not in top.kept:
        top.kept["control"] = top.control(world)
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    positive, negative = apply(setup.positive, setup.negative, top.kept["control"], picture, 0.8, 0.0, 1.0, world.vae)
    return replace(setup, positive=positive, negative=negative)


def _area(top, setup):
    half = {"area": (8, 4, 0, 0), "strength": 1.0, "set_area_to_bounds": False}
    return replace(setup, positive=[*setup.positive, *values(setup, "other", **half)])


def _prompt_mask(top, setup):
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    masked = {"mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False}
    return replace(setup, positive=[*setup.positive, *values(setup, "other", **masked)])


def _latent_mask(top, setup):
    mask = torch.ones(1, 64, 64)
    mask[..., :32] = 0
    return replace(setup, latent={"samples": randn(3, 1, 16, 8, 8), "noise_mask": mask})


def _batch(top, setup):
    return replace(setup, latent={"samples": torch.zeros(3, 16, 8, 8), "batch_index": [4, 0, 2]})


def _combine(top, setup):
    import nodes

    return replace(setup, positive=nodes.ConditioningCombine().combine(setup.positive, setup.other)[0])


def _average(top, setup):
    import nodes

    return replace(setup, positive=nodes.ConditioningAverage().addWeighted(setup.positive, setup.other, 0.6)[0])


def _times(top, setup):
    import nodes

    spans = [
        nodes.ConditioningSetTimestepRange().set_range(*span)[0]
        for span in ((setup.positive, 0.0, 0.3), (setup.other, 0.3, 1.0))
    ]
    return replace(setup, positive=[*spans[0], *spans[1]])


def _merge(top, model):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    return ModelMergeSimple().merge(model, top.world().weak, 0.8)[0]


def _shift(top, model):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, 6.0)[0]


def guidance_node(name):
    def patched(top, model):
        from comfy_extras import nodes_apg, nodes_cfg, nodes_easycache, nodes_pag, nodes_slg

        return {
            "SLG": lambda: nodes_slg.SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, "0, 1"),
            "APG": lambda: nodes_apg.APG.execute(model, 1.2, 4.0, 0.0),
            "CFGZeroStar": lambda: nodes_cfg.CFGZeroStar.execute(model),
            "PAG": lambda: nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0),
            "EasyCache": lambda: nodes_easycache.EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False),
            "LazyCache": lambda: nodes_easycache.LazyCacheNode.execute(model, 3.0, 0.0, 1.0, False),
        }[name]().args[0]

    return patched


def _compiled(top, model):
    """Compiled, then sampled without our nodes first: their patches must be heard by a graph that is there already."""
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    compiled = TorchCompileModel.execute(model, "eager").args[0]
    if "compiled" not in top.kept:
        top.kept["compiled"] = TorchCompileModel.execute(top.world().model, "eager").args[0]
        for cfg in (1.0, CFG):
            top.euler(top.world(), model=top.kept["compiled"], cfg=cfg, steps=1)
    return compiled


@contextlib.contextmanager
def _little_memory(top, share):
    """As if so much of a model fitted into video memory; on a CPU the host itself never asks."""
    loaded = top.comfy.model_management.LoadedModel
    load = loaded.model_load

    def partly(self, lowvram_model_memory=0, *args, **kwargs):
        return load(self, max(0.1, share * self.model.model_size()), *args, **kwargs)

    top.unload()
    loaded.model_load = partly
    try:
        yield
    finally:
        loaded.model_load = load
        top.unload()


def _memory(share):
    return lambda top, setup: replace(setup, around=lambda: _little_memory(top, share))


def _hook(layer, wide, narrow):
    def hooked(top, setup):
        import comfy.hooks

        state = {
            f"diffusion_model.{layer}.lora_up.weight": randn(1, wide, 2),
            f"diffusion_model.{layer}.lora_down.weight": randn(2, 2, narrow),
        }
        hooks = comfy.hooks.create_hook_lora(state, 0.3, 0.0)
        return replace(setup, positive=comfy.hooks.set_hooks_for_conditioning(setup.positive, hooks))

    return hooked


def _stored_prompts(top, setup):
    """As SaveTrainingDataset and LoadTrainingDataset write them and read them."""

    def stored(prompt):
        file = io.BytesIO()
        torch.save(prompt, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    return replace(setup, positive=stored(setup.positive), negative=stored(setup.negative))


def _stored_model(top, model):
    from comfy_extras.nodes_model_merging import ModelSave

    node = ModelSave()
    node.output_dir = str(top.folder)
    node.save(model, "saved")
    newest = max(top.folder.glob("saved*.safetensors"), key=lambda path: path.name)
    return top.comfy.sd.load_diffusion_model(str(newest))


STUDENT, Z, W2SD = "student", "Z-Sampling", "W2SD, LoRA gap"
CACHED = "LazyCache"
BOTH = {Z: CACHED, W2SD: CACHED}
ROWS = [
    Row("LoRA", on_model(lora(11)), on_model=True),
    Row("two LoRAs", on_model(_two_loras), on_model=True),
    Row("ControlNet", _controlnet),
    Row("area conditioning", _area),
    Row("mask of a prompt", _prompt_mask),
    Row("mask of the latent", _latent_mask),
    Row("img2img", own={"latent": {"samples": randn(3, 1, 16, 8, 8)}, "denoise": 0.5, "steps": 2}),
    Row("SplitSigmas", settings={"steps": 4}, own={"split": True}, expected=SAME),
    Row("batch", _batch),
    Row("ConditioningCombine", _combine),
    Row("ConditioningAverage", _average),
    Row("ConditioningSetTimestepRange", _times),
    Row("ModelMergeSimple", on_model(_merge), on_model=True),
    Row("ModelSamplingSD3", on_model(_shift), on_model=True),
    Row("SkipLayerGuidanceDiT", on_model(guidance_node("SLG")), on_model=True),
    Row("APG", on_model(guidance_node("APG")), settings={"cfg": CFG}, on_model=True),
    Row("CFGZeroStar", on_model(guidance_node("CFGZeroStar")), settings={"cfg": CFG}, on_model=True),
    Row("PerturbedAttentionGuidance", on_model(guidance_node("PAG")), NOTHING, on_model=True),
    Row("TorchCompileModel", on_model(_compiled), SAME, on_model=True),
    Row("EasyCache", on_model(guidance_node("EasyCache")), NOTHING, BOTH, {"steps": 4}, on_model=True),
    Row("LazyCache", on_model(guidance_node("LazyCache")), CHANGES, BOTH, {"steps": 6}, on_model=True),
    Row("fp8 weights", own={"dtype": torch.float8_e4m3fn}),
    Row("--lowvram", _memory(0.5), SAME),
    Row("--novram", _memory(0.0), SAME),
    Row("LoRA hook", _hook("joint_blocks.1.x_block.attn.qkv", 768, 256), refused={W2SD: "LoRA hook"}),
    Row(
        "LoRA hook on the embedders",
        _hook("y_embedder.mlp.2", 256, 256),
        refused={STUDENT: "LoRA hook", W2SD: "LoRA hook"},
    ),
    Row("conditioning saved, reloaded", _stored_prompts, SAME),
    Row("model saved, reloaded", on_model(_stored_model), SAME, {STUDENT: "gain"}),
]
