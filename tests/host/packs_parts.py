"""Public node packs beside ours: their folder, how a node is called, and the rows of the table.

The packs are in the folder that TEEFUSION_PACKS names, one clone each; `scripts/packs.py` sets it.
"""

import asyncio
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .composition_parts import CFG, CHANGES, NOTHING, SAME, SEED, STUDENT, W2SD, Row, Setup, Z
from .reflection_parts import PROMPT

MEMORY = {Z: "earlier predictions", W2SD: "earlier predictions"}
GUIDED = {"cfg": CFG}


def folder() -> Path:
    return Path(os.environ["TEEFUSION_PACKS"])


def names() -> list[str]:
    return sorted(path.name for path in folder().iterdir() if (path / "__init__.py").is_file())


def version(name: str) -> str:
    """Return the date and the number of the commit that is tried."""
    command = ["git", "-C", str(folder() / name), "log", "-1", "--format=%cs %h"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def load(name: str, custom_nodes: Path) -> bool:
    """Load a pack from a link in custom_nodes, as the host does at its start."""
    import server

    import nodes

    if getattr(server.PromptServer, "instance", None) is None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        server.PromptServer(loop)
    _stand_in_for_removed_classes()
    running = os.environ.pop("PYTEST_CURRENT_TEST", None)  # prompt-control brings no nodes where it is set
    try:
        link = custom_nodes / name
        link.symlink_to(folder() / name, target_is_directory=True)
        coroutine = nodes.load_custom_node(str(link), module_parent="custom_nodes")
        return server.PromptServer.instance.loop.run_until_complete(coroutine)
    finally:
        if running:
            os.environ["PYTEST_CURRENT_TEST"] = running


def _stand_in_for_removed_classes() -> None:
    """Put back two classes of Chroma that the host has set to None, since ComfyUI-NAG inherits them at import."""
    import comfy.ldm.chroma.layers as chroma
    import comfy.ldm.flux.layers as flux

    for name in ("DoubleStreamBlock", "SingleStreamBlock"):
        if getattr(chroma, name, None) is None:
            setattr(chroma, name, getattr(flux, name))


def call(name: str, **given) -> Any:
    """Run a node with the defaults of its inputs where nothing is given; return its first output."""
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS[name]
    declared = node.INPUT_TYPES()
    inputs = {key: _default(spec) for key, spec in declared.get("required", {}).items() if key not in given} | given
    if hasattr(node, "execute"):
        out = node.PREPARE_CLASS_CLONE({"hidden_inputs": {"UNIQUE_ID": "1"}}).execute(**inputs)
    else:
        out = getattr(node(), node.FUNCTION)(**inputs)
    return (out if isinstance(out, tuple) else out["result"] if isinstance(out, dict) else out.args)[0]


def _default(spec):
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", [None])
    return options.get("default", choices[0])


@dataclass(frozen=True)
class PackRow(Row):
    """A row of one pack.

    Attributes:
        pack: folder of the pack.
        run: (bench, set-up) -> latent, by the sampler of the pack; None samples with SamplerCustomAdvanced.
        first: must the node come before TeEFusion Conditioning?
        columns: where the row makes sense.
        fails: error that the node raises on this model, with or without our nodes.
    """

    pack: str = ""
    run: Callable[[Any, Setup], torch.Tensor] | None = None
    first: bool = False
    fails: type[Exception] | None = None
    columns: tuple[str, ...] = (STUDENT, Z, W2SD)


def patch(pack: str, node: str, expected: str = CHANGES, refused=None, settings=None, **inputs) -> PackRow:
    """A row whose node takes a MODEL and gives one."""

    def change(top, setup):
        return setup.with_models(lambda model: call(node, model=model, **inputs))

    return PackRow(node, change, expected, refused or {}, settings or {}, on_model=True, pack=pack)


def sampler(pack: str, node: str, run: Callable, **own) -> PackRow:
    """A row that samples the student with a sampler of the pack."""
    return PackRow(node, own=own, pack=pack, run=run, columns=(STUDENT,))


def prompts(pack: str, node: str, make: Callable, expected: str = CHANGES, **options) -> PackRow:
    """A row whose node makes the prompt before ours."""
    return PackRow(
        node, lambda top, setup: replace(setup, positive=make(top, setup)), expected, pack=pack, first=True, **options
    )


def _latent(out) -> torch.Tensor:
    return out["samples"]


def _clown(name, **options):
    def run(top, setup):
        return _latent(
            call(
                "ClownsharKSampler_Beta", model=setup.model, positive=setup.positive, negative=setup.negative,
                latent_image=setup.latent, sampler_name=name, scheduler="normal", steps=setup.steps, cfg=setup.cfg,
                seed=SEED, **options,
            )
        )  # fmt: skip

    return run


def _clown_sampler(top, setup):
    from .composition_columns import sampled, stock_guider

    made = call("ClownSampler_Beta", sampler_name="exponential/res_2s", eta=0.0, seed=SEED)
    return sampled(top, setup, stock_guider(top, setup, setup.cfg), made)


def _ksampler(top, setup):
    import nodes

    given = setup.model, SEED, setup.steps, setup.cfg, "res_2m", "normal", setup.positive, setup.negative, setup.latent
    return _latent(nodes.KSampler().sample(*given)[0])


def _nag(top, setup):
    return _latent(
        call(
            "KSamplerWithNAG", model=setup.model, seed=SEED, steps=setup.steps, cfg=setup.cfg, sampler_name="euler",
            scheduler="normal", positive=setup.positive, negative=setup.negative, latent_image=setup.latent,
            nag_negative=setup.negative,
        )
    )  # fmt: skip


def _scheduled_cfg(top, setup):
    from .composition_columns import sampled

    guider = call(
        "ScheduledCFGGuidance", model=setup.model, positive=setup.positive, negative=setup.negative, cfg=CFG,
        start_percent=0.0, end_percent=0.7,
    )  # fmt: skip
    return sampled(top, setup, guider, top.comfy.samplers.sampler_object("euler"))


def _autoguidance(top, setup):
    from .composition_columns import sampled

    guider = call(
        "AutoGuidanceCFGGuider", good_model=setup.model, bad_model=top.world().weak, positive=setup.positive,
        negative=setup.negative, cfg=CFG, swap_mode="dual_models_2x_vram", debug_swap=False, debug_metrics=False,
    )  # fmt: skip
    return sampled(top, setup, guider, top.comfy.samplers.sampler_object("euler"))


def _pipe(top, setup):
    world = top.world()
    parts = {"clip": None, "vae": world.vae, "positive": setup.positive, "negative": setup.negative}
    return call("ToBasicPipe", model=setup.model, **parts)


def _impact(top, setup):
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS["ImpactKSamplerBasicPipe"]()
    given = _pipe(top, setup), SEED, setup.steps, setup.cfg, "euler", "normal", setup.latent
    return _latent(node.sample(*given)[1])


def _two_samplers(top, setup):
    pipe = _pipe(top, setup)
    both = [
        call("KSamplerProvider", seed=SEED, steps=setup.steps, cfg=cfg, sampler_name="euler", scheduler="normal",
             basic_pipe=pipe) for cfg in (1.0, CFG)
    ]  # fmt: skip
    mask = torch.zeros(1, 64, 64)
    mask[..., 32:] = 1
    return _latent(
        call("TwoSamplersForMask", latent_image=setup.latent, base_sampler=both[0], mask_sampler=both[1], mask=mask)
    )


def _detailer(top, setup):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    return call(
        "DetailerForEach", image=image, segs=call("MaskToSEGS", mask=mask, crop_factor=1.5), model=setup.model,
        clip=None, vae=top.world().vae, guide_size=64, max_size=64, seed=SEED, steps=setup.steps, cfg=setup.cfg,
        sampler_name="euler", scheduler="normal", positive=setup.positive, negative=setup.negative, wildcard="",
    )  # fmt: skip


def _clip(top):
    if "clip" not in top.kept:
        top.kept["clip"] = top.load("base")[1]
    return top.kept["clip"]


def _plain_text(top, setup):
    return call("PCTextEncode", clip=_clip(top), text=PROMPT)


def _weighted_text(top, setup):
    return call("PCTextEncode", clip=_clip(top), text="a (red circle:1.3) AND a green ring :0.6")


def _two_ranges(top, setup):
    spans = [
        call("PCTextEncodeWithRange", clip=_clip(top), text=text, start=start, end=end)
        for text, start, end in (("a red circle", 0.0, 0.4), ("a green ring", 0.4, 1.0))
    ]
    return [*spans[0], *spans[1]]


def _lora_hook(top, setup):
    """A scheduled LoRA of a file, as prompt-control hooks it on a prompt."""
    import comfy.hooks

    hooks = call("PCLoraHooksFromText", text="<lora:packs_test:0.8> [<lora:packs_test:0.4>::0.5]")
    return comfy.hooks.set_hooks_for_conditioning(setup.positive, hooks)


def _combined(top, setup):
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS["ConditioningMultiCombine"]()
    return getattr(node, node.FUNCTION)(
        inputcount=2, operation="combine", conditioning_1=setup.positive, conditioning_2=setup.other
    )[0]


def _masked(top, setup):
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, ..., :32] = masks[1, ..., 32:] = 1
    return call(
        "ConditioningSetMaskAndCombine", positive_1=setup.positive, negative_1=setup.negative,
        positive_2=setup.other, negative_2=setup.negative, mask_1=masks[0], mask_2=masks[1],
    )  # fmt: skip


KJ, NAG, PERTURBED, RES4LYF = "ComfyUI-KJNodes", "ComfyUI-NAG", "sd-perturbed-attention", "RES4LYF"
IMPACT, CONTROL, SKIMMED = "ComfyUI-Impact-Pack", "comfyui-prompt-control", "Skimmed_CFG"
AUTO = "ComfyUI-AutoGuidance"
ROWS = [
    patch(KJ, "CFGZeroStarAndInit", settings=GUIDED),
    patch(KJ, "ModelPreviewOverrideKJ", SAME),
    patch(KJ, "ModelPassThrough", SAME),
    patch(KJ, "ModelMemoryUsageFactorOverride", SAME, memory_usage_factor=2.0),
    prompts(KJ, "ConditioningMultiCombine", _combined),
    prompts(KJ, "ConditioningSetMaskAndCombine", _masked),
    sampler(KJ, "ScheduledCFGGuidance", _scheduled_cfg),
    sampler(NAG, "KSamplerWithNAG", _nag),
    patch(PERTURBED, "FrequencyDecoupledGuidance", settings=GUIDED),
    patch(PERTURBED, "SlidingWindowGuidanceAdvanced", tile_width=32, tile_height=32, tile_overlap=8, sigma_end=0.0),
    patch(PERTURBED, "MomentumGuidance", CHANGES, MEMORY, GUIDED),
    patch(PERTURBED, "SlidingModeControlCFG", CHANGES, MEMORY, GUIDED),
    patch(PERTURBED, "PerturbedAttention", NOTHING),
    patch(PERTURBED, "TokenPerturbationGuidance", NOTHING),
    sampler(RES4LYF, "ClownsharKSampler_Beta, res_2m", _clown("multistep/res_2m")),
    sampler(RES4LYF, "ClownsharKSampler_Beta, res_3s", _clown("exponential/res_3s", eta=0.0)),
    sampler(RES4LYF, "ClownSampler_Beta, res_2s", _clown_sampler),
    sampler(RES4LYF, "res_2m in KSampler", _ksampler),
    sampler(IMPACT, "ImpactKSamplerBasicPipe", _impact),
    sampler(IMPACT, "TwoSamplersForMask", _two_samplers),
    sampler(IMPACT, "DetailerForEach", _detailer),
    prompts(CONTROL, "PCTextEncode", _plain_text, SAME),
    prompts(CONTROL, "PCTextEncode, weights and AND", _weighted_text),
    prompts(CONTROL, "PCTextEncodeWithRange", _two_ranges),
    prompts(CONTROL, "PCLoraHooksFromText", _lora_hook, refused={W2SD: "LoRA hook"}),
    patch(SKIMMED, "Skimmed CFG", settings=GUIDED, Skimming_CFG=1.5),
    patch(SKIMMED, "Skimmed CFG - replace", settings=GUIDED),
    patch(SKIMMED, "Skimmed CFG - linear interpolation", settings=GUIDED, Skimming_CFG=1.5),
    replace(sampler(AUTO, "AutoGuidanceCFGGuider", _autoguidance), fails=TypeError),
]
