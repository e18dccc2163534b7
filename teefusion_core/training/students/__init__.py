"""The kinds of students, by the method through which guidance enters."""

from collections.abc import Callable

from ...guidance.methods import DICE, METHODS
from .fused import FusedStudent
from .sharpened import SharpenedStudent
from .student import Student

STUDENTS: dict[str, Callable[..., Student]] = {**dict.fromkeys(METHODS, FusedStudent), DICE: SharpenedStudent}
"""Method -> how to make its student from (network, positives, nulls, settings, device=, dtype=)."""
