"""Sharpening or blending of a CONDITIONING per entry.

A CONDITIONING is a list of [context [B,L,W], extras]. Every entry keeps its extras (area, mask, timestep range, hooks),
and inputs are not modified.

Shapes: B batch, L tokens, W width of a token, P pooled width.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...errors import InvalidConfig, ShapeMismatch
from ...files.sharpener_file import read_sharpener
from ...files.student_file import check_base
from ...prompts.arithmetic import SAME_ENCODERS, blended, cosine
from ...prompts.sharpener import Sharpener, sharpened
from ..guidance.attachments import why_no_base
from ..weights import base_fingerprint
from .encoded import POOLED
from .prompt_check import check_finite

MASK = "attention_mask"


def load_sharpener(path: Path, alphas: Sequence[float], model=None) -> Sharpener:
    """Read a sharpener file, and check that it suits what is asked of it.

    Args:
        path: sharpener file.
        alphas: all strengths that it will be used at.
        model: MODEL that will be sampled; None skips the checks of it.
    Raises:
        CheckpointMismatch: the file is not a whole sharpener, or it is for another base.
        InvalidConfig: an alpha is out of range, or the model guides itself.
    """
    sharpener, info = read_sharpener(path)
    for alpha in (min(alphas), max(alphas)):
        info.check_alpha(alpha)
    if model is not None:
        if why := why_no_base(model):
            raise InvalidConfig(
                f"model {why}, so a sharpened prompt would be guided twice; connect the base model, or use the student "
                "without a sharpener"
            )
        if info.base:
            check_base(info.base, base_fingerprint(model), path)
    return sharpener


def sharpen(conditioning, sharpener: Sharpener, *, alpha: float = 1.0, beta: float = 0.0, null=None, negative=None):
    """Apply a sharpener to a CONDITIONING.

    Args:
        conditioning: every entry is sharpened; pooled vectors do not change.
        sharpener: as `load_sharpener` returns it.
        alpha: strength of the sharpener; 0 leaves the term with beta only.
        beta: strength of the negative term; without a negative prompt it has no effect.
        null: CONDITIONING with one entry, the encoded empty prompt; needed without a negative prompt or with beta.
        negative: CONDITIONING with one entry; replaces null as what the prompt is pushed away from.
    Raises:
        InvalidConfig: null is needed.
        ShapeMismatch: widths, rows or numbers of tokens differ.
    """
    null_BLW, negative_BLW = _context_of(null, "null"), _context_of(negative, "negative")
    against_BLW = null_BLW if negative_BLW is None else negative_BLW
    if against_BLW is None:
        raise InvalidConfig(
            "neither null nor negative is connected; connect an encoded empty prompt to null, as in training"
        )
    if negative_BLW is None:
        beta = 0.0
    out = []
    for context_BLW, extras in _entries(conditioning, "conditioning"):
        network, against = sharpener.to(context_BLW.device), against_BLW.to(context_BLW.device)
        sharp_BLW = sharpened(network, context_BLW, against, alpha=alpha, beta=beta, null_BLW=null_BLW)
        out.append([sharp_BLW, dict(extras)])
    return out


def blend_prompts(base, terms: dict, reference=None):
    """Add weighted prompts to a CONDITIONING, in the tokens and in the pooled vector.

    Args:
        base: every entry is blended and keeps its extras.
        terms: name -> (weight, CONDITIONING with one entry, or None).
        reference: CONDITIONING with one entry to compare the result with.
    Returns:
        (CONDITIONING, report): for each entry, the cosines of the blend with the base and with the reference, and of
            the base with the reference.
    Raises:
        InvalidConfig: a term has several entries, or only some prompts have a pooled vector.
        ShapeMismatch: widths or rows differ, or lengths of prompts with an attention mask.
    """
    added = [(weight, only(prompt, name)) for name, (weight, prompt) in terms.items() if prompt is not None]
    full = None if reference is None else only(reference, "reference")
    out, report = [], []
    for number, entry in enumerate(_entries(base, "base"), 1):
        mixed = _blended_entry(entry, added)
        out.append(mixed)
        report.append(f"prompt {number} to base: {_cosines(mixed, entry)}")
        if full is not None:
            report.append(f"prompt {number} to reference: {_cosines(mixed, full)}")
            report.append(f"base {number} to reference: {_cosines(entry, full)}")
    return out, "\n".join(report)


def _blended_entry(entry, added: list):
    context_BLW, extras = entry
    mixed_BLW = blended(context_BLW, [(weight, context) for weight, (context, _) in added])
    if extras.get(MASK) is not None and mixed_BLW.shape[1] != context_BLW.shape[1]:
        raise ShapeMismatch(
            f"base has {context_BLW.shape[1]} tokens with a mask of its padding, the blend {mixed_BLW.shape[1]}; with "
            "this text encoder blend prompts of one length"
        )
    pooled = [other.get(POOLED) for other in (extras, *(other for _, (_, other) in added))]
    if all(vector is None for vector in pooled):
        return [mixed_BLW, dict(extras)]
    if any(vector is None for vector in pooled):
        raise InvalidConfig(f"some prompts have a pooled vector, others have none; {SAME_ENCODERS}")
    weights = [weight for weight, _ in added]
    return [mixed_BLW, {**extras, POOLED: blended(pooled[0], list(zip(weights, pooled[1:], strict=True)))}]


def _cosines(entry, other) -> str:
    """Return the cosines of two prompts as text, e.g. "tokens 0.981, pooled 0.954"."""
    parts = {"tokens": (entry[0], other[0]), "pooled": (entry[1].get(POOLED), other[1].get(POOLED))}
    given = ((name, pair) for name, pair in parts.items() if pair[0] is not None and pair[1] is not None)
    return ", ".join(f"{name} {cosine(*pair):.3f}" for name, pair in given)


def _context_of(conditioning, name: str) -> Tensor | None:
    return None if conditioning is None else only(conditioning, name)[0]


def only(conditioning, name: str):
    """Return the only entry of a CONDITIONING."""
    if len(conditioning) != 1:
        raise InvalidConfig(f"{name} holds {len(conditioning)} prompts; connect one encoded prompt")
    return _entries(conditioning, name)[0]


def _entries(conditioning, name: str) -> list:
    """Return the entries of a CONDITIONING; all must have token embeddings."""
    if not conditioning:
        raise InvalidConfig(f"{name} holds no prompt; connect an encoded prompt")
    for context, _ in conditioning:
        if not isinstance(context, torch.Tensor) or context.ndim != 3:
            raise ShapeMismatch(f"{name} holds no token embeddings [rows, tokens, width]; connect an encoded prompt")
    check_finite(conditioning, name)
    return list(conditioning)
