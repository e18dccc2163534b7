"""Measurement of the calibration of a student, on trajectories that training did not use.

Shapes: B rows, C H W latent, S steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor

from ...guidance.calibration import Calibration, Measured, calibrated, ends_between
from ...guidance.cfg import effective_guidance
from ...training.targets import Trajectory
from ..notes import Wait
from .distillation import Distillation

POINTS, FEWEST, STATES = 5, 2, 4
"""Number of w at which teacher and student are compared, number of them that the student must reach, and number of
states of each trajectory at which they are compared."""


@torch.no_grad()
def calibrate(distil: Distillation, images: int) -> tuple[Calibration | None, list[Measured]]:
    """Compare the student with its teacher; the update must be applied.

    Args:
        distil: teacher and student.
        images: number of images per w, 1 or more.
    Returns:
        The calibration, or None if the student does not reach its teacher at two of the w: a student that allows
        hardly any w would be of less use than one that guides too weakly. And what was measured at each w.
    """
    settings = distil.settings
    low, high = settings.drawn_guidance
    wanted = torch.linspace(settings.guidance_min, settings.guidance_max, POINTS).tolist()
    tried = [low, *wanted, high]
    states: dict[float, list[_State]] = {}
    wait = Wait("calibration: comparing student and teacher at w", POINTS)

    def point(w: float) -> Measured:
        wait.next()
        states[w] = _states(distil, images, w)
        own = sorted({*tried, w})
        return Measured(w, _mean(_teacher(state) for state in states[w]), own, [student(w, at) for at in own])

    def student(w: float, at: float) -> float:
        return _mean(_student(distil, state, at) for state in states[w])

    points = [point(w) for w in wanted]
    if sum(one.spare >= 0 for one in points) < FEWEST:
        return None, points
    points += [point(w) for w in ends_between(points)]
    points.sort(key=lambda one: one.w)
    return calibrated(points, lambda one, w: student(one.w, w)), points


@dataclass(frozen=True)
class _State:
    """States of the teacher at one noise level, with the predictions of the base with and without the prompt."""

    x_BCHW: Tensor
    sigma_B: Tensor
    prompts: list[int]
    teacher_BCHW: Tensor
    cond_BCHW: Tensor
    uncond_BCHW: Tensor

    def effective(self, velocity_BCHW: Tensor) -> Tensor:
        """Return the effective guidance [B] of a velocity."""
        return effective_guidance(velocity_BCHW, self.cond_BCHW, self.uncond_BCHW)


def _states(distil: Distillation, images: int, w: float) -> list[_State]:
    """Return states of new trajectories of the teacher at w."""
    found = []
    most = distil.settings.images_per_trajectory
    for number, first in enumerate(range(0, images, most)):
        trajectory = distil.trajectory_beside(w, min(most, images - first), number, STATES)
        found += [_state(distil, trajectory, step) for step in range(len(trajectory.sigma_S))]
    return found


def _state(distil: Distillation, trajectory: Trajectory, step: int) -> _State:
    comfy.model_management.throw_exception_if_processing_interrupted()
    device = distil.network.device
    x, teacher, guidance = (
        part[step].to(device) for part in (trajectory.x_SBCHW, trajectory.target_SBCHW, trajectory.guidance_SBCHW)
    )
    sigma_B = trajectory.sigma_S[step].to(x).expand(len(x))
    with distil.student.update.disabled():
        uncond = distil.network.velocity(x, sigma_B, distil.nulls.batch([0] * len(x)))
    return _State(x, sigma_B, trajectory.prompt_SB[step].tolist(), teacher, teacher - guidance, uncond)


def _teacher(state: _State) -> Tensor:
    return state.effective(state.teacher_BCHW)


def _student(distil: Distillation, state: _State, w: float) -> Tensor:
    comfy.model_management.throw_exception_if_processing_interrupted()
    w_B = torch.full((len(state.prompts),), w, device=state.x_BCHW.device)
    velocity = distil.velocity(state.prompts, [0] * len(state.prompts), w_B)
    return state.effective(velocity(state.x_BCHW, state.sigma_B))


def _mean(values_B: Iterable[Tensor]) -> float:
    """Return the mean over all rows that have an effective guidance; NaN if none has."""
    return float(torch.cat(list(values_B)).nanmean())
