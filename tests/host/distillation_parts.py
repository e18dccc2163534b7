"""Prompts with sizes that tests of the trainer share."""

from .reflection_parts import OTHER, PROMPT

LATENT, STEPS, ROWS = (16, 8, 8), 4, 3
TEXTS = [PROMPT, OTHER, "two tiny cyan triangles on black", "a large yellow square on gray"]
NEGATIVE = "a purple ring on white"


def info_of(training, step):
    """Return what the student file of a run says after so many steps."""
    return training.distillation.student.file(training.origin(step), whole_model=training.whole_model).info
