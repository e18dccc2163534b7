"""The settings of a distillation, validated when they are made."""

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InvalidConfig
from ..guidance.architectures import PUBLISHED_TIMESTEP_SCALE
from ..guidance.fusion import EXACT, GUIDANCE_PRECISIONS
from ..guidance.methods import DICE, GUIDANCE_LORA, TAUGHT, TEEFUSION, USE_NULL
from .adapters import LORA_LAYERS, TRAINABLE
from .setting_rules import Rule, check, choice, flag, number, text, whole
from .targets import JITTERED, SECANT, TARGETS, TIMES


@dataclass(frozen=True)
class DistillSettings:
    """What a student learns, under the names that config files and nodes use.

    Attributes:
        guidance_min, guidance_max: range of w, the guidance of the paper, drawn uniformly (paper: 2 to 14), together
            with the margin.
        teacher_steps, scheduler: the teacher's schedule.
        student_steps: number of steps of the student, if it has fewer; they are those of the scheduler, and the teacher
            takes teacher_steps / student_steps steps in each. 0 means as many as the teacher.
        timestep_sampling: noise levels on this schedule, a name in TIMES.
        target: velocity to learn, a name in TARGETS.
        guidance_error_weight: weight of the error along the guidance, see `replay_loss`; 0 becomes the default of the
            method, see `default_error_weight`.
        images_per_trajectory: number of images that the teacher makes at once, all with the same w.
        cache_size: number of the latest trajectories that examples are drawn from.
        reuse: average number of uses of an example; 0 makes all trajectories before the first step.
        negative_share: share of the trajectories in which a negative prompt replaces the empty prompt.
        trainable: what is trained, a name in TRAINABLE.
        rank: rank of the LoRA.
        initial_gain_ratio: size of the guidance term at the start, as a share of the modulation vector; 0 uses the
            published gain.
        guidance_embedding_scale, guidance_precision: factor on w and rounding of w in the guidance term.
        method: how guidance enters the student, a name in TAUGHT. With dice there is no guidance term, the model
            is not trained, and `guidance_min` must equal `guidance_max`.
        gradient_checkpointing: uses less memory and takes a third more time.
        mixed_precision: compute a base in float32 in bfloat16 where the device can; the trained weights stay float32.
        run_seed: seed of the trajectories, of the examples drawn from them and of the initial LoRA.
        guidance_margin: how far beyond its range w is drawn: above guidance_max a share of the range, below
            guidance_min a share of it. Without it a student that guides too weakly cannot be calibrated at the ends.
            A sharpener has no range and ignores it.
    """

    guidance_min: float = 1.0
    guidance_max: float = 8.0
    teacher_steps: int = 20
    scheduler: str = "normal"
    timestep_sampling: str = JITTERED
    target: str = SECANT
    guidance_error_weight: float = 0.0
    images_per_trajectory: int = 8
    cache_size: int = 16
    reuse: float = 1.0
    negative_share: float = 0.0
    trainable: str = "lora"
    rank: int = 16
    initial_gain_ratio: float = 0.0
    guidance_embedding_scale: float = PUBLISHED_TIMESTEP_SCALE
    guidance_precision: str = EXACT
    method: str = TEEFUSION
    gradient_checkpointing: bool = False
    run_seed: int = 0
    guidance_margin: float = 0.25
    student_steps: int = 0
    mixed_precision: bool = True

    def __post_init__(self):
        check(asdict(self), _LEGAL)
        if not self.guidance_error_weight:
            object.__setattr__(self, "guidance_error_weight", default_error_weight(self.method))
        if self.method == DICE:  # all examples must have the one guidance that alpha 1 stands for
            object.__setattr__(self, "guidance_margin", 0.0)
        if self.student_steps and self.teacher_steps % self.student_steps:
            raise InvalidConfig(
                f"teacher_steps is {self.teacher_steps} and student_steps is {self.student_steps}; set teacher_steps "
                f"to a multiple of student_steps, such as {4 * self.student_steps}"
            )
        if self.method == DICE and self.guidance_min != self.guidance_max:
            raise InvalidConfig(
                f"guidance_min is {self.guidance_min} and guidance_max is {self.guidance_max}; a sharpener "
                "learns a single guidance, so set both to the same number"
            )
        if self.method == DICE and self.student_steps:
            raise InvalidConfig(
                f"student_steps is {self.student_steps}, but a sharpener changes prompts only, so its model needs "
                "as many steps as before; set it to 0"
            )
        if self.method not in (*USE_NULL, DICE) and self.negative_share:
            raise InvalidConfig(
                f"negative_share is {self.negative_share:g}, but a student of method {self.method} learns no negative "
                "prompts, because its network never sees them; set it to 0, or train with method teefusion split"
            )
        if self.method == GUIDANCE_LORA and self.trainable not in LORA_LAYERS:
            raise InvalidConfig(
                f"trainable is {self.trainable}, but the guidance of a guidance lora is the strength of a LoRA; choose "
                f"{' or '.join(LORA_LAYERS)}"
            )
        if self.method != DICE and not self.guidance_min < self.guidance_max:
            raise InvalidConfig(
                f"guidance_min is {self.guidance_min}, guidance_max is {self.guidance_max}; use a larger guidance_max"
            )

    @property
    def steps_learned(self) -> int:
        """Number of steps that the student learns to take."""
        return self.student_steps or self.teacher_steps

    @property
    def schedule_learned(self) -> dict[str, Any]:
        """The schedule that the student depends on, as metadata of its file; a student of few steps has one."""
        return {"student_steps": self.student_steps, "scheduler": self.scheduler if self.student_steps else ""}

    @property
    def guidance_shown(self) -> tuple[float, float, float]:
        """The smallest, the middle and the largest guidance."""
        return self.guidance_min, (self.guidance_min + self.guidance_max) / 2, self.guidance_max

    @property
    def drawn_guidance(self) -> tuple[float, float]:
        """The smallest and the largest w that is drawn in training, with the margin."""
        beyond = self.guidance_margin * (self.guidance_max - self.guidance_min)
        # below, a share of w itself: near 0 the loss, which is relative to the guidance, would be all noise
        return self.guidance_min * (1 - self.guidance_margin), self.guidance_max + beyond


OF_THE_STUDENT = frozenset((
    "guidance_error_weight", "cache_size", "reuse", "trainable", "rank", "initial_gain_ratio",
    "guidance_embedding_scale", "guidance_precision", "method", "gradient_checkpointing",
))  # fmt: skip
"""Settings that do not change any trajectory."""


def default_error_weight(method: str) -> float:
    """Return the weight of the error along the guidance that suits a method.

    A sharpener reaches a part of the guidance only. If it is pushed to the whole length, it gets there in wrong
    directions: tokens of the demo SD3 that were optimised so gave worse images than without guidance.
    """
    return 1.0 if method == DICE else 4.0


_LEGAL: dict[str, Rule] = {
    "guidance_min": number(lambda w: w >= 0, "a number, 0 or more"),
    "guidance_max": number(lambda w: w > 0, "a number above 0"),
    "teacher_steps": whole(1),
    "scheduler": text(),
    "timestep_sampling": choice(TIMES),
    "target": choice(TARGETS),
    "guidance_error_weight": number(
        lambda weight: weight >= 0,
        "a number, 0 or more; 1 gives the plain mean square, and 0 the default of the method",
    ),
    "images_per_trajectory": whole(1),
    "cache_size": whole(1),
    "reuse": number(lambda times: times >= 0, "a number, 0 or more; 0 makes all trajectories before the first step"),
    "negative_share": number(lambda share: 0 <= share <= 1, "a share from 0 to 1"),
    "trainable": choice(TRAINABLE),
    "rank": whole(1),
    "initial_gain_ratio": number(lambda ratio: ratio >= 0, "a number, 0 or more; 0 uses the published gain"),
    "guidance_embedding_scale": number(lambda scale: scale > 0, "a number above 0; the published student uses 1000"),
    "guidance_precision": choice(GUIDANCE_PRECISIONS),
    "method": choice(TAUGHT),
    "gradient_checkpointing": flag(),
    "run_seed": whole(0, 2**64 - 1),
    "guidance_margin": number(lambda share: 0 <= share <= 1, "a share from 0 to 1"),
    "student_steps": whole(0),
    "mixed_precision": flag(),
}
