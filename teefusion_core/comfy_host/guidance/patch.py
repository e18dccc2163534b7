"""Guidance fusion on a ComfyUI model patcher.

How it hangs together: the conditioning carries plain tensors (null, w); `extra_conds`, which the host
calls once per run with the weights loaded, LoRA included, turns them into the term; an APPLY_MODEL wrapper
adds the term to the output of the pooled embedder for the length of one forward. The term lives in the
run's own copy of the conditioning, hence there is no cache to go stale. A prompt without guidance in the
same run gets zeros, so that the host can batch it with the fused one.

Shapes: B batch, P pooled width, D model width.
"""

import inspect
import logging
import math
import weakref
from collections.abc import Callable
from functools import partial
from types import MethodType

import comfy.conds
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...errors import InvalidConfig, ShapeMismatch, reported_by
from ...guidance.add_to_output import add_to_output
from ...guidance.architectures import Architecture, architecture_of
from ...guidance.fusion import OFFICIAL_BF16, common_rows, guidance_rows, guidance_timestep
from ...guidance.methods import METHODS, TEEFUSION, Ingredients

STUDENT_KEY = "teefusion_student"  # attachment of a model loaded from a student file: its metadata, a dict
EMBEDDER_KEY = "teefusion_embedder"  # attachment of a model whose student has layers of its own, or None
WRAPPER_KEY = "teefusion"
NULL_KEY = "teefusion_null_pooled"  # in conditioning: [1,P] or [B,P]
TIMESTEP_KEY = "teefusion_guidance_timestep"  # in conditioning: 1000 w, float32, [1] or [B]
GAIN_KEY = "teefusion_gain"  # in conditioning: float
TERM_KEY = "teefusion_term"  # among the model conds of a run: [1,D] or [B,D]
PATCHED = "extra_conds"  # the method of a model that makes its conds of a prompt
IN_THE_RUN = "TeEFusion"  # who speaks when no node is executing

log = logging.getLogger(__name__)


def apply_fusion(
    model_patcher, positive, null, guidance, *, guidance_precision: str | None = None, gain: float | None = None
):
    """Prepare a model with its prompt for one-pass guidance.

    Args:
        model_patcher: ComfyUI MODEL; not modified, a clone is returned.
        positive: CONDITIONING, each entry with pooled_output [B,P].
        null: CONDITIONING with one entry, the encoded empty (or negative) prompt.
        guidance: w, a number or one per row of the latent batch.
        guidance_precision: "official bf16" or "exact"; None takes the student's, else official bf16.
        gain: multiplier of the term; None takes the student's, else the architecture's.
    Returns:
        (model clone, conditioning), to be sampled together at cfg 1.
    Raises:
        UnsupportedArchitecture: the model has no place for the term.
        InvalidConfig: w is not a number in the trained range, or a prompt has no pooled vector.
        ShapeMismatch: widths or rows do not fit.
    """
    architecture = architecture_of(model_patcher.model.diffusion_model)
    pooled_width, _ = architecture.widths(model_patcher.model.diffusion_model)
    student = model_patcher.get_attachment(STUDENT_KEY) or {}
    w_B = guidance_rows(guidance)
    _check_trained_range(w_B, student)
    precision = guidance_precision or student.get("guidance_precision", OFFICIAL_BF16)
    scale = float(student.get("guidance_embedding_scale", architecture.guidance_embedding_scale))
    if len(null) != 1:
        raise InvalidConfig(f"null holds {len(null)} prompts; connect one encoded empty prompt")
    null_BP = _pooled_of(null[0], "null", pooled_width)
    values = {
        NULL_KEY: null_BP,
        TIMESTEP_KEY: guidance_timestep(w_B, precision=precision, scale=scale),
        GAIN_KEY: float(student.get("gain", architecture.gain) if gain is None else gain),
    }
    fused = []
    for context, extras in positive:
        pooled_BP = _pooled_of((context, extras), "positive", pooled_width)
        common_rows(positive=len(pooled_BP), null=len(null_BP), guidance=len(w_B))
        fused.append([context, {**extras, **values}])
    if not fused:
        raise InvalidConfig("positive holds no prompt; connect an encoded prompt")
    _note_wiring(student, null_BP, [extras["pooled_output"] for _, extras in positive])
    return _patched(model_patcher, architecture), fused


def why_no_base(model_patcher) -> str | None:
    """Say why a MODEL cannot be the base of a student, if so; its unpatched weights would not tell."""
    if model_patcher.get_attachment(STUDENT_KEY) is not None:
        return "is already a student"
    if model_patcher.get_wrappers(WrappersMP.APPLY_MODEL, WRAPPER_KEY):
        return "comes out of TeEFusion Conditioning, whose term would stay"
    return None


def _note_wiring(student: dict, null_BP: Tensor, positives: list[Tensor]) -> None:
    """Say what can be wired by mistake, since the picture would not tell."""
    if not student:
        log.info(
            "%s: this model does not say that it is a student, as those of student files do; on an ordinary model the "
            "guidance means nothing.",
            IN_THE_RUN,
        )
    if not null_BP.any():
        log.warning("%s: null is all zeros; connect the encoded empty prompt itself, not zeroed out.", IN_THE_RUN)
    if any(torch.equal(pooled_BP.to(null_BP), null_BP) for pooled_BP in positives):
        log.warning("%s: null is the prompt itself, so guidance is zero; connect an empty prompt there.", IN_THE_RUN)


def _check_trained_range(w_B: Tensor, student: dict) -> None:
    """Refuse a w that the student never saw; students without a range take any."""
    low, high = float(student.get("guidance_min", 0.0)), float(student.get("guidance_max", math.inf))
    if bool((w_B < low).any() or (w_B > high).any()):
        raise InvalidConfig(
            f"guidance is {w_B.tolist()}, this student was trained for w from {low:g} to {high:g} "
            f"(CFG scale {1 + low:g} to {1 + high:g}); choose a guidance inside"
        )


def _pooled_of(entry, name: str, width: int) -> Tensor:
    """Return the pooled vector [B,P] of a conditioning entry."""
    pooled_BP = entry[1].get("pooled_output")
    if pooled_BP is None:
        raise InvalidConfig(
            f"{name} has no pooled_output; encode the prompt with the text encoders of the model, CLIP-L with CLIP-G"
        )
    if pooled_BP.ndim != 2 or pooled_BP.shape[-1] != width:
        raise ShapeMismatch(
            f"pooled_output of {name} has shape {list(pooled_BP.shape)}, the model takes [rows, {width}]; "
            "encode the prompt with the text encoders of this model"
        )
    return pooled_BP


def _patched(model_patcher, architecture: Architecture):
    """Return a clone that reads fused conditioning; a model that already does is only cloned."""
    patched = model_patcher.clone()
    if patched.get_wrappers(WrappersMP.APPLY_MODEL, WRAPPER_KEY):
        return patched
    base, original = weakref.ref(patched.model), _loose(patched.get_model_object(PATCHED))
    method = (patched.get_attachment(STUDENT_KEY) or {}).get("method", TEEFUSION)
    made = partial(_term_of_prompt, architecture, method, patched.get_attachment(EMBEDDER_KEY))

    def extra_conds(**kwargs):
        out = original(**kwargs)
        with reported_by(IN_THE_RUN):
            out[TERM_KEY] = comfy.conds.CONDRegular(made(base(), **kwargs))
        return out

    def apply_model(executor, *args, **kwargs):
        term_BD = kwargs.pop(TERM_KEY, None)
        if term_BD is None:
            return executor(*args, **kwargs)
        with add_to_output(executor.class_obj.diffusion_model, architecture.pooled_embed, term_BD):
            return executor(*args, **kwargs)

    patched.add_object_patch(PATCHED, extra_conds)
    patched.add_callback_with_key(CallbacksMP.ON_PRE_RUN, WRAPPER_KEY, _keep_loosely)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, apply_model)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, _note_run)
    return patched


def _keep_loosely(patcher, *_) -> None:
    """Let what the host will put back not hold the model either."""
    backup = patcher.object_patches_backup
    if PATCHED in backup:
        backup[PATCHED] = _loose(backup[PATCHED])


def _loose(function: Callable) -> Callable:
    """A method of the model, without holding it: a model that holds itself lives until a full collection."""
    if not inspect.ismethod(function) or isinstance(function.__self__, weakref.ProxyTypes):
        return function
    return MethodType(function.__func__, weakref.proxy(function.__self__))


def _term_of_prompt(architecture: Architecture, method: str, embedder, base, *, device, noise, **prompt) -> Tensor:
    """Compute the term of one prompt of a run, [1,D] or [B,D]; zeros [1,D] where guidance is not asked for."""
    dtype = base.manual_cast_dtype or base.get_dtype()
    _, model_width = architecture.widths(base.diffusion_model)
    if prompt.get(TIMESTEP_KEY) is None:
        return torch.zeros(1, model_width, device=device, dtype=dtype)
    # float32 until after the subtraction: two close prompts would lose their difference in half precision
    pooled_BP, null_BP = (prompt[key].to(device, torch.float32) for key in ("pooled_output", NULL_KEY))
    timestep_B = prompt[TIMESTEP_KEY].to(device)
    _check_hooks(base, architecture)
    time_embed, pooled_embed = architecture.embedders(base.diffusion_model, dtype)
    embedder = None if embedder is None else embedder.to(device)
    term_BD = (
        METHODS[method]
        .term(Ingredients(pooled_BP, null_BP, timestep_B, time_embed, pooled_embed, prompt[GAIN_KEY], embedder))
        .to(dtype)
    )
    if len(noise) % len(term_BD):
        raise ShapeMismatch(
            f"the prompt with its guidance has {len(term_BD)} rows, the latent batch {len(noise)}; "
            f"use a batch of {len(term_BD)} (or a multiple), or one guidance for all"
        )
    return term_BD


def _check_hooks(base, architecture: Architecture) -> None:
    """Refuse LoRAs of prompts that change the embedders: the host merges them later than the term is computed."""
    hooked = getattr(base.current_patcher, "hook_patches", {}).values()
    names = sorted({str(name).removeprefix("diffusion_model.") for patches in hooked for name in patches})
    if found := [name for name in names if architecture.embeds(name)]:
        raise InvalidConfig(
            f"a LoRA hook of a prompt changes {found[0]}, of which the guidance is made for the whole run; load this "
            "LoRA on the model with a LoRA loader instead"
        )


def _note_run(executor, *args, **kwargs):
    """Say once per run what makes it slower than it need be, or unguided."""
    guider = executor.class_obj
    cfg = getattr(guider, "cfg", 1.0)
    if isinstance(cfg, (int, float)) and not math.isclose(cfg, 1.0):
        log.warning(
            "%s: the sampler's cfg is %g; guidance is already part of the prompt, set cfg to 1. "
            "Every step now costs two passes, guided a second time.",
            IN_THE_RUN,
            cfg,
        )
    if not any(TIMESTEP_KEY in cond for conds in getattr(guider, "conds", {}).values() for cond in conds):
        log.warning(
            "%s: no prompt of this run carries guidance; connect the CONDITIONING of TeEFusion Conditioning as well, "
            "not its MODEL alone.",
            IN_THE_RUN,
        )
    return executor(*args, **kwargs)
