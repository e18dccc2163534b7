"""Prompts with sizes that tests of the trainer share."""

from .reflection_parts import OTHER, PROMPT

LATENT, STEPS, ROWS = (16, 8, 8), 4, 3
TEXTS = [PROMPT, OTHER, "two tiny cyan triangles on black", "a large yellow square on gray"]
NEGATIVE = "a purple ring on white"
