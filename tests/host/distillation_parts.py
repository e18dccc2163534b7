"""What tests of the trainer share."""

import sys
from dataclasses import replace

import torch

from .reflection_parts import OTHER, PROMPT

LATENT, STEPS, ROWS = (16, 8, 8), 4, 3
TEXTS = [PROMPT, OTHER, "two tiny cyan triangles on black", "a large yellow square on gray"]
NEGATIVE = "a purple ring on white"


def shaken(distillation, size=0.02, seed=3):
    """The same with a student that differs from its base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in distillation.student.update.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return distillation


def example_of(trajectory, step=1):
    example = trajectory.example(step)
    return replace(example, weight_B=torch.ones_like(example.weight_B))


def precision_of(pack):
    """Return the module that decides whether a device multiplies in bfloat16."""
    return sys.modules[f"{pack.module.__name__}.teefusion_core.training.mixed_precision"]
