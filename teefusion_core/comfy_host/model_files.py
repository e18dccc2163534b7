"""Model files, loaded by ComfyUI.

ComfyUI loads many wrong files without an error, with random weights for all that is missing. Here every wrong file is
refused in a sentence that says what it holds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.sd
from torch import Tensor

from ..errors import CheckpointMismatch
from ..files.sharpener_file import FORMAT as SHARPENER
from ..files.student_file import FORMAT as STUDENT
from ..files.tensor_file import PICKLES, open_tensors, what_it_is

NETWORK, ENCODERS, VAE = "a diffusion model", "text encoders", "a VAE"
PARTS = {
    NETWORK: r"(model\.)?diffusion_model\.|(joint|double|single|input|transformer|down)_blocks\.\d",
    ENCODERS: r"text_encoders\.|conditioner\.|cond_stage_model\.|(.*\.)?(text_model\.encoder|encoder\.block|"
    r"layers\.\d+\.self_attn|transformer\.resblocks)\b",
    VAE: r"first_stage_model\.|vae\.|(taesd_)?(decoder|encoder)\.(conv_in|conv1|mid|up|down|1\.weight)|taesd_",
}
"""What a file may hold -> how the names of its tensors start."""
LORA = re.compile(r"lora_(unet|te\d?)_|.*[._](lora_(up|down|A|B|a|b)|lokr_w\d\w*|hada_w\d_a|lora\.(up|down))\b")
REPORTS = re.compile(r"(unet|clip) missing: |Missing VAE keys ")
"""Log lines of the host that list the weights that a file does not have."""
OPTIONAL = re.compile(r"logit_scale|text_projection|position_ids|embed_tokens|shared|vae_s\w+|\w*scale\w*|comfy_quant")
"""Weights that the host has a value for."""


def network_of(tensors: Mapping[str, Tensor], path: Path, **options):
    """Return the MODEL of the weights of a file, with options of the host's loader.

    Raises:
        CheckpointMismatch: they are no model that this ComfyUI supports, or some are missing.
    """
    load = comfy.sd.load_diffusion_model_state_dict
    return loaded(
        path, "student", "all weights of a model that this ComfyUI supports", lambda: load(dict(tensors), **options)
    )


def check_vae(vae, model, setting: str = "vae") -> None:
    """Refuse a VAE of another latent space than the model's; None is no VAE.

    Raises:
        CheckpointMismatch: its latents have another number of channels.
    """
    ours, theirs = model.model.latent_format.latent_channels, getattr(vae, "latent_channels", None)
    if theirs not in (None, ours):
        raise CheckpointMismatch(
            f"{setting} has latents of {theirs} channels, but the model has latents of {ours}; use the model's VAE"
        )


def why_invalid(vae) -> str:
    """Return why the host would refuse to use a VAE, or an empty text."""
    try:
        vae.throw_exception_if_invalid()
    except Exception as error:
        return str(error)
    return ""


def loaded(path: Path, setting: str, wanted: str, load: Callable[[], Any]) -> Any:
    """Load a file with the host, whose errors of every kind mean that it is a wrong file.

    Args:
        path: the file.
        setting: what named it, for messages.
        wanted: what it must hold.
        load: calls the host.
    Raises:
        CheckpointMismatch: the host cannot load it, or it would use random weights for missing ones.
    """
    try:
        if path.suffix.lower() not in PICKLES:
            with open_tensors(path):
                pass
        with _missing_weights() as missing:
            result = load()
    except CheckpointMismatch as error:
        raise CheckpointMismatch(f"{setting}: {error}") from error
    except Exception as error:
        raise wrong_file(path, setting, wanted, error) from error
    if result is None:
        raise wrong_file(path, setting, wanted)
    if missing:
        raise CheckpointMismatch(
            f"{setting}: {path.name} lacks {len(missing)} of its weights, such as {missing[0]}; copy or download it "
            "again"
        )
    return result


def wrong_file(path: Path, setting: str, wanted: str, error: Exception | None = None) -> CheckpointMismatch:
    """Return an error that says what a file holds and what is wanted."""
    found, kind = contents(path), what_it_is(path).removeprefix("it ")
    reason = f" ({type(error).__name__})" if error else ""
    if found:
        holds = f"holds {' and '.join(found)}" + (f" that this ComfyUI cannot load{reason}" if wanted in found else "")
    else:
        holds = kind or f"cannot be loaded by this ComfyUI{reason}"
    return CheckpointMismatch(f"{setting}: {path.name} {holds}; give a file of {wanted}")


def contents(path: Path) -> list[str]:
    """Return what a safetensors file holds, e.g. ["a LoRA"]; empty if it is unknown."""
    try:
        with open_tensors(path) as file:
            names, metadata = list(file.keys()), file.metadata() or {}
    except CheckpointMismatch:
        return []
    known = {STUDENT: "a TeEFusion student", SHARPENER: "a sharpener for DICE Sharpen"}.get(metadata.get("format", ""))
    if known:
        return [known]
    if any(LORA.match(name) for name in names):
        return ["a LoRA"]
    return [part for part, start in PARTS.items() if any(re.match(start, name) for name in names)]


@contextmanager
def _missing_weights() -> Iterator[list[str]]:
    """Collect the weights that the host misses in a file inside the block; it only logs them."""
    missing: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if REPORTS.match(message := record.getMessage()):
                names = re.findall(r"'([^']+)'", message)
                missing.extend(
                    name for name in names if not OPTIONAL.fullmatch(name.removesuffix(".weight").rpartition(".")[2])
                )

    root, listener = logging.getLogger(), Listener(logging.WARNING)
    root.addHandler(listener)
    try:
        yield missing
    finally:
        root.removeHandler(listener)
