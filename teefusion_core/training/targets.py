"""The trajectories of a teacher as training data.

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
    JITTERED: lambda grid_S, place_S: _lerp(grid_S, place_S),
    UNIFORM: lambda grid_S, place_S: _lerp(torch.linspace(float(grid_S[0]), float(grid_S[-1]), len(grid_S)), place_S),
}
"""Value of `timestep_sampling` -> noise levels of the teacher, from its schedule and randomly shifted places on it.

schedule: the levels of the schedule, for students that always sample with it. jittered: levels between them, in steps
as long as those of the schedule, which is uniform before its shift. uniform: steps of equal length, which is uniform
after the shift.
"""

SMALL_W = 0.5
"""The w below which the error of a student may be larger in relation to its guidance, see `step_weights`."""
LITTLE = 0.05
"""The least mean square of the guidance of a step, as a share of that of its trajectory, see `step_weights`."""
SECANT, REEVALUATED, CLEAN = "secant", "re-evaluated", "clean"
TARGETS: dict[str, Callable[[list[Tensor], list[Tensor], Tensor, int], Tensor]] = {
    SECANT: lambda x, last, sigma_S, k: secant(x[k], x[k + 1], sigma_S[k], sigma_S[k + 1]),
    REEVALUATED: lambda x, last, sigma_S, k: last[k],
    CLEAN: lambda x, last, sigma_S, k: (x[k] - x[-1]) / sigma_S[k].to(x[k]),
}
"""Value of `target` -> velocity to learn, from states [B,C,H,W], last predicted velocities, levels [S+1] and the step.

secant: leads an Euler student to where the teacher's step ends. re-evaluated: the last prediction of the teacher in its
step, as in Algorithm 1 of the paper; the student then misses the effect of the weak step. clean: the straight line to
the teacher's image, for students of very few steps.
"""


@dataclass(frozen=True)
class Trajectory:
    """One trajectory of the teacher, or one step from each of many noised images.

    Attributes:
        x_SBCHW: noised latents.
        sigma_S: their noise levels.
        target_SBCHW: the velocity to learn.
        guidance_SBCHW: the target minus the unguided velocity.
        w: guidance of the paper, a scalar tensor.
        prompt_SB, null_SB: numbers of the prompts, and of those that guidance leads away from.
    """

    x_SBCHW: Tensor
    sigma_S: Tensor
    target_SBCHW: Tensor
    guidance_SBCHW: Tensor
    w: Tensor
    prompt_SB: Tensor
    null_SB: Tensor

    def example(self, step: int) -> Example:
        """Return the rows of one step."""
        rows = self.x_SBCHW.shape[1]
        return Example(
            x_BCHW=self.x_SBCHW[step], sigma_B=self.sigma_S[step].expand(rows), w_B=self.w.expand(rows),
            prompt_B=self.prompt_SB[step], null_B=self.null_SB[step], target_BCHW=self.target_SBCHW[step],
            guidance_BCHW=self.guidance_SBCHW[step], weight_B=step_weights(self)[step].expand(rows),
        )  # fmt: skip


@dataclass(frozen=True)
class Example:
    """Rows drawn from trajectories.

    Attributes:
        x_BCHW, sigma_B, w_B: noised latents, their noise levels and guidance.
        prompt_B, null_B: numbers of the prompts, and of those that guidance leads away from.
        target_BCHW: the velocity to learn.
        guidance_BCHW: the target minus the unguided velocity.
        weight_B: weight of the row in the loss.
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
        """Move all tensors to a device."""
        return Example(**{name: column.to(device) for name, column in vars(self).items()})


def levels(grid_S: Tensor, time: str, generator: torch.Generator) -> Tensor:
    """Return the noise levels [S+1] of a trajectory; the first and the last are those of the grid.

    Args:
        grid_S: schedule [S+1], decreasing.
        time: a name in TIMES.
        generator: a generator on the CPU.
    Raises:
        InvalidConfig: time is not in TIMES.
    """
    if time not in TIMES:
        raise InvalidConfig(f"timestep_sampling is {time!r}; choose one of {', '.join(TIMES)}")
    place_S = torch.arange(len(grid_S), dtype=torch.float32)
    place_S[1:-1] += torch.rand((), generator=generator) - 0.5
    return TIMES[time](grid_S.float().cpu(), place_S)


def subdivided(sigma_S: Tensor, parts: int) -> Tensor:
    """Divide each step of a schedule evenly.

    Args:
        sigma_S: S+1 noise levels.
        parts: number of steps in each of the S.
    Returns:
        S * parts + 1 noise levels; every `parts`-th is one of the schedule.
    """
    steps = len(sigma_S) - 1
    return _lerp(sigma_S, torch.arange(steps * parts + 1) / parts)


def target_of(target: str, states: list[Tensor], last: list[Tensor], sigma_S: Tensor, step: int) -> Tensor:
    """Return the velocity to learn in a step, [B,C,H,W].

    Raises:
        InvalidConfig: target is not in TARGETS.
    """
    if target not in TARGETS:
        raise InvalidConfig(f"target is {target!r}; choose one of {', '.join(TARGETS)}")
    return TARGETS[target](states, last, sigma_S, step)


def step_weights(trajectory: Trajectory) -> Tensor:
    """Return the loss weight of each step of a trajectory, [S]: one over the mean square of its guidance.

    The mean square is fifty times larger in the first step than in the last, and a hundred times larger at w 5 than at
    w 0.5; without the weights, late steps with low guidance would not be learned. With them, the loss of a student
    without guidance is 1, and that of a student that equals its teacher is 0. Below w = SMALL_W the weight is that of
    CFG at SMALL_W: the guidance of CFG is proportional to w, so at w = 0 no error would be small enough. Steps with
    hardly any guidance, such as those outside of a teacher's interval, are weighted as if they had a little.
    """
    mean_S = trajectory.guidance_SBCHW.float().square().flatten(1).mean(1)
    mean_S = mean_S.clamp(min=max(LITTLE * float(mean_S.mean()), 1e-12))
    return (trajectory.w.float() / SMALL_W).square().clamp(max=1) / mean_S


def replay_loss(student: Velocity, example: Example, guidance_error_weight: float = 1.0) -> Tensor:
    """Return the weighted mean squared error of the student's velocity.

    Args:
        student: velocity at the example's w and prompts, differentiable.
        guidance_error_weight: weight of the error along the guidance. With 1, the plain mean square, a student that
            cannot predict the direction of the guidance exactly learns less guidance than the user sets.
    Returns:
        Scalar loss.
    """
    error_BN = (student(example.x_BCHW, example.sigma_B) - example.target_BCHW).flatten(1)
    direction_BN = normalize(example.guidance_BCHW.flatten(1), dim=1)
    along_B = (error_BN * direction_BN).sum(1).square() / error_BN.shape[1]
    return (example.weight_B * (error_BN.square().mean(1) + (guidance_error_weight - 1) * along_B)).mean()


def _lerp(grid_S: Tensor, place_S: Tensor) -> Tensor:
    """Interpolate a table between its entries."""
    low = place_S.long().clamp(max=len(grid_S) - 2)
    return torch.lerp(grid_S[low], grid_S[low + 1], place_S - low)
