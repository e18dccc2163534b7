"""Small random networks of the host's own classes, one for each family, with prompts of its widths."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from .reflection_parts import UNET, randn, randomise

CPU = torch.device("cpu")
POOLED, TOKENS, WIDTH = 24, 5, 32
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED, "context_in_dim": WIDTH,
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": False,
}  # fmt: skip
VIDEO = FLUX | {"image_model": "hunyuan_video", "patch_size": [1, 2, 2], "guidance_embed": True}
VIDEO |= {"theta": 256, "byt5": False, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None}
SD3 = {
    "in_channels": 16, "patch_size": 2, "input_size": None,
    "pos_embed_max_size": 16, "num_patches": 256, "adm_in_channels": POOLED,
}  # fmt: skip
SDXL = UNET | {"model_channels": 64, "num_classes": "sequential", "adm_in_channels": 2816, "context_dim": WIDTH}
FLUX2 = FLUX | {"vec_in_dim": None, "in_channels": 128, "out_channels": 128, "patch_size": 1}
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": WIDTH, "n_layers": 1,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [16, 16, 16],
    "axes_lens": [300, 512, 512], "rope_theta": 10000.0,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 64, "ffn_dim": 64, "freq_dim": 32, "text_dim": WIDTH,
    "num_heads": 2, "num_layers": 1, "in_dim": 16, "out_dim": 16, "text_len": 8,
}  # fmt: skip
QWEN = {
    "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 1, "attention_head_dim": 32,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
NORMS, GUIDED = {"qk_norm": "rms"}, {"guidance_embed": True}


@dataclass(frozen=True)
class Backbone:
    """One family.

    Attributes:
        name: as users know it.
        config: class of the host's supported models.
        unet: its settings, small.
        family: name of the row of ARCHITECTURES; empty for a model that takes no pooled text.
        literal: (network, sinusoid [B,K]) -> G of it; network -> F; by hand, not through our table.
        latent: shape of a latent [C,...].
        pooled: width of a pooled text; None for none.
        extras: what else is in its prompts.
        missing: in a model without pooled text, the part that is not there.
    """

    name: str
    config: str
    unet: dict[str, Any]
    family: str = ""
    time: Callable = lambda network: network.time_in
    text: Callable = lambda network: network.vector_in
    waves: int = 256
    path: str = "vector_in"
    latent: tuple[int, ...] = (16, 8, 8)
    pooled: int | None = POOLED
    extras: dict[str, Any] = field(default_factory=dict)
    missing: str = ""


def _sd3(name, family, depth=2, **more):
    params = {"in_features": WIDTH, "out_features": 64 * depth}
    more |= {"depth": depth, "num_blocks": depth}
    more |= {"context_embedder_config": {"target": "torch.nn.Linear", "params": params}}
    return Backbone(
        name, "SD3", SD3 | more, family,
        time=lambda network: network.t_embedder.mlp, text=lambda network: network.y_embedder.mlp, path="y_embedder",
    )  # fmt: skip


BACKBONES = [
    _sd3("SD3-medium", "SD3"),
    _sd3("SD3.5-medium", "SD3.5", **NORMS, x_block_self_attn_layers=[0]),
    _sd3("SD3.5-large", "SD3.5", depth=3, **NORMS),
    Backbone("Flux schnell", "FluxSchnell", FLUX, "Flux"),
    Backbone("Flux dev (distilled guidance)", "Flux", FLUX | GUIDED, "Flux", extras={"guidance": 3.5}),
    Backbone(
        "SDXL", "SDXL", SDXL, "SDXL", lambda network: network.time_embed, lambda network: network.label_emb,
        SDXL["model_channels"], "label_emb", (4, 8, 8), 1280,
    ),
    Backbone("HunyuanVideo", "HunyuanVideo", VIDEO, "HunyuanVideo", latent=(16, 2, 8, 8)),
]  # fmt: skip
NONE = {"pooled": None, "missing": "no embedder of pooled text"}
WITHOUT = [
    Backbone("Wan 2.1", "WAN21_T2V", WAN, latent=(16, 2, 8, 8), **NONE),
    Backbone("Qwen-Image", "QwenImage", QWEN, latent=(16, 1, 8, 8), **NONE),
    Backbone("Lumina 2, Z-Image", "Lumina2", LUMINA, **NONE),
    Backbone("Flux.2", "Flux2", FLUX2, latent=(128, 4, 4), **NONE | {"missing": "no pooled text at vector_in"}),
    Backbone("SD1.5", "SD15", UNET, latent=(4, 8, 8), **NONE),
]


NEWER = {"txt_ids_dims": [], "meanflow_sum": False}
"""Settings without a default that newer hosts ask for."""


def _settings(host, unet):
    """The settings of a network, with those that this host has beyond them."""
    ldm, kind = host.comfy.ldm, unet.get("image_model")
    if kind not in ("flux", "hunyuan_video"):
        return dict(unet)
    params = ldm.flux.model.FluxParams if kind == "flux" else ldm.hunyuan_video.model.HunyuanVideoParams
    known = {field.name for field in fields(params)}
    return unet | {name: value for name, value in NEWER.items() if name in known}


def built(host, backbone, seed=1):
    config = getattr(host.comfy.supported_models, backbone.config)(_settings(host, backbone.unet))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=CPU)
    randomise(model.diffusion_model, seed)
    return host.comfy.model_patcher.ModelPatcher(model, CPU, CPU)


def prompt(backbone, seed):
    pooled = None if backbone.pooled is None else randn(seed + 90, 1, backbone.pooled)  # as CLIPTextEncode has it
    return [[randn(seed, 1, TOKENS, WIDTH), {"pooled_output": pooled, **backbone.extras}]]
