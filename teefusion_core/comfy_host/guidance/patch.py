"""Guidance term on a ComfyUI model patcher.

The conditioning holds plain tensors (null, w). The host calls `extra_conds` once per run, with all weights and LoRAs
loaded; it computes the term from these tensors. An APPLY_MODEL wrapper then adds the term to the output of the pooled
embedder during each forward pass. The term is stored in the run's copy of the conditioning, so no cache can become
outdated. A prompt without guidance in the same run gets a zero term, so that the host can batch both.

Shapes: B batch, P pooled width, D model width.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from types import MethodType

import comfy.conds
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...errors import InvalidConfig, ShapeMismatch, reported_by
from ...guidance.add_to_output import add_to_output
from ...guidance.architectures import PUBLISHED_GUIDANCE, Architecture, architecture_of, family_of
from ...guidance.fusion import OFFICIAL_BF16, common_rows, guidance_rows, guidance_timestep, shown
from ...guidance.methods import GUIDANCE_LORA, TEEFUSION, USE_NULL
from ...guidance.schedule import GuidanceSchedule
from ..notes import tell, warn
from ..prompts.prompt_check import check_finite
from .attachments import STUDENT_KEY, WRAPPER_KEY
from .guidance_range import check_schedule, guidance_line, inner_guidance, outside
from .lora_strength import at_strength, is_guidance_lora
from .run_term import (
    GAIN_KEY,
    LEVELS_KEY,
    NULL_KEY,
    SCHEDULE_KEY,
    TERM_KEY,
    TIMESTEP_KEY,
    RunTerm,
    at_level,
    note_levels,
)  # fmt: skip
from .wiring import note_run

PATCHED = "extra_conds"  # method of the host's model that computes the conds of a prompt
LABEL = "TeEFusion"  # prefix of messages during a run, when no node of ours is executing


def apply_fusion(
    model_patcher, positive, null, guidance, *, guidance_precision: str | None = None, gain: float | None = None,
    schedule: GuidanceSchedule | None = None,
):  # fmt: skip
    """Return a model and a conditioning for guidance in one pass; a guidance LoRA needs a model only.

    Args:
        model_patcher: ComfyUI MODEL; not modified, a clone is returned.
        positive: CONDITIONING, each entry with pooled_output [B,P].
        null: CONDITIONING with one entry, the encoded empty (or negative) prompt.
        guidance: w, a number or one per row of the latent batch.
        guidance_precision: "official bf16" or "exact"; None uses that of the student, else official bf16.
        gain: multiplier of the term; None uses that of the student, else that of the architecture.
        schedule: curve of the guidance over sampling; None keeps it constant. A guidance LoRA takes none.
    Returns:
        (model clone, conditioning); sample them together at cfg 1.
    Raises:
        UnsupportedArchitecture: the model has no embedder of pooled text.
        InvalidConfig: w is outside the trained range, or a prompt has no pooled vector.
        ShapeMismatch: widths or numbers of rows differ.
    """
    student = model_patcher.get_attachment(STUDENT_KEY) or {}
    wanted_B = guidance_rows(guidance)
    w_B = inner_guidance(wanted_B, student)
    check_schedule(schedule, wanted_B, student)
    if line := guidance_line(wanted_B, student, schedule):
        tell(line)
    check_finite(positive, "positive")
    if student.get("method") == GUIDANCE_LORA:
        return at_strength(model_patcher, float(student["reference_guidance"]), w_B, line), list(positive)
    architecture = architecture_of(model_patcher.model.diffusion_model)
    pooled_width, _ = architecture.widths(model_patcher.model.diffusion_model)
    precision = guidance_precision or student.get("guidance_precision", OFFICIAL_BF16)
    scale = float(student.get("guidance_embedding_scale", architecture.guidance_embedding_scale))
    if len(null) != 1:
        raise InvalidConfig(f"null holds {len(null)} prompts; connect one encoded empty prompt")
    check_finite(null, "null")
    null_BP = _pooled_of(null[0], "null", pooled_width)
    used_gain = float(student.get("gain", architecture.gain) if gain is None else gain)
    values = {
        NULL_KEY: null_BP,
        TIMESTEP_KEY: guidance_timestep(w_B, precision=precision, scale=scale),
        GAIN_KEY: used_gain,
    }
    if schedule is not None:
        over_time = {"guidance": wanted_B.tolist(), "precision": precision, "scale": scale}
        values[SCHEDULE_KEY] = {**over_time, "schedule": schedule.json()}
    fused = []
    for context, extras in positive:
        pooled_BP = _pooled_of((context, extras), "positive", pooled_width)
        common_rows(positive=len(pooled_BP), null=len(null_BP), guidance=len(w_B))
        fused.append([context, {**extras, **values}])
    if not fused:
        raise InvalidConfig("positive holds no prompt; connect an encoded prompt")
    if not note_student_as_lora(model_patcher) and not student:
        _note_origin(w_B, used_gain, published=guidance_precision == OFFICIAL_BF16)
    if student.get("method", TEEFUSION) in USE_NULL:
        _note_null(null_BP, [extras["pooled_output"] for _, extras in positive])
    return _patched(model_patcher, architecture), fused


def note_student_as_lora(model_patcher) -> bool:
    """Warn in the running node if a LoRA loader seems to have loaded a student that needs more than its LoRA.

    Every student changes the embedders of time and pooled text, which other LoRAs rarely do.
    """
    family = family_of(model_patcher.model.diffusion_model)
    if family is None or model_patcher.get_attachment(STUDENT_KEY) is not None:
        return False
    changed = [
        str(name).removeprefix("diffusion_model.")
        for name, patches in model_patcher.patches.items()
        if not all(is_guidance_lora(patch[1]) for patch in patches)
    ]
    found = all(any(name.startswith(f"{part}.") for name in changed) for part in (family.time_mlp, family.pooled_embed))
    if found:
        warn(
            "a LoRA on this model changes the embedders, as a student does. A student in a LoRA loader has no "
            "guidance: load it with Load TeEFusion Student"
        )
    return found


def _note_origin(w_B: Tensor, gain: float, *, published: bool) -> None:
    """Say what a model without a student file is taken for; the rounding of w names the published student."""
    if not published:
        warn(
            "guidance means nothing to an ordinary model, and this one was not loaded from a student file. If it is "
            "the published student, set guidance_precision to official bf16 to say so."
        )
        return
    low, high = PUBLISHED_GUIDANCE
    tell(f"read as the published student: w from {low:g} to {high:g}, rounded as in the official code, gain {gain:g}")
    if bool(outside(w_B, low, high).any()):
        warn(f"guidance is {shown(w_B)}, but the published student was trained for w from {low:g} to {high:g}.")


def _note_null(null_BP: Tensor, positives: list[Tensor]) -> None:
    """Report a wrong null, which the image would not show."""
    if not null_BP.any():
        warn("connect an encoded empty prompt to null: it is all zeros.")
    if any(torch.equal(pooled_BP.to(null_BP), null_BP) for pooled_BP in positives):
        warn(
            "connect an encoded empty prompt to null: it is the prompt itself, so guidance is zero. If the prompt is "
            "empty on purpose, nothing is wrong."
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
    """Return a clone that applies the term of its conditioning; a model that already does is only cloned."""
    patched = model_patcher.clone()
    if patched.get_wrappers(WrappersMP.APPLY_MODEL, WRAPPER_KEY):
        return patched
    compute_term = RunTerm(patched, architecture)

    def apply_model(executor, *args, **kwargs):
        term_BD, levels_BK = kwargs.pop(TERM_KEY, None), kwargs.pop(LEVELS_KEY, None)
        if term_BD is None:
            return executor(*args, **kwargs)
        if levels_BK is not None:
            _, sigma_B = args[:2]
            term_BD = at_level(term_BD, levels_BK, sigma_B)
        with add_to_output(executor.class_obj.diffusion_model, architecture.pooled_embed, term_BD):
            return executor(*args, **kwargs)

    patched.add_object_patch(PATCHED, ExtraConds(patched.model, patched.get_model_object(PATCHED), compute_term))
    patched.add_callback_with_key(CallbacksMP.ON_CLONE, WRAPPER_KEY, _follow_model)
    patched.add_callback_with_key(CallbacksMP.ON_PRE_RUN, WRAPPER_KEY, weaken_backup)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, apply_model)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, _note_run)
    return patched


class ExtraConds:
    """The host's `extra_conds` of one model, with the term."""

    def __init__(self, base, original: Callable, compute_term: Callable):
        """Wrap a function, which may be the method of the model or the patch of another node.

        Args:
            base: the host's model. The object patches of a MODEL may outlive it, so no reference keeps it alive.
            original: the function to call first.
            compute_term: (base, **prompt) -> conds by name.
        """
        self.base, self.original, self.compute_term = weakref.ref(base), _weakly_bound(original, base), compute_term

    def __call__(self, **kwargs) -> dict:
        """Return the conds of a prompt for a run."""
        out = self.original(**kwargs)
        with reported_by(LABEL):
            terms = self.compute_term(self.base(), **kwargs)
            out |= {name: comfy.conds.CONDRegular(term) for name, term in terms.items()}
        return out

    def of(self, base) -> ExtraConds:
        """Return the same for another copy of the model."""
        original = self.original
        if inspect.ismethod(original) and isinstance(original.__self__, weakref.ProxyTypes):
            original = MethodType(original.__func__, base)
        return ExtraConds(base, original, self.compute_term)


def _follow_model(patcher, clone) -> None:
    """Switch to the new copy of the model that the host loads for torch.compile and LoRA hooks (dynamic VRAM)."""
    if clone.model is patcher.model:
        return
    extra_conds = clone.object_patches[PATCHED]
    if not isinstance(extra_conds, ExtraConds):
        raise InvalidConfig(
            f"{LABEL}: another node replaces {PATCHED} of the model behind TeEFusion Conditioning, and torch.compile "
            "or a LoRA hook loads a new copy of the model; put TeEFusion Conditioning behind that node"
        )
    clone.add_object_patch(PATCHED, extra_conds.of(clone.model))


def weaken_backup(patcher, *_) -> None:
    """Bind the methods of the model that the host will restore weakly as well."""
    backup = patcher.object_patches_backup
    for name, original in backup.items():
        backup[name] = _weakly_bound(original, patcher.model)


def _weakly_bound(function: Callable, base) -> Callable:
    """Bind a method of the model by a weak proxy: a cycle would keep the model until a full garbage collection."""
    if not inspect.ismethod(function) or function.__self__ is not base:
        return function
    return MethodType(function.__func__, weakref.proxy(base))


def _note_run(executor, *args, **kwargs):
    """Warn once per run of wrong settings of the sampler, and if no prompt carries guidance."""
    guider = executor.class_obj
    note_run(guider, *args, **kwargs)
    note_levels(getattr(guider, "conds", {}), kwargs["sigmas"] if "sigmas" in kwargs else args[3])
    if not any(TIMESTEP_KEY in cond for conds in getattr(guider, "conds", {}).values() for cond in conds):
        warn("connect the guidance node's CONDITIONING to positive: no prompt of this run carries guidance.")
    return executor(*args, **kwargs)
