"""The settings of a distillation, refused in words where they make no sense."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidConfig
from ..guidance.architectures import PUBLISHED_TIMESTEP_SCALE
from ..guidance.fusion import EXACT, W_PRECISIONS
from ..guidance.methods import DICE, TAUGHT, TEEFUSION
from .adapters import TRAINABLE
from .targets import BETWEEN, SECANT, TARGETS, TIMES


@dataclass(frozen=True)
class DistillSettings:
    """What a student is taught, by name as it stands in files and nodes.

    Attributes:
        w_min, w_max: guidance of the paper is uniform between them (paper: 2 and 14).
        teacher_steps, scheduler: schedule that the teacher walks on.
        time: where on it, a name in TIMES.
        target: velocity to learn, a name in TARGETS.
        along: how many times the error along the guidance counts, see `replay_loss`.
        walk_rows: pictures that the teacher paints at once, all with one w.
        walks: how many of the latest walks are drawn from.
        uses: how often an example serves; 0: all walks come first, then serve for all of the training.
        negatives: share of walks that a negative prompt takes the place of the empty one in.
        trainable: what is trained, a name in TRAINABLE.
        rank: of a LoRA.
        term_share: strength of the term at the start as a share of the modulation vector; 0 takes the published gain.
        guidance_timestep_scale, w_precision: of the term.
        method: how guidance enters the student, a name in TAUGHT; with dice there is no term, nothing of the model
            is trained, `w_min` must equal `w_max`.
        gradient_checkpointing: less memory for a third more time.
        seed: of walks with what is drawn from them, of the LoRA's start.
    """

    w_min: float = 1.0
    w_max: float = 8.0
    teacher_steps: int = 20
    scheduler: str = "normal"
    time: str = BETWEEN
    target: str = SECANT
    along: float = 4.0
    walk_rows: int = 8
    walks: int = 16
    uses: float = 1.0
    negatives: float = 0.0
    trainable: str = "lora"
    rank: int = 16
    term_share: float = 0.0
    guidance_timestep_scale: float = PUBLISHED_TIMESTEP_SCALE
    w_precision: str = EXACT
    method: str = TEEFUSION
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, (is_legal, legal) in _LEGAL.items():
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value) or not is_legal(value):
                raise InvalidConfig(f"{name} is {value!r}; give {legal}")
        if self.method == DICE and self.w_min != self.w_max:
            raise InvalidConfig(
                f"w_min is {self.w_min}, w_max {self.w_max}; a sharpener learns one guidance, give both the same number"
            )
        if self.method != DICE and not self.w_min < self.w_max:
            raise InvalidConfig(f"w_min is {self.w_min}, w_max {self.w_max}; give a larger w_max")


_LEGAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "w_min": (lambda w: w >= 0, "0 or more"),
    "w_max": (lambda w: w > 0, "a number above w_min"),
    "teacher_steps": (lambda steps: steps >= 1, "1 or more"),
    "time": (lambda name: name in TIMES, f"one of {', '.join(TIMES)}"),
    "target": (lambda name: name in TARGETS, f"one of {', '.join(TARGETS)}"),
    "along": (lambda weight: weight > 0, "a number above 0; 1 is the plain mean square"),
    "walk_rows": (lambda rows: rows >= 1, "1 or more"),
    "walks": (lambda walks: walks >= 1, "1 or more"),
    "uses": (lambda uses: uses >= 0, "0 or more; 0 never makes new walks"),
    "negatives": (lambda share: 0 <= share <= 1, "a share from 0 to 1"),
    "trainable": (lambda name: name in TRAINABLE, f"one of {', '.join(TRAINABLE)}"),
    "rank": (lambda rank: rank >= 1, "1 or more"),
    "term_share": (lambda share: share >= 0, "0 or more; 0 takes the published gain"),
    "guidance_timestep_scale": (lambda scale: scale > 0, "a number above 0, 1000 in the paper's student"),
    "method": (lambda name: name in TAUGHT, f"one of {', '.join(TAUGHT)}"),
    "w_precision": (lambda name: name in W_PRECISIONS, f"one of {', '.join(W_PRECISIONS)}"),
}
