"""Tiny judges of the published architectures: weights that follow from their names, pictures, prompts.

The numbers in data/judges.json are what the libraries that come with the published weights make of these:
judge_references.py computed them.
"""

import numpy as np
import torch
from golden_weights import fill
from PIL import Image

SEED = 11
VISION, TEXT, PROJECTION, LAYERS = 160, 128, 96, 2  # a head of ViT-H is 80 wide in pictures, 64 in text
PATCH, SIDE, VOCABULARY, TOKENS = 14, 224, 49408, 77
BLIP_VISION, BLIP_TEXT, BLIP_PATCH, BLIP_POSITIONS = 128, 64, 16, 64
HEAD_WIDTHS = (1024, 128, 64, 16, 1)
HEAD_PLACES = (0, 2, 4, 6, 7)
PROMPTS = ["a red circle, left of a small blue square!", "Portrait of an old man with a hat; oil on canvas"]
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a red circle left of small blue square an old man with hat oil on canvas"
WORDS += " portrait , ! ; ##s"


def pictures():
    """Two pictures that are not square, one smaller than judges look at, one larger; smooth, so that nothing is cut."""
    made = []
    for number, (width, height) in enumerate([(96, 160), (400, 300)]):
        coarse = (fill(f"picture{number}", (6, 8, 3), SEED).clamp(-2, 2) * 60 + 128).numpy().astype(np.uint8)
        made.append(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return made


def _named(shapes):
    """Weights by name: of layers by the number that goes in, of norms around 1."""
    found = {}
    for name, shape in shapes.items():
        values = fill(name, shape, SEED)
        if len(shape) > 1 and "embed" not in name:
            found[name] = values / float(np.prod(shape[1:])) ** 0.5
        elif ("norm" in name.lower() or "ln_" in name) and name.endswith("weight"):
            found[name] = 1 + 0.1 * values
        else:
            found[name] = 0.1 * values
    return found


def _layer(name, wide_out, *wide_in):
    return {f"{name}.weight": (wide_out, *wide_in), f"{name}.bias": (wide_out,)}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _clip_block(name, width):
    shapes = {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
    shapes |= (
        _layer(f"{name}.attn.out_proj", width, width) | _norm(f"{name}.ln_1", width) | _norm(f"{name}.ln_2", width)
    )
    return shapes | _layer(f"{name}.mlp.c_fc", 4 * width, width) | _layer(f"{name}.mlp.c_proj", width, 4 * width)


def open_clip_weights():
    """A CLIP as open_clip names its weights."""
    shapes = {
        "visual.class_embedding": (VISION,), "visual.positional_embedding": ((SIDE // PATCH) ** 2 + 1, VISION),
        "visual.proj": (VISION, PROJECTION), "visual.conv1.weight": (VISION, 3, PATCH, PATCH),
        "token_embedding.weight": (VOCABULARY, TEXT), "positional_embedding": (TOKENS, TEXT),
        "text_projection": (TEXT, PROJECTION),
    }  # fmt: skip
    shapes |= _norm("visual.ln_pre", VISION) | _norm("visual.ln_post", VISION) | _norm("ln_final", TEXT)
    for number in range(LAYERS):
        shapes |= _clip_block(f"visual.transformer.resblocks.{number}", VISION)
        shapes |= _clip_block(f"transformer.resblocks.{number}", TEXT)
    return _named(shapes) | {"logit_scale": torch.tensor(4.5)}


def head_weights(width=PROJECTION):
    """The layers of LAION's aesthetic head, of ImageReward's last part likewise."""
    shapes = {}
    for place, out in zip(HEAD_PLACES, HEAD_WIDTHS, strict=True):
        shapes |= _layer(f"layers.{place}", out, width)
        width = out
    return _named(shapes)


def _blip_vision():
    shapes = {"cls_token": (1, 1, BLIP_VISION), "pos_embed": (1, (SIDE // BLIP_PATCH) ** 2 + 1, BLIP_VISION)}
    shapes |= _layer("patch_embed.proj", BLIP_VISION, 3, BLIP_PATCH, BLIP_PATCH) | _norm("norm", BLIP_VISION)
    for number in range(LAYERS):
        name = f"blocks.{number}"
        shapes |= _norm(f"{name}.norm1", BLIP_VISION) | _norm(f"{name}.norm2", BLIP_VISION)
        shapes |= _layer(f"{name}.attn.qkv", 3 * BLIP_VISION, BLIP_VISION)
        shapes |= _layer(f"{name}.attn.proj", BLIP_VISION, BLIP_VISION)
        shapes |= _layer(f"{name}.mlp.fc1", 4 * BLIP_VISION, BLIP_VISION)
        shapes |= _layer(f"{name}.mlp.fc2", BLIP_VISION, 4 * BLIP_VISION)
    return shapes


def _blip_text():
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS.split()) + 2, BLIP_TEXT),
        "embeddings.position_embeddings.weight": (BLIP_POSITIONS, BLIP_TEXT),
        **_norm("embeddings.LayerNorm", BLIP_TEXT),
    }
    for number in range(LAYERS):
        name = f"encoder.layer.{number}"
        for kind, wide in (("attention", BLIP_TEXT), ("crossattention", BLIP_VISION)):
            shapes |= _layer(f"{name}.{kind}.self.query", BLIP_TEXT, BLIP_TEXT)
            shapes |= _layer(f"{name}.{kind}.self.key", BLIP_TEXT, wide)
            shapes |= _layer(f"{name}.{kind}.self.value", BLIP_TEXT, wide)
            shapes |= _layer(f"{name}.{kind}.output.dense", BLIP_TEXT, BLIP_TEXT)
            shapes |= _norm(f"{name}.{kind}.output.LayerNorm", BLIP_TEXT)
        shapes |= _layer(f"{name}.intermediate.dense", 4 * BLIP_TEXT, BLIP_TEXT)
        shapes |= _layer(f"{name}.output.dense", BLIP_TEXT, 4 * BLIP_TEXT) | _norm(
            f"{name}.output.LayerNorm", BLIP_TEXT
        )
    return shapes


def image_reward_weights():
    """An ImageReward as its file names its weights."""
    vision = {f"blip.visual_encoder.{name}": value for name, value in _named(_blip_vision()).items()}
    text = {f"blip.text_encoder.{name}": value for name, value in _named(_blip_text()).items()}
    return vision | text | {f"mlp.{name}": value for name, value in head_weights(BLIP_TEXT).items()}
