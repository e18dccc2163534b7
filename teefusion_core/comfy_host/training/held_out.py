"""The loss of a student on a trajectory that training does not use.

Shapes: B rows, S steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...training.targets import Example
from ...training.update import exchanged
from ..notes import tell
from .distillation import Distillation

STEPS = 4
"""Number of steps of the trajectory that are compared."""


class HeldOut:
    """Examples at the middle of the range of w, with new noise and the prompts of the training."""

    def __init__(self, distil: Distillation):
        """Prepare nothing: the trajectory is made when it is needed for the first time."""
        self.distil = distil
        self.examples: list[Example] = []

    @torch.no_grad()
    def loss(self, average: Mapping[str, Tensor]) -> float:
        """Return the loss of the student with some weights, on the scale of the training loss.

        Args:
            average: weights by name.
        """
        distil = self.distil
        if not self.examples:
            tell("the teacher makes images to test the student on")
            rows, w = distil.settings.images_per_trajectory, distil.settings.guidance_shown[1]
            trajectory = distil.trajectory_beside(w, rows, 0, STEPS)
            self.examples = [trajectory.example(step) for step in range(len(trajectory.sigma_S))]
        with exchanged(distil.student.update, average):
            return sum(float(distil.loss(example)) for example in self.examples) / len(self.examples)
