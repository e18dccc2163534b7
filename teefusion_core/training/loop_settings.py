"""The settings of the training loop, validated when they are made."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ..errors import InvalidConfig
from .setting_rules import Rule, check, choice, number, whole

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 + 0.5 * math.cos(math.pi * progress),
}
"""Name -> factor on the learning rate by the progress after warm-up: 0 at its first step, just below 1 at its last."""


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the optimizer, the schedule and the checkpoints.

    Attributes:
        steps: number of optimizer steps of the whole run.
        learning_rate: peak learning rate.
        batch_size: examples per forward pass in each process; a step uses batch_size * gradient_accumulation *
            (number of processes) examples.
        gradient_accumulation: forward passes per step.
        max_grad_norm: limit of the L2 norm of the gradient over all weights; 0 does not clip.
        warmup_steps: steps over which the learning rate rises from 0.
        learning_rate_schedule: learning rate after the warm-up, a name in SCHEDULES.
        weight_decay, beta1, beta2: parameters of AdamW.
        ema_decay: decay of the moving average of the weights; 0 keeps no average. It is lower in the first steps.
        save_every: steps between checkpoints; 0 writes them at the start and at the end only.
    """

    steps: int
    learning_rate: float
    batch_size: int
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    learning_rate_schedule: str = "constant"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    ema_decay: float = 0.99
    save_every: int = 100

    def __post_init__(self):
        check(asdict(self), _LEGAL)
        if self.warmup_steps >= self.steps:
            raise InvalidConfig(f"warmup_steps is {self.warmup_steps} of {self.steps} steps; use fewer than steps")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: number of the step, from 0 to steps - 1.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * SCHEDULES[self.learning_rate_schedule](progress)

    def ema_decay_at(self, step: int) -> float:
        """Return the decay of the moving average at a step, counted from 0.

        At first it is (1 + step) / (10 + step); otherwise the initial weights would stay in the average for long.
        """
        return min(self.ema_decay, (1 + step) / (10 + step))


_LEGAL: dict[str, Rule] = {
    "steps": whole(1),
    "learning_rate": number(lambda value: value > 0, "a finite number above 0"),
    "batch_size": whole(1),
    "gradient_accumulation": whole(1),
    "max_grad_norm": number(lambda value: value >= 0, "a finite number, 0 or more (0 does not clip)"),
    "warmup_steps": whole(0),
    "learning_rate_schedule": choice(SCHEDULES),
    "weight_decay": number(lambda value: value >= 0, "a finite number, 0 or more"),
    "beta1": number(lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "beta2": number(lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "ema_decay": number(lambda value: 0 <= value < 1, "a number from 0 (no average) to below 1"),
    "save_every": whole(0),
}
