"""A sweep over strengths of guidance as MODELs, CONDITIONINGs and LATENTs.

A student takes a strength per row, so a sweep is one batch. The strength of a guidance LoRA is part of the weights, so
its sweep is one run per strength.

Shapes: B batch, L tokens, W width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...errors import InvalidConfig
from ...guidance.calibration import Calibration
from ...guidance.fusion import OFFICIAL_BF16
from ...guidance.methods import GUIDANCE_LORA
from ...guidance.sweep import Sweep
from ..prompts.conditioning import load_sharpener, only, sharpen
from .attachments import STUDENT_KEY
from .patch import apply_fusion

ROWS = ("samples", "noise_mask")
"""Entries of a LATENT with a row per image."""


class Runs(NamedTuple):
    """What to sample, an entry per run, and the strengths of all images."""

    models: list
    prompts: list
    latents: list[dict]
    sweep: Sweep


def sweep_student(model, positive, null, latent: dict, values: Sequence[float]) -> Runs:
    """Prepare a student at several guidances.

    Args:
        model: MODEL of a student.
        positive, null: CONDITIONING, as for `apply_fusion`.
        latent: LATENT; its first image is used, and all runs get the same noise.
        values: guidances.
    """
    student = model.get_attachment(STUDENT_KEY) or {}
    curve = Calibration.of(student.get("calibration", ""))
    sweep = Sweep("guidance", values, [None if curve is None else curve.effective(w) for w in values])
    batches = [[w] for w in values] if student.get("method") == GUIDANCE_LORA else [list(values)]
    # without a student file it can only be the published one, and the node has no input to say so
    precision = None if student else OFFICIAL_BF16
    fused = [apply_fusion(model, positive, null, batch, guidance_precision=precision) for batch in batches]
    models, prompts = ([pair[part] for pair in fused] for part in (0, 1))
    return Runs(models, prompts, [_rows(latent, len(batch)) for batch in batches], sweep)


def sweep_sharpener(model, positive, null, latent: dict, values: Sequence[float], path: Path) -> Runs:
    """Prepare a sharpener at several strengths, as one batch.

    Args:
        model: MODEL to sample, unchanged.
        positive, null: CONDITIONING with one prompt, and the empty prompt.
        latent: LATENT; its first image is used.
        values: strengths alpha.
        path: sharpener file.
    Raises:
        InvalidConfig: there are several prompts, an alpha is out of range, or the model guides itself.
    """
    for name, prompt in (("positive", positive), ("null", null)):
        if (rows := len(only(prompt, name)[0])) != 1:
            raise InvalidConfig(
                f"{name} holds a batch of {rows} prompts, but a sweep of a sharpener takes one; connect a single CLIP "
                "Text Encode"
            )
    sharpener = load_sharpener(path, values, model)
    sharp = [sharpen(positive, sharpener, alpha=alpha, null=null)[0] for alpha in values]
    # extras stay with one row, which the host repeats: it counts the tokens of a mask over all rows
    prompt = [[torch.cat([context_BLW for context_BLW, _ in sharp]), dict(sharp[0][1])]]
    return Runs([model], [prompt], [_rows(latent, len(values))], Sweep("alpha", values, [None] * len(values)))


def _rows(latent: dict, count: int) -> dict[str, Any]:
    """Repeat the first image of a LATENT, with one noise for all."""
    found = {name: _repeated(value[:1], count) if name in ROWS else value for name, value in latent.items()}
    return {**found, "batch_index": list(latent.get("batch_index", [0]))[:1] * count}


def _repeated(value: Any, count: int) -> Any:
    """Repeat a tensor with one row; leave anything else as it is."""
    if isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == 1:
        return value.expand(count, *value.shape[1:]).clone()
    return value
