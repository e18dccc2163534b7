"""What tests of the trainer share."""

import torch

from teefusion_core.training.targets import Example

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
    rows = trajectory.x_SBCHW.shape[1]
    return Example(
        x_BCHW=trajectory.x_SBCHW[step], sigma_B=trajectory.sigma_S[step].expand(rows), w_B=trajectory.w.expand(rows),
        prompt_B=trajectory.prompt_SB[step], null_B=trajectory.null_SB[step], target_BCHW=trajectory.target_SBCHW[step],
        guidance_BCHW=trajectory.guidance_SBCHW[step], weight_B=torch.ones(rows),
    )  # fmt: skip
