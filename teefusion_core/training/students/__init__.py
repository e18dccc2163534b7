"""The kinds of students: a file with a row for each way that guidance enters."""

from collections.abc import Callable

from ...guidance.methods import DICE, METHODS
from .fused import FusedStudent
from .sharpened import SharpenedStudent
from .student import Student

STUDENTS: dict[str, Callable[..., Student]] = {**dict.fromkeys(METHODS, FusedStudent), DICE: SharpenedStudent}
"""How to make the student of a method from (network, positives, nulls, settings, device=, dtype=)."""
