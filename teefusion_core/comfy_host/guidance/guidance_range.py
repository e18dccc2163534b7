"""The guidance that a student allows, and the guidance that it needs inside.

Shapes: B rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import CheckpointMismatch, InvalidConfig
from ...files.student_file import StudentInfo
from ...guidance.calibration import ROUNDING, Calibration, typed
from ...guidance.fusion import shown
from ...guidance.methods import GUIDANCE_LORA
from ...guidance.schedule import GuidanceSchedule


def check_guidance(info: StudentInfo, path: Path) -> None:
    """Refuse a file whose calibration or LoRA strength cannot be used.

    Raises:
        CheckpointMismatch: with the name of the file.
    """
    try:
        Calibration.of(info.calibration)
    except ValueError as error:
        raise CheckpointMismatch(
            f"{path.name} has a calibration that cannot be read; it was edited, so use the original"
        ) from error
    if info.method == GUIDANCE_LORA and not info.reference_guidance > 0:
        raise CheckpointMismatch(
            f"{path.name} has no guidance for LoRA strength 1 in its metadata; it was edited, so use the original"
        )


def inner_guidance(w_B: Tensor, student: Mapping) -> Tensor:
    """Return the w [B] that the student needs to guide as its teacher does at w_B; without a calibration w_B itself.

    Args:
        student: metadata of its file; a student without a range accepts any w.
    Raises:
        InvalidConfig: w is outside the trained range, or where the student is weaker or stronger than its teacher.
    """
    curve = Calibration.of(student.get("calibration", ""))
    low, high = _legal(student, curve)
    if bool((wrong_B := outside(w_B, low, high)).any()):
        raise InvalidConfig(
            f"guidance is {shown(w_B[wrong_B])}, but this student allows {typed(low, high)}; choose a value in this "
            "range"
        )
    return w_B if curve is None else curve.inner_of(w_B)


def _legal(student: Mapping, curve: Calibration | None) -> tuple[float, float]:
    """Return the smallest and the largest w: those that were trained, or, calibrated, where it equals its teacher."""
    if curve is not None:
        return curve.wanted[0], curve.wanted[-1]
    return float(student.get("guidance_min", 0.0)), float(student.get("guidance_max", math.inf))


def check_schedule(schedule: GuidanceSchedule | None, w_B: Tensor, student: Mapping) -> None:
    """Refuse a schedule that leaves the range of a student anywhere, before the run.

    Raises:
        InvalidConfig: with the place in sampling.
    """
    if schedule is None:
        return
    if student.get("method") == GUIDANCE_LORA:
        raise InvalidConfig(
            "a guidance schedule is connected, but the strength of a guidance lora is the same in the whole run; "
            "disconnect the schedule, or use a student of method teefusion"
        )
    for place in schedule.extremes():
        try:
            inner_guidance(schedule.at(w_B, place), student)
        except InvalidConfig as error:
            raise InvalidConfig(
                f"at {100 * place:.3g} % of sampling {error}. There the schedule decides: low_guidance of Guidance "
                f"Schedule is {schedule.low:g}"
            ) from error


def guidance_line(w_B: Tensor, student: Mapping, schedule: GuidanceSchedule | None = None) -> str:
    """Return what a user should know about guidance w_B [B] on a student, given the metadata of its file."""
    if "teacher" not in student:
        return ""
    curve = Calibration.of(student.get("calibration", ""))
    low, high = _legal(student, curve)
    steps = f", steps to {student['student_steps']}" if student.get("student_steps") else ""
    over_time = "" if schedule is None else f", {schedule.described()}"
    if curve is None:
        means = f"asks for CFG scale {_few(w_B + 1)}, but this student is not calibrated and may be guided less"
    else:
        scale_B = torch.tensor([round(curve.effective(w), 2) for w in w_B.tolist()])
        means = f"aims at CFG scale {_few(scale_B)}"
    return (
        f"guidance {_few(w_B)}{over_time} {means}. Allowed: {typed(low, high)}. Set the sampler's cfg to 1{steps}. "
        f"Its teacher: {student['teacher']}"
    )


def _few(w_B: Tensor) -> str:
    """Return one or two values, or the ends of more."""
    return shown(w_B) if len(w_B) < 3 else f"{float(w_B.min()):g} to {float(w_B.max()):g}"


def outside(w_B: Tensor, low: float, high: float) -> Tensor:
    """Return which w are outside of a range, but for rounding, bool [B]."""
    return (w_B < low - ROUNDING * abs(low)) | (w_B > high + ROUNDING * abs(high))
