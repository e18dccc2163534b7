"""What a teacher does on its way from noise to pictures, as training data.

Shapes: B rows, C H W latent, N = C*H*W, S steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import InvalidConfig
from ..guidance.flow import Velocity, secant

SCHEDULE_LEVELS, JITTERED, UNIFORM = "schedule", "jittered", "uniform"
TIMES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    SCHEDULE_LEVELS: lambda grid_S, place_S: grid_S,
    JITTERED: lambda grid_S, place_S: _read(grid_S, place_S),
    UNIFORM: lambda grid_S, place_S: _read(torch.linspace(float(grid_S[0]), float(grid_S[-1]), len(grid_S)), place_S),
}
"""Where the teacher steps.

grid: on the levels of the schedule, for students that always sample with it. between: anywhere between them, in steps
as long as those of the schedule, which is uniform before its shift. even: anywhere, in steps of one length, which is
uniform after the shift.
"""

SECANT, REEVALUATED, CLEAN = "secant", "re-evaluated", "clean"
TARGETS: dict[str, Callable[[list[Tensor], list[Tensor], Tensor, int], Tensor]] = {
    SECANT: lambda x, last, sigma_S, k: secant(x[k], x[k + 1], sigma_S[k], sigma_S[k + 1]),
    REEVALUATED: lambda x, last, sigma_S, k: last[k],
    CLEAN: lambda x, last, sigma_S, k: (x[k] - x[-1]) / sigma_S[k].to(x[k]),
}
"""Which velocity the student learns, from states [B,C,H,W], last predictions (as velocity), levels [S+1], the step.

secant: where the teacher's step lands, so that an Euler student lands there. re-evaluated: what the teacher predicts
last in its step, Algorithm 1 of the paper read literally; the weak step's share is lost on the student. clean: the
straight line to the teacher's picture, for students of very few steps.
"""


@dataclass(frozen=True)
class Trajectory:
    """One way of the teacher, or a step each from many noised pictures.

    Attributes:
        x_SBCHW: where it was.
        sigma_S: at which noise levels.
        target_SBCHW: the velocity to learn.
        guidance_SBCHW: what of it guidance adds to the unguided velocity.
        w: guidance of the paper, a scalar tensor.
        prompt_SB, null_SB: of which prompt, guided away from what; numbers of the caller.
    """

    x_SBCHW: Tensor
    sigma_S: Tensor
    target_SBCHW: Tensor
    guidance_SBCHW: Tensor
    w: Tensor
    prompt_SB: Tensor
    null_SB: Tensor


@dataclass(frozen=True)
class Example:
    """Rows drawn from trajectories.

    Attributes:
        x_BCHW, sigma_B, w_B: where, at which guidance.
        prompt_B, null_B: of which prompt, guided away from what; numbers of the caller.
        target_BCHW: the velocity to learn.
        guidance_BCHW: what of it guidance adds to the unguided velocity.
        weight_B: how much the row counts.
    """

    x_BCHW: Tensor
    sigma_B: Tensor
    w_B: Tensor
    prompt_B: Tensor
    null_B: Tensor
    target_BCHW: Tensor
    guidance_BCHW: Tensor
    weight_B: Tensor

    def to(self, device: torch.device) -> Example:
        """Move all of it."""
        return Example(**{name: column.to(device) for name, column in vars(self).items()})


def levels(grid_S: Tensor, time: str, generator: torch.Generator) -> Tensor:
    """Noise levels [S+1] of a trajectory; the ends are those of the grid.

    Args:
        grid_S: schedule [S+1], decreasing.
        time: a name in TIMES.
        generator: on the CPU.
    Raises:
        InvalidConfig: no such name.
    """
    if time not in TIMES:
        raise InvalidConfig(f"timestep_sampling is {time!r}; choose one of {', '.join(TIMES)}")
    place_S = torch.arange(len(grid_S), dtype=torch.float32)
    place_S[1:-1] += torch.rand((), generator=generator) - 0.5
    return TIMES[time](grid_S.float().cpu(), place_S)


def target_of(target: str, states: list[Tensor], last: list[Tensor], sigma_S: Tensor, step: int) -> Tensor:
    """The velocity to learn in a step, [B,C,H,W].

    Raises:
        InvalidConfig: no such target.
    """
    if target not in TARGETS:
        raise InvalidConfig(f"target is {target!r}; choose one of {', '.join(TARGETS)}")
    return TARGETS[target](states, last, sigma_S, step)


def step_weights(trajectory: Trajectory) -> Tensor:
    """How much each step of a trajectory shall count, [S]: one over the mean square of what guidance adds in it.

    That is fifty times more in the first step than in the last, a hundred times more at w 5 than at w 0.5: late steps
    with low guidance would go unlearned otherwise. A student without guidance then has loss 1, one that equals its
    teacher 0.
    """
    return 1 / trajectory.guidance_SBCHW.float().square().flatten(1).mean(1).clamp(min=1e-12)


def replay_loss(student: Velocity, example: Example, guidance_error_weight: float = 1.0) -> Tensor:
    """Weighted mean squared distance of the student's velocity from the teacher's.

    Args:
        student: velocity at the example's w and prompts, differentiable.
        guidance_error_weight: weight of the error along the guidance. With 1, the plain mean square, a student that
            cannot predict the direction of the guidance exactly shrinks it: users then get less guidance than they set.
    Returns:
        Scalar loss.
    """
    error_BN = (student(example.x_BCHW, example.sigma_B) - example.target_BCHW).flatten(1)
    direction_BN = normalize(example.guidance_BCHW.flatten(1), dim=1)
    along_B = (error_BN * direction_BN).sum(1).square() / error_BN.shape[1]
    return (example.weight_B * (error_BN.square().mean(1) + (guidance_error_weight - 1) * along_B)).mean()


def _read(grid_S: Tensor, place_S: Tensor) -> Tensor:
    """Values of a table between its entries."""
    low = place_S.long().clamp(max=len(grid_S) - 2)
    return torch.lerp(grid_S[low], grid_S[low + 1], place_S - low)
