"""The included demo models as stock ComfyUI objects.

The networks are the host's own (MMDiT, UNet, CLIPTextModel, TAESD); only the vocabulary is ours. Both models share the
text encoder and the VAE.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import comfy.sd
import comfy.supported_models_base
import comfy.utils
from comfy import sd1_clip
from comfy.clip_model import CLIPEmbeddings, CLIPTextModel

from ..errors import CheckpointMismatch, InvalidConfig
from ..files.tensor_file import open_tensors
from .demo_sd15 import load_sd15
from .guidance.student_loader import load_student

MODELS = Path(__file__).resolve().parents[2] / "models"
SD15 = "sd15"
STUDENT = "student"
NETWORKS = {"base": "demo_sd3_base", "weak": "demo_sd3_weak", SD15: "demo_sd15_base"}
"""Variant without a student -> name of the file of its network."""
NUM_TOKENS = 24
START, END, UNKNOWN = 0, 1, 2
TEXT_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": NUM_TOKENS,
    "hidden_act": "gelu",
    "eos_token_id": END,
}


class WordTokenizer:
    """Tokenizer with one token per word; words outside the vocabulary become `UNKNOWN`."""

    def __init__(self, words: list[str]):
        self.ids = {word: i for i, word in enumerate(words, start=UNKNOWN + 1)}

    def from_pretrained(self, path: str, **kwargs) -> WordTokenizer:
        """Return self: the host constructs tokenizers from a folder, and this one needs none."""
        return self

    def get_vocab(self) -> dict[str, int]:
        """Return word -> token id, with the special tokens."""
        return {"<start>": START, "<end>": END, "<unknown>": UNKNOWN, **self.ids}

    def __call__(self, text: str) -> dict[str, list[int]]:
        words = re.findall(r"[a-z]+", text.lower())
        return {"input_ids": [START, *(self.ids.get(w, UNKNOWN) for w in words), END]}


class WordTextModel(CLIPTextModel):
    """The host's CLIP text model with the vocabulary size of its configuration."""

    def __init__(self, config_dict, dtype, device, operations):
        super().__init__(config_dict, dtype, device, operations)
        self.text_model.embeddings = CLIPEmbeddings(
            config_dict["hidden_size"], config_dict["vocab_size"], config_dict["max_position_embeddings"], dtype,
            device, operations,
        )  # fmt: skip


def text_config(num_words: int) -> dict:
    """Return the configuration of the text model for a number of words."""
    return {**TEXT_CONFIG, "vocab_size": num_words + UNKNOWN + 1}


class _TextEncoder(sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None, num_words=0):
        super().__init__(
            device=device, dtype=dtype, max_length=NUM_TOKENS, textmodel_json_config=text_config(num_words),
            model_class=WordTextModel, special_tokens={"start": START, "end": END, "pad": END},
            model_options=model_options or {},
        )  # fmt: skip


def _tokenizer(words: list[str], embedding_directory=None, tokenizer_data=None) -> sd1_clip.SD1Tokenizer:
    inner = functools.partial(
        sd1_clip.SDTokenizer, tokenizer_path=".", max_length=NUM_TOKENS, embedding_size=TEXT_CONFIG["hidden_size"],
        embedding_key="words", tokenizer_class=WordTokenizer(words),
    )  # fmt: skip
    return sd1_clip.SD1Tokenizer(embedding_directory, tokenizer_data or {}, clip_name="words", tokenizer=inner)


def load_clip(path: Path) -> comfy.sd.CLIP:
    """Return the demo text encoder as a stock CLIP; the vocabulary is in the metadata of the file."""
    state, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    words = json.loads(metadata["words"])
    target = comfy.supported_models_base.ClipTarget(
        functools.partial(_tokenizer, words),
        functools.partial(
            sd1_clip.SD1ClipModel, clip_name="words", clip_model=functools.partial(_TextEncoder, num_words=len(words)),
        ),
    )  # fmt: skip
    clip = comfy.sd.CLIP(target, tokenizer_data={}, parameters=sum(t.numel() for t in state.values()))
    clip.load_sd(state)
    return clip


def load_vae(path: Path) -> comfy.sd.VAE:
    """Return the demo VAE; the host recognises it as a TAESD with 16 channels."""
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path), safe_load=True))


def variants() -> list[str]:
    """Return what can be loaded: the networks (weak is an earlier checkpoint of base) and all student files."""
    return [*NETWORKS, *sorted(_students())]


def load_demo(variant: str):
    """Load a variant of a demo model.

    Args:
        variant: one of `variants()`.
    Returns:
        (MODEL, CLIP, VAE) of the host's classes.
    Raises:
        InvalidConfig: no such variant.
        CheckpointMismatch: a file is missing or damaged.
    """
    if variant not in variants():
        raise InvalidConfig(f"variant is {variant!r}; choose one of {', '.join(variants())}")
    student = _students().get(variant)
    network = variant
    if student is not None:
        network = SD15 if variant.startswith(SD15) else "base"
    files = [MODELS / f"{name}.safetensors" for name in (NETWORKS[network], "demo_sd3_text", "demo_sd3_vae")]
    for path in files:
        try:
            with open_tensors(path):
                pass
        except CheckpointMismatch as error:
            raise CheckpointMismatch(f"{error}. It is part of this pack: install the pack again") from error
    model = load_sd15(files[0]) if network == SD15 else comfy.sd.load_diffusion_model(str(files[0]))
    if student is not None:
        model = load_student(model, student)
    return model, load_clip(files[1]), load_vae(files[2])


def _students() -> dict[str, Path]:
    """Return variant -> file of all students; those of SD3 are not named after their base."""
    found = MODELS.glob(f"demo_sd*_{STUDENT}*.safetensors")
    return {path.stem.removeprefix("demo_").removeprefix("sd3_"): path for path in found}
