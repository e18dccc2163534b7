"""Guidance LoRA on a ComfyUI model patcher: guidance is the strength of the LoRA, which the host merges.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...errors import InvalidConfig
from ...guidance.fusion import shown
from ...guidance.methods import ALPHA_PER_RANK
from ..notes import tell
from .attachments import LORA_KEY, STRENGTH_KEY, WRAPPER_KEY
from .wiring import note_run

DECIMALS = 4
"""Of the strength, so that a LoRA loader at the strength that we report gives the same image."""


def at_strength(model_patcher, reference: float, w_B: Tensor, line: str = ""):
    """Return a clone with the LoRA of the student at the strength w / reference.

    Args:
        model_patcher: MODEL of a student file with a guidance LoRA.
        reference: w at which the strength is 1.
        w_B: the w that the student needs, the same for all rows.
        line: text before the strength, for the user.
    Raises:
        InvalidConfig: several w, or the LoRA is already applied at another strength.
    """
    if bool((w_B != w_B[0]).any()):
        raise InvalidConfig(
            f"guidance is {shown(w_B)}, but a guidance lora has one strength for the whole batch; give one guidance"
        )
    strength, before = round(float(w_B[0]) / reference, DECIMALS), model_patcher.get_attachment(STRENGTH_KEY)
    if before is not None and before != strength:
        raise InvalidConfig(
            f"this model already has its guidance lora at strength {before:g}, so it cannot have {strength:g} too; "
            "connect the MODEL of Load TeEFusion Student instead"
        )
    student = model_patcher.clone()
    if before is None:
        student.set_attachments(STRENGTH_KEY, strength)
        student.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, _note_run)
        if strength:  # at 0 the model stays its base, bit for bit
            student.add_patches(model_patcher.get_attachment(LORA_KEY), strength)
    tell(f"{line}{'. ' * bool(line)}LoRA strength {strength:g}; the empty or negative prompt is not used")
    return student


def is_guidance_lora(patch) -> bool:
    """Return whether a patch of the host has the alpha of a guidance LoRA, whatever loaded it."""
    weights: Sequence[Any] = getattr(patch, "weights", None) or ()  # up, down, alpha and more
    if len(weights) < 3 or not isinstance(weights[2], int | float):
        return False
    return weights[2] == ALPHA_PER_RANK * len(weights[1])


def _note_run(executor, *args, **kwargs):
    note_run(executor.class_obj, *args, **kwargs)
    return executor(*args, **kwargs)
