"""Files of random weights in the published layouts, written tensor by tensor: a file may be larger than the memory."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Size, Tensor

from . import layouts
from .layouts import NETWORK, TEXT, VAE, Layout, prefixed

CODES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
"""Names of dtypes in a safetensors file."""
FP8 = torch.float8_e4m3fn
SCALE, MARK = ".scale_weight", "scaled_fp8"
"""How the host's scaled 8-bit files name the scale of a weight, and that they have scales."""

CLIPS, T5 = ("clip_l", "clip_g"), "t5xxl"
ALL_IN_ONE = "sd3.5_medium_incl_clips_t5xxlfp8scaled"
POOL = 2**24
"""Number of different random values, more than most matrices have."""

Dtypes = Callable[[str], torch.dtype]


def write_random(path: Path, layout: Layout, dtype_of: Dtypes, *, seed: int = 0) -> Path:
    """Write a file whose weights keep the size of their input, so that a deep network stays finite."""
    header, at = {}, 0
    for name, shape in layout.items():
        dtype = dtype_of(name)
        end = at + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = random_pool(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in layout.items():
            weight = random_weight(name, shape, pool).to(dtype_of(name)).contiguous()
            file.write(weight.view(torch.uint8).numpy().data if weight.ndim else weight[None].view(torch.uint8).numpy())
    return path


def random_pool(seed: int = 0) -> Tensor:
    """Return the random numbers that `random_weight` draws from."""
    return torch.randn(POOL, generator=torch.Generator().manual_seed(seed))


def random_weight(name: str, shape: Size, pool: Tensor) -> Tensor:
    """Return a weight; its random numbers are those of a pool from a place that the name chooses, which is fast."""
    if name.endswith(SCALE):
        return torch.full(shape, 1 / 64)
    if name.endswith(MARK):
        return torch.zeros(shape)
    if len(shape) < 2 and ("norm" in name or ".ln_" in name):
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    small = len(shape) < 2 or "embedding" in name or "pos_embed" in name
    scale = 0.02 if small else 0.7 * math.prod(shape[1:]) ** -0.5
    count = math.prod(shape)
    start = zlib.crc32(name.encode()) % max(POOL - count, 1)
    numbers = pool.repeat(count // POOL + 1) if count > POOL else pool
    return numbers[start : start + count].reshape(shape) * scale


def scaled(layout: Layout) -> tuple[Layout, Dtypes]:
    """Return the layout of a scaled 8-bit text encoder, and its dtypes."""
    linear = {
        name for name, shape in layout.items() if len(shape) == 2 and "embed" not in name and "shared" not in name
    }
    scales = {name.removesuffix(".weight") + SCALE: Size(()) for name in linear}

    def dtype_of(name: str) -> torch.dtype:
        if name.endswith(SCALE):
            return torch.float32
        return FP8 if name in linear or name.endswith(MARK) else torch.float16

    return {**layout, **scales, MARK: Size((0,))}, dtype_of


class Files:
    """The files that the shipped workflows for real weights ask for, made once in a folder of models."""

    def __init__(self, models: Path, *, depth: int | None = None, encoders: Sequence[str] = (*CLIPS, T5)):
        """Set up the folder.

        Args:
            models: the host's folder of models.
            depth: depth of the networks; None is the published one.
            encoders: text encoders, each of which has one size only.
        """
        self.models, self.depth, self.encoders = models, depth, encoders
        self.clips = [name for name in encoders if name in CLIPS]

    def sd3_medium(self) -> Path:
        """Make a whole SD3-medium under the names of diffusers, as the published student is."""
        layout = layouts.as_diffusers(layouts.network_layout("SD3-medium", self.depth))
        return self._made("diffusion_models/teefusion_sd3_medium", layout, _half)

    def text_encoders(self) -> list[Path]:
        """Make CLIP-L, CLIP-G and T5 in 8 bits, a file each."""
        made = [self._made(f"text_encoders/{name}", layouts.clip_layout(name), _half) for name in self.clips]
        if T5 in self.encoders:
            made.append(self._made(f"text_encoders/{T5}_fp8_e4m3fn", layouts.t5_layout(), lambda name: FP8))
        return made

    def vae(self) -> Path:
        """Make the VAE under the names of diffusers."""
        return self._made("vae/sd3_vae", layouts.vae_as_diffusers(layouts.vae_layout()), _half)

    def all_in_one(self) -> Path:
        """Make SD3.5-medium with its text encoders and its VAE in one file, T5 in scaled 8 bits."""
        layout = prefixed(NETWORK, layouts.network_layout("SD3.5-medium", self.depth))
        for name in self.clips:
            layout |= prefixed(f"{TEXT}{name}.transformer.", layouts.clip_layout(name))
        layout |= prefixed(VAE, layouts.vae_layout())
        dtypes: Dtypes = _half
        if T5 in self.encoders:
            t5, dtype_of = scaled(layouts.t5_layout())
            own = f"{TEXT}{T5}.transformer."
            layout |= prefixed(own, t5)

            def dtypes(name: str) -> torch.dtype:
                return dtype_of(name.removeprefix(own)) if name.startswith(own) else torch.float16

        return self._made(f"checkpoints/{ALL_IN_ONE}", layout, dtypes)

    def lora(self) -> Path:
        """Make a LoRA of SD3.5-medium for its attention, under the names of diffusers."""
        layout = layouts.network_layout("SD3.5-medium", self.depth)
        return self._made("loras/your_sd35_medium_lora", dict(lora_layout(layout)), _half)

    def all(self) -> None:
        """Make every file."""
        for make in (self.sd3_medium, self.text_encoders, self.vae, self.all_in_one, self.lora):
            make()

    def _made(self, name: str, layout: Layout, dtypes: Dtypes) -> Path:
        path = self.models / f"{name}.safetensors"
        return path if path.is_file() else write_random(path, layout, dtypes)


def without_update(student: Path, name: str) -> Path:
    """Write a copy of a student beside it whose update is zero."""
    path = student.with_stem(name)
    with safe_open(student, "pt") as file:
        save_file({key: torch.zeros_like(value) for key, value in load_file(student).items()}, path, file.metadata())
    return path


def lora_layout(native: Layout, rank: int = 16) -> Iterator[tuple[str, Size]]:
    """Yield names and shapes of a LoRA for the attention of a network, as trainers that use diffusers write it."""
    blocks = [name.split(".")[1] for name in native if name.endswith("x_block.attn.qkv.weight")]
    width = native["x_embedder.proj.weight"][0]
    for block in blocks:
        parts = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"]
        for part in parts:
            place = f"transformer.transformer_blocks.{block}.attn.{part}"
            yield f"{place}.lora_A.weight", Size((rank, width))
            yield f"{place}.lora_B.weight", Size((width, rank))


def _half(name: str) -> torch.dtype:
    return torch.float16
