"""Names and shapes of the weights in the published files of SD3 and SD3.5.

They are read from the host's own classes on the meta device, so that no weights are needed. A smaller `depth` gives a
network of the same layout: its width is 64 * depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Size

Layout = dict[str, Size]
"""Name of a tensor in a file -> its shape."""

POOLED_WIDTH, CONTEXT_WIDTH, CHANNELS, PATCH = 2048, 4096, 16, 2
NETWORK, TEXT, VAE = "model.diffusion_model.", "text_encoders.", "first_stage_model."
"""Prefixes of the parts of an all-in-one file."""


@dataclass(frozen=True)
class Kind:
    """One published network.

    Attributes:
        depth: number of joint blocks.
        positions: rows and columns of the table of positions.
        own_attention: number of blocks, from the first, in which the image has a second attention for itself.
        normed: whether queries and keys are normalised.
    """

    depth: int
    positions: int
    own_attention: int = 0
    normed: bool = True


KINDS = {
    "SD3-medium": Kind(depth=24, positions=192, normed=False),
    "SD3.5-medium": Kind(depth=24, positions=384, own_attention=13),
    "SD3.5-large": Kind(depth=38, positions=192),
}


def configuration(name: str, depth: int | None = None) -> dict[str, Any]:
    """Return the host's configuration of a network."""
    kind = KINDS[name]
    depth = depth or kind.depth
    context = {"target": "torch.nn.Linear", "params": {"in_features": CONTEXT_WIDTH, "out_features": 64 * depth}}
    return {
        "input_size": None, "patch_size": PATCH, "in_channels": CHANNELS, "out_channels": CHANNELS, "depth": depth,
        "adm_in_channels": POOLED_WIDTH, "context_embedder_config": context, "num_patches": kind.positions**2,
        "pos_embed_max_size": kind.positions, **({"qk_norm": "rms"} if kind.normed else {}),
        "x_block_self_attn_layers": list(range(min(kind.own_attention, depth))), "pos_embed_scaling_factor": None,
    }  # fmt: skip


def network_layout(name: str, depth: int | None = None) -> Layout:
    """Return the layout of a network under the names of its authors, without a prefix."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    options = {"device": "meta", "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}
    return _layout(OpenAISignatureMMDITWrapper(**configuration(name, depth), **options))


def as_diffusers(native: Layout) -> Layout:
    """Return the layout of the same SD3 network in a file of diffusers, which stores q, k and v one by one."""
    import comfy.utils

    depth = native["x_embedder.proj.weight"][0] // 64
    layout = {}
    for name, target in comfy.utils.mmdit_to_diffusers({"depth": depth, "num_blocks": depth}).items():
        source, part = (target, None) if isinstance(target, str) else target[:2]
        if source in native:
            shape = list(native[source])
            if part is not None:
                axis, _, shape[axis] = part
            layout[name] = Size(shape)
    return layout


def clip_layout(which: str) -> Layout:
    """Return the layout of a CLIP text encoder, `clip_l` or `clip_g`."""
    from comfy import sd1_clip, sdxl_clip

    options = {"device": "meta", "dtype": torch.float16}
    encoder = sd1_clip.SDClipModel(**options) if which == "clip_l" else sdxl_clip.SDXLClipG(**options)
    return _layout(encoder.transformer)


def t5_layout() -> Layout:
    """Return the layout of T5-XXL."""
    from comfy.text_encoders import sd3_clip

    return _layout(sd3_clip.T5XXLModel(device="meta", dtype=torch.float16).transformer)


def vae_layout() -> Layout:
    """Return the layout of the VAE of SD3."""
    from comfy.ldm.modules.diffusionmodules.model import Decoder, Encoder

    config = {
        "double_z": True, "z_channels": CHANNELS, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    with torch.device("meta"):
        parts = {"encoder.": Encoder(**config), "decoder.": Decoder(**config)}
    return {prefix + name: shape for prefix, part in parts.items() for name, shape in _layout(part).items()}


def vae_as_diffusers(native: Layout) -> Layout:
    """Return the layout of the same VAE in a file of diffusers."""
    from comfy.diffusers_convert import vae_conversion_map

    attention = {"norm.": "group_norm.", "q.": "to_q.", "k.": "to_k.", "v.": "to_v.", "proj_out.": "to_out.0."}
    layout = {}
    for name, shape in native.items():
        if "mid.attn_1." in name:  # diffusers has linear layers where the authors have convolutions
            block, inner = name.split("mid.attn_1.")
            kind, end = inner.rsplit(".", 1)
            name, shape = f"{block}mid.attn_1.{attention[f'{kind}.']}{end}", shape[:2]
        for ours, theirs in vae_conversion_map:
            name = name.replace(ours, theirs)
        layout[name] = Size(shape)
    return layout


def prefixed(prefix: str, layout: Layout) -> Layout:
    """Return a layout with a prefix before every name."""
    return {prefix + name: shape for name, shape in layout.items()}


def _layout(module: torch.nn.Module) -> Layout:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
