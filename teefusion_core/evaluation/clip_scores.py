"""Metrics that a CLIP computes, as rows of a table.

Shapes: B pictures with a prompt each, P projection, L tokens.
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
from ..files.tensor_file import without_prefix
from .judges import CLIP, HPS, PICK
from .preprocessing import Prepare, middle, middle_rounded, pixels_of, whole

TOKENS = 77
Tokenize = Callable[[Sequence[str]], Tensor]
"""Prompts -> token numbers [B,77] of CLIP's own vocabulary, cut and padded."""


@dataclass(frozen=True)
class Rule:
    """How a metric sees pictures, what it makes of the cosine with the prompt."""

    prepare: Prepare
    score: Callable[[Tensor, Tensor], Tensor]
    """(cosines [B], the model's logarithm of a scale) -> scores [B]."""


RULES = {
    CLIP: Rule(middle, lambda cosine_B, scale: (100 * cosine_B).clamp(min=0)),
    PICK: Rule(middle, lambda cosine_B, scale: scale.exp() * cosine_B),
    HPS: Rule(whole, lambda cosine_B, scale: cosine_B),
}
"""Sources: arXiv 2104.08718 with w = 100 as torchmetrics has it; arXiv 2305.01569; arXiv 2306.09341."""


def image_features(clip: Any, pictures: Sequence[Image.Image], prepare: Prepare) -> Tensor:
    """Return directions of pictures [B,P], of length 1."""
    device = clip.logit_scale.device
    pixels_BCHW = pixels_of(pictures, prepare, clip.config.vision_config.image_size).to(device)
    return normalize(clip.visual_projection(clip.vision_model(pixel_values=pixels_BCHW).pooler_output), dim=-1)


def text_features(clip: Any, tokens_BL: Tensor) -> Tensor:
    """Return directions of prompts [B,P], of length 1."""
    tokens_BL = tokens_BL.to(clip.logit_scale.device)
    return normalize(clip.text_projection(clip.text_model(input_ids=tokens_BL).pooler_output), dim=-1)


def clip_scores(clip: Any, rule: Rule, pictures: Sequence[Image.Image], tokens_BL: Tensor) -> Tensor:
    """Score each picture with its prompt, [B]."""
    pictures_BP, prompts_BP = image_features(clip, pictures, rule.prepare), text_features(clip, tokens_BL)
    return rule.score((pictures_BP * prompts_BP).sum(-1), clip.logit_scale)


class AestheticHead(torch.nn.Module):
    """LAION's predictor on the pictures' directions: linear layers in a row, from 1 to 10 or so."""

    LAYERS = (0, 2, 4, 6, 7)
    """Places of the linear layers in the published files; between them nothing but dropout."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]):
        super().__init__()
        for number, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight_{number}", weight.float())
            self.register_buffer(f"bias_{number}", bias.float())
        self.number = len(layers)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], path: Path) -> "AestheticHead":
        """Read a head: improved-aesthetic-predictor with five layers, or aesthetic-predictor with one.

        Raises:
            CheckpointMismatch: a file that holds neither.
        """
        single = without_prefix(tensors, "predictor.weight") or ({"predictor." + k: v for k, v in tensors.items()})
        if {"predictor.weight", "predictor.bias"} <= single.keys():
            return cls([(single["predictor.weight"], single["predictor.bias"])])
        found = without_prefix(tensors, "layers.0.weight") or {}
        places = sorted(int(name[1]) for key in found if (name := re.fullmatch(r"layers\.(\d+)\.weight", key)))
        if tuple(places) != cls.LAYERS:
            raise CheckpointMismatch(
                f"{path.name} is no LAION aesthetic head without activations; choose sac+logos+ava1-l14-linearMSE or "
                "ava+logos-l14-linearMSE of improved-aesthetic-predictor, or a head of aesthetic-predictor"
            )
        return cls([(found[f"layers.{place}.weight"], found[f"layers.{place}.bias"]) for place in places])

    def fits(self, clip: Any, path: Path, backbone: str) -> None:
        """Refuse a backbone of another width.

        Raises:
            CheckpointMismatch: the head was trained on another CLIP.
        """
        wants, has = self.get_buffer("weight_0").shape[1], clip.config.projection_dim
        if wants != has:
            raise CheckpointMismatch(
                f"{path.name} was trained on directions of width {wants}, {backbone} gives {has}; for most heads the "
                "CLIP is ViT-L/14 of OpenAI"
            )

    def forward(self, directions_BP: Tensor) -> Tensor:
        """Score directions [B]."""
        for number in range(self.number):
            directions_BP = linear(directions_BP, getattr(self, f"weight_{number}"), getattr(self, f"bias_{number}"))
        return directions_BP[:, 0]


def aesthetic_scores(clip: Any, head: AestheticHead, pictures: Sequence[Image.Image]) -> Tensor:
    """Score pictures without looking at prompts, [B]."""
    return head(image_features(clip, pictures, middle_rounded))
