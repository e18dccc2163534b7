"""The kinds of students, by the method through which guidance enters."""

from collections.abc import Callable

from ...guidance.methods import DICE, GUIDANCE_LORA, METHODS
from .fused import FusedStudent
from .guidance_lora import GuidanceLoraStudent
from .sharpened import SharpenedStudent
from .student import Student

STUDENTS: dict[str, Callable[..., Student]] = {
    **dict.fromkeys(METHODS, FusedStudent), GUIDANCE_LORA: GuidanceLoraStudent, DICE: SharpenedStudent,
}  # fmt: skip
"""Method -> how to make its student from (network, positives, nulls, settings, device=, dtype=)."""
