"""ImageReward, a BLIP with a reward head.

Shapes: B images with one prompt each, L tokens, D width.
Source: arXiv 2304.05977; architecture of the published file, built from the BLIP of transformers.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import linear

from ..errors import CheckpointMismatch
from ..files.tensor_file import without_prefix
from .clip_scores import check_layers
from .clip_weights import SHAPE_ERRORS, filled
from .preprocessing import middle_rounded, pixels_of

TOKENS = 35
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the raw reward, for normalisation."""
HEAD_WIDTH = 64
LAYERS = (0, 2, 4, 6, 7)
"""Indices of the linear layers of the head; the others are dropout."""
VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "norm.": "post_layernorm.",
    "blocks.": "encoder.layers.",
}
"""Prefix of a name in the published file -> in transformers."""
BLOCK = {".attn.qkv.": ".self_attn.qkv.", ".attn.proj.": ".self_attn.projection.", ".norm": ".layer_norm"}
PUBLISHED = {("blocks", 1024): 24, ("encoder.layer", 768): 12}
"""(name of the layers, width) -> number of layers of the published model."""
WANTED = "the weights of ImageReward 1.0"


class ImageReward(torch.nn.Module):
    """Image encoder, text encoder with cross-attention, reward head."""

    def __init__(self, tensors: Mapping[str, Tensor], path: Path):
        """Build the model from the tensors of a file.

        Raises:
            CheckpointMismatch: the file is not ImageReward.
        """
        super().__init__()
        weights = without_prefix(tensors, "mlp.layers.0.weight")
        if weights is None or "blip.visual_encoder.cls_token" not in weights:
            raise CheckpointMismatch(f"{path.name} is not ImageReward; choose {WANTED}")
        weights = {name: value.float() for name, value in weights.items()}
        try:
            self.vision, self.text = _vision(weights, path), _text(weights, path)
            head = {kind: [weights[f"mlp.layers.{place}.{kind}"] for place in LAYERS] for kind in ("weight", "bias")}
        except KeyError as error:
            raise CheckpointMismatch(f"{path.name} lacks {error.args[0]}; choose {WANTED}") from error
        except SHAPE_ERRORS as error:
            raise CheckpointMismatch(f"{path.name} has weights in other shapes; choose {WANTED}") from error
        self._check_widths(head["weight"][0], path)
        check_layers(head["weight"], head["bias"], path)
        for kind, tensors_of_kind in head.items():
            for place, tensor in zip(LAYERS, tensors_of_kind, strict=True):
                self.register_buffer(f"{kind}_{place}", tensor)

    def _check_widths(self, first: Tensor, path: Path) -> None:
        """Refuse parts of several models: image encoder, text encoder and head must take each other's output."""
        pairs = [(self.vision.config.hidden_size, self.text.config.encoder_hidden_size)]
        pairs += [(self.text.config.hidden_size, first.shape[-1] if first.ndim else 0)]
        for given, taken in pairs:
            if given != taken:
                raise CheckpointMismatch(f"{path.name} has parts of the widths {given} and {taken}; choose {WANTED}")

    def forward(self, pictures: Sequence[Image.Image], tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the score of each image with its prompt, [B]; the mask is 1 for tokens of the prompt."""
        device, size = self.vision.device, self.vision.config.image_size
        image_BLD = self.vision(pixel_values=pixels_of(pictures, middle_rounded, size).to(device)).last_hidden_state
        text_BLD = self.text(
            input_ids=tokens_BL.to(device), attention_mask=mask_BL.to(device), encoder_hidden_states=image_BLD,
            encoder_attention_mask=torch.ones(image_BLD.shape[:2], dtype=torch.long, device=device),
        ).last_hidden_state  # fmt: skip
        reward_BD = text_BLD[:, 0]
        for place in LAYERS:
            reward_BD = linear(reward_BD, getattr(self, f"weight_{place}"), getattr(self, f"bias_{place}"))
        return (reward_BD[:, 0] - MEAN) / DEVIATION


def _vision(weights: Mapping[str, Tensor], path: Path) -> Any:
    from transformers import BlipVisionConfig, BlipVisionModel

    own = _below(weights, "blip.visual_encoder.")
    renamed = {}
    for name, value in own.items():
        start = next((start for start in VISION if name.startswith(start)), name)
        place = VISION.get(start, start) + name.removeprefix(start)
        for old, new in BLOCK.items() if start == "blocks." else ():
            place = place.replace(old, new)
        renamed[place] = value
    patch, width = own["patch_embed.proj.weight"].shape[-1], own["cls_token"].shape[-1]
    layers = _layers(own, "blocks", width, path)
    config = BlipVisionConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // HEAD_WIDTH,
        intermediate_size=own["blocks.0.mlp.fc1.weight"].shape[0], patch_size=patch,
        image_size=patch * round((own["pos_embed"].shape[1] - 1) ** 0.5), layer_norm_eps=1e-6, hidden_act="gelu",
    )  # fmt: skip
    with torch.device("meta"):
        model = BlipVisionModel(config)
    return filled(model, renamed, path, WANTED)


def _text(weights: Mapping[str, Tensor], path: Path) -> Any:
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    own = _below(weights, "blip.text_encoder.")
    vocabulary, width = own["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=_layers(own, "encoder.layer", width, path),
        num_attention_heads=width // HEAD_WIDTH, hidden_act="gelu", layer_norm_eps=1e-12, is_decoder=True,
        intermediate_size=own["encoder.layer.0.intermediate.dense.weight"].shape[0],
        encoder_hidden_size=own["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        max_position_embeddings=own["embeddings.position_embeddings.weight"].shape[0],
        bos_token_id=None, eos_token_id=None, sep_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = BlipTextModel(config, add_pooling_layer=False)
    return filled(model, own, path, WANTED)


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _layers(weights: Mapping[str, Tensor], name: str, width: int, path: Path) -> int:
    """Return the number of layers; the published widths have the published numbers."""
    found = (re.match(rf"{re.escape(name)}\.(\d+)\.", key) for key in weights)
    number = max((int(match[1]) for match in found if match), default=-1) + 1
    if number != PUBLISHED.get((name, width), number):
        wanted = PUBLISHED[name, width]
        raise CheckpointMismatch(f"{path.name} has {number} layers in {name} instead of {wanted}; choose {WANTED}")
    return number
