"""Loader for CLIP models in the layout of transformers or open_clip."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointMismatch
from ..files.tensor_file import check_finite, without_prefix
from ..files.text_file import read_text

HEAD_WIDTH_TEXT = 64
QUICK, EXACT = "quick_gelu", "gelu"


@dataclass(frozen=True)
class Backbone:
    """Properties of a published CLIP that its tensor shapes do not show."""

    name: str
    heads: int
    """Number of attention heads of the vision tower; in the text tower each head is 64 wide."""
    activation: str
    layers: tuple[int, int]
    """Of the vision tower and of the text tower."""


BACKBONES = {
    (768, 32): Backbone("ViT-B/32 OpenAI", 12, QUICK, (12, 12)),
    (768, 16): Backbone("ViT-B/16 OpenAI", 12, QUICK, (12, 12)),
    (1024, 14): Backbone("ViT-L/14 OpenAI", 16, QUICK, (24, 12)),
    (1280, 14): Backbone("ViT-H/14 LAION", 16, EXACT, (32, 24)),
    (1408, 14): Backbone("ViT-g/14 LAION", 16, EXACT, (40, 24)),
    (1664, 14): Backbone("ViT-bigG/14 LAION", 16, EXACT, (48, 32)),
}
"""(width of the vision tower, patch size) -> backbone; any other CLIP needs its config.json."""

OPEN_CLIP_PLACES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
    "logit_scale": "logit_scale",
}
"""Prefix of a name in open_clip -> in transformers."""
OPEN_CLIP_LAYERS = {
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
ATTENTION = re.compile(r"(.*)\.attn\.in_proj_(weight|bias)")
SHAPE_ERRORS = (IndexError, TypeError, ValueError, ZeroDivisionError)
"""What the arithmetic on shapes raises for tensors that are no weights of a model."""
WANTED = "a CLIP with both towers, saved by transformers or open_clip"


def clip_of(tensors: Mapping[str, Tensor], path: Path) -> tuple[Any, str]:
    """Build a CLIP in float32 from the tensors of a file.

    Args:
        tensors: of the file.
        path: of the file; the config.json of transformers may be next to it as NAME.json.
    Returns:
        (CLIPModel of transformers in evaluation mode, name of its architecture).
    Raises:
        CheckpointMismatch: no CLIP, a CLIP with one tower, or an unknown architecture.
    """
    try:
        return _clip_of(tensors, path)
    except SHAPE_ERRORS as error:
        raise CheckpointMismatch(f"{path.name} has weights in shapes that no CLIP has; choose {WANTED}") from error


def _clip_of(tensors: Mapping[str, Tensor], path: Path) -> tuple[Any, str]:
    weights = without_prefix(tensors, "vision_model.embeddings.class_embedding")
    if weights is None:
        of_open_clip = without_prefix(tensors, "visual.class_embedding")
        if of_open_clip is None:
            raise CheckpointMismatch(f"{path.name} holds no CLIP vision tower; choose {WANTED}")
        weights = from_open_clip(of_open_clip)
    weights = {name: value.float() for name, value in weights.items() if not name.endswith("position_ids")}
    config, name = _config(weights, path)
    from transformers import CLIPModel

    with torch.device("meta"):
        model = CLIPModel(config)
    return filled(model, weights, path), name


def filled(model: Any, weights: Mapping[str, Tensor], path: Path, wanted: str = WANTED) -> Any:
    """Load weights into a model on the meta device and set it to evaluation mode.

    Raises:
        CheckpointMismatch: weights are missing, have other shapes, or are not finite.
    """
    check_finite(weights, path)
    missing = [name for name in model.state_dict() if name not in weights]
    if missing:
        raise CheckpointMismatch(f"{path.name} lacks {missing[0]} and {len(missing) - 1} more; choose {wanted}")
    positions = {name: value for name, value in model.named_buffers() if value.is_meta}
    try:
        model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
    except RuntimeError as error:
        raise CheckpointMismatch(
            f"{path.name} has weights of other shapes than its architecture ({error}); choose {wanted}"
        ) from error
    for name, value in positions.items():  # position ids 0, 1, 2 ... are not in files
        place, _, own = name.rpartition(".")
        model.get_submodule(place).register_buffer(own, torch.arange(value.shape[-1])[None], persistent=False)
    return model.eval().requires_grad_(False)


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an open_clip CLIP to those of transformers; projections are transposed."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in PROJECTIONS:
            found[PROJECTIONS[name]] = value.T.contiguous()
            continue
        start = next((start for start in OPEN_CLIP_PLACES if name.startswith(start)), None)
        if start is None:
            continue
        renamed = OPEN_CLIP_PLACES[start] + name.removeprefix(start)
        for old, new in OPEN_CLIP_LAYERS.items():
            renamed = renamed.replace(old, new)
        if joined := ATTENTION.fullmatch(renamed):
            layer, kind = joined.groups()
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                found[f"{layer}.self_attn.{part}_proj.{kind}"] = piece
        else:
            found[renamed] = value
    return found


def _config(weights: Mapping[str, Tensor], path: Path) -> tuple[Any, str]:
    from transformers import CLIPConfig

    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            return CLIPConfig.from_dict(json.loads(read_text(beside))), path.stem
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointMismatch(
                f"{beside.name} is not the config.json of a CLIP ({error}); copy it again"
            ) from error
    try:
        patches = weights["vision_model.embeddings.patch_embedding.weight"]
        text, projection = weights["text_model.embeddings.token_embedding.weight"], weights["text_projection.weight"]
        key = (patches.shape[0], patches.shape[-1])
        backbone = BACKBONES.get(key)
        if backbone is None:
            known = ", ".join(row.name for row in BACKBONES.values())
            raise CheckpointMismatch(
                f"{path.name} is a CLIP of width {key[0]} with patches of {key[1]} pixels, which is none of {known}; "
                f"put its config.json next to it as {beside.name}"
            )
        _check_layers(weights, backbone, path)
        return _shaped(weights, backbone, text.shape, projection.shape[0]), backbone.name
    except KeyError as error:
        raise CheckpointMismatch(f"{path.name} lacks {error.args[0]}; choose {WANTED}") from error


def _check_layers(weights: Mapping[str, Tensor], backbone: Backbone, path: Path) -> None:
    for tower, wanted in zip(("vision_model", "text_model"), backbone.layers, strict=True):
        found = len(_layers(weights, tower))
        if found != wanted:
            raise CheckpointMismatch(
                f"{path.name} has {found} layers in its {tower}, but {backbone.name} has {wanted}; choose {WANTED}, or "
                f"put its config.json next to it as {path.stem}.json"
            )


def _shaped(weights: Mapping[str, Tensor], backbone: Backbone, text: torch.Size, projection: int) -> Any:
    """Return the configuration that the tensor shapes imply."""
    from transformers import CLIPConfig

    patches = weights["vision_model.embeddings.patch_embedding.weight"]
    positions = weights["vision_model.embeddings.position_embedding.weight"].shape[0]
    vision = _tower(weights, "vision_model", backbone) | {
        "num_attention_heads": backbone.heads,
        "patch_size": patches.shape[-1],
        "image_size": patches.shape[-1] * round((positions - 1) ** 0.5),
    }
    words = _tower(weights, "text_model", backbone) | {
        "num_attention_heads": text[1] // HEAD_WIDTH_TEXT,
        "vocab_size": text[0],
        "max_position_embeddings": weights["text_model.embeddings.position_embedding.weight"].shape[0],
        "bos_token_id": text[0] - 2,
        "eos_token_id": text[0] - 1,
    }
    both = {"projection_dim": projection}
    return CLIPConfig(text_config=words | both, vision_config=vision | both, projection_dim=projection)


def _tower(weights: Mapping[str, Tensor], tower: str, backbone: Backbone) -> dict[str, Any]:
    layers = _layers(weights, tower)
    if 0 not in layers:
        raise KeyError(f"{tower}.encoder.layers.0.mlp.fc1.weight")
    inner, width = layers[0].shape
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": max(layers) + 1,
        "hidden_act": backbone.activation,
    }


def _layers(weights: Mapping[str, Tensor], tower: str) -> dict[int, Tensor]:
    """Return the first matrix of the MLP of each layer of a tower."""
    layer = re.compile(rf"{tower}\.encoder\.layers\.(\d+)\.mlp\.fc1\.weight")
    return {int(found[1]): weights[name] for name in weights if (found := layer.fullmatch(name))}
