"""Metrics that are computed with a CLIP model.

Shapes: B images with one prompt each, P projection width, L tokens.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import linear, normalize

from ..errors import CheckpointMismatch
from ..files.tensor_file import check_finite, check_shapes, without_prefix
from .judges import CLIP, HPS, PICK
from .preprocessing import Prepare, middle, middle_rounded, pixels_of, whole

TOKENS = 77
Tokenize = Callable[[Sequence[str]], Tensor]
"""Prompts -> token ids [B,77] of CLIP's vocabulary, truncated and padded."""


@dataclass(frozen=True)
class Rule:
    """Preprocessing and score of a metric."""

    prepare: Prepare
    score: Callable[[Tensor, Tensor], Tensor]
    """(cosines [B], logit_scale of the model) -> scores [B]."""


RULES = {
    CLIP: Rule(middle, lambda cosine_B, scale: (100 * cosine_B).clamp(min=0)),
    PICK: Rule(middle, lambda cosine_B, scale: scale.exp() * cosine_B),
    HPS: Rule(whole, lambda cosine_B, scale: cosine_B),
}
"""Sources: arXiv 2104.08718 with w = 100 as in torchmetrics; arXiv 2305.01569; arXiv 2306.09341."""


def image_features(clip: Any, pictures: Sequence[Image.Image], prepare: Prepare) -> Tensor:
    """Return normalised image embeddings [B,P]."""
    device = clip.logit_scale.device
    pixels_BCHW = pixels_of(pictures, prepare, clip.config.vision_config.image_size).to(device)
    return normalize(clip.visual_projection(clip.vision_model(pixel_values=pixels_BCHW).pooler_output), dim=-1)


def text_features(clip: Any, tokens_BL: Tensor) -> Tensor:
    """Return normalised prompt embeddings [B,P]."""
    tokens_BL = tokens_BL.to(clip.logit_scale.device)
    return normalize(clip.text_projection(clip.text_model(input_ids=tokens_BL).pooler_output), dim=-1)


def clip_scores(clip: Any, rule: Rule, pictures: Sequence[Image.Image], tokens_BL: Tensor) -> Tensor:
    """Return the score of each image with its prompt, [B]."""
    pictures_BP, prompts_BP = image_features(clip, pictures, rule.prepare), text_features(clip, tokens_BL)
    return rule.score((pictures_BP * prompts_BP).sum(-1), clip.logit_scale)


def check_layers(weights: Sequence[Tensor], biases: Sequence[Tensor], path: Path) -> None:
    """Refuse linear layers that do not follow each other down to one score, or that are not finite.

    Raises:
        CheckpointMismatch: with the number of the layer.
    """
    outputs = [*(weight.shape[-1] for weight in weights[1:] if weight.ndim), 1]
    for number, (weight, bias, width) in enumerate(zip(weights, biases, outputs, strict=False), 1):
        layer = {f"layer {number}": weight, f"bias {number}": bias}
        inputs = weight.shape[-1] if weight.ndim else 1
        check_shapes(layer, {f"layer {number}": (width, inputs), f"bias {number}": (width,)}, path)
        check_finite(layer, path)


class AestheticHead(torch.nn.Module):
    """LAION's aesthetic predictor: linear layers on image embeddings, with scores from about 1 to 10."""

    LAYERS = (0, 2, 4, 6, 7)
    """Indices of the linear layers in the published files; the others are dropout."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]):
        super().__init__()
        for number, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight_{number}", weight.float())
            self.register_buffer(f"bias_{number}", bias.float())
        self.number = len(layers)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], path: Path) -> "AestheticHead":
        """Build a head from a file of improved-aesthetic-predictor (five layers) or aesthetic-predictor (one).

        Raises:
            CheckpointMismatch: the file holds neither, or not all of its weights.
        """
        single = without_prefix(tensors, "predictor.weight") or ({"predictor." + k: v for k, v in tensors.items()})
        if {"predictor.weight", "predictor.bias"} <= single.keys():
            return cls._checked([single["predictor.weight"]], [single["predictor.bias"]], path)
        found = without_prefix(tensors, "layers.0.weight") or {}
        places = sorted(int(name[1]) for key in found if (name := re.fullmatch(r"layers\.(\d+)\.weight", key)))
        if tuple(places) != cls.LAYERS or not all(f"layers.{place}.bias" in found for place in places):
            raise CheckpointMismatch(
                f"{path.name} is no LAION aesthetic head without activations; choose sac+logos+ava1-l14-linearMSE or "
                "ava+logos-l14-linearMSE of improved-aesthetic-predictor, or a head of aesthetic-predictor"
            )
        weights, biases = ([found[f"layers.{place}.{kind}"] for place in places] for kind in ("weight", "bias"))
        return cls._checked(weights, biases, path)

    @classmethod
    def _checked(cls, weights: list[Tensor], biases: list[Tensor], path: Path) -> "AestheticHead":
        """Refuse layers that do not follow each other down to one score, and weights that are not finite."""
        check_layers(weights, biases, path)
        return cls(list(zip(weights, biases, strict=True)))

    def fits(self, clip: Any, path: Path, backbone: str) -> None:
        """Check the width of the CLIP.

        Raises:
            CheckpointMismatch: the head was trained on a CLIP of another width.
        """
        wants, has = self.get_buffer("weight_0").shape[1], clip.config.projection_dim
        if wants != has:
            raise CheckpointMismatch(
                f"{path.name} was trained on directions of width {wants}, {backbone} gives {has}; choose the CLIP of "
                "this head, which is ViT-L/14 of OpenAI for most heads"
            )

    def forward(self, directions_BP: Tensor) -> Tensor:
        """Return the score of each image embedding, [B]."""
        for number in range(self.number):
            directions_BP = linear(directions_BP, getattr(self, f"weight_{number}"), getattr(self, f"bias_{number}"))
        return directions_BP[:, 0]


def aesthetic_scores(clip: Any, head: AestheticHead, pictures: Sequence[Image.Image]) -> Tensor:
    """Return the aesthetic score of each image, [B]."""
    return head(image_features(clip, pictures, middle_rounded))
