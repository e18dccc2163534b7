"""The settings of a training run, refused in words where they make no sense."""

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
"""Factor on lr by the progress after warm-up, 0 at its first step, just below 1 at the last."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train; what to train on is the caller's.

    Attributes:
        steps: optimizer steps of the whole run.
        lr: learning rate at its height.
        batch: rows of a forward pass of a process. A step sees batch * accumulation * processes rows.
        accumulation: forward passes per step.
        clip: longest gradient, as L2 norm over all weights; 0 does not clip.
        warmup: steps over which lr rises from 0.
        schedule: how lr goes on after them, a name in SCHEDULES.
        weight_decay, beta1, beta2: of AdamW.
        ema: share of the old in the moving average of the weights; 0 keeps none. The first steps average over less.
        save_every: steps between checkpoints; 0 makes them at the start with the end only.
        seed: of the global random generators; rank is added.
    """

    steps: int
    lr: float
    batch: int
    accumulation: int = 1
    clip: float = 1.0
    warmup: int = 0
    schedule: str = "constant"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    ema: float = 0.99
    save_every: int = 100
    seed: int = 0

    def __post_init__(self):
        check(asdict(self), _LEGAL)
        if self.warmup >= self.steps:
            raise InvalidConfig(f"warmup is {self.warmup} of {self.steps} steps; give fewer than steps")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: counted from 0, below steps.
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * SCHEDULES[self.schedule]((step - self.warmup) / (self.steps - self.warmup))

    def ema_at(self, step: int) -> float:
        """Return the share of the old in the average at a step counted from 0.

        Early it is (1 + step) / (10 + step), or the random start would stay in the average for long.
        """
        return min(self.ema, (1 + step) / (10 + step))


_LEGAL: dict[str, Rule] = {
    "steps": whole(1),
    "lr": number(lambda value: value > 0, "a finite number above 0"),
    "batch": whole(1),
    "accumulation": whole(1),
    "clip": number(lambda value: value >= 0, "a finite number, 0 or more (0 does not clip)"),
    "warmup": whole(0),
    "schedule": choice(SCHEDULES),
    "weight_decay": number(lambda value: value >= 0, "a finite number, 0 or more"),
    "beta1": number(lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "beta2": number(lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "ema": number(lambda value: 0 <= value < 1, "a number from 0 (no average) to below 1"),
    "save_every": whole(0),
    "seed": whole(0, 2**64 - 1),
}
