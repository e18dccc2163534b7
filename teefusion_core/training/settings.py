"""The settings of a distillation, validated when they are made."""

from dataclasses import asdict, dataclass

from ..errors import InvalidConfig
from ..guidance.architectures import PUBLISHED_TIMESTEP_SCALE
from ..guidance.fusion import EXACT, GUIDANCE_PRECISIONS
from ..guidance.methods import DICE, TAUGHT, TEEFUSION
from .adapters import TRAINABLE
from .setting_rules import Rule, check, choice, flag, number, text, whole
from .targets import JITTERED, SECANT, TARGETS, TIMES


@dataclass(frozen=True)
class DistillSettings:
    """What a student is taught, by name as it stands in files and nodes.

    Attributes:
        guidance_min, guidance_max: guidance of the paper is uniform between them (paper: 2 and 14).
        teacher_steps, scheduler: the teacher's schedule.
        timestep_sampling: where on it, a name in TIMES.
        target: velocity to learn, a name in TARGETS.
        guidance_error_weight: how many times the error along the guidance counts, see `replay_loss`.
        images_per_trajectory: pictures that the teacher paints at once, all with one w.
        cache_size: how many of the latest trajectories are drawn from.
        reuse: how often an example serves; 0: all trajectories come first, then serve for all of the training.
        negative_share: share of trajectories that a negative prompt takes the place of the empty one in.
        trainable: what is trained, a name in TRAINABLE.
        rank: of a LoRA.
        initial_gain_ratio: strength of the term at the start, as a share of the modulation vector; 0 takes the
            published gain.
        guidance_embedding_scale, guidance_precision: of the term.
        method: how guidance enters the student, a name in TAUGHT; with dice there is no term, nothing of the model
            is trained, `guidance_min` must equal `guidance_max`.
        gradient_checkpointing: less memory for a third more time.
        run_seed: of trajectories with what is drawn from them, of the LoRA's start.
    """

    guidance_min: float = 1.0
    guidance_max: float = 8.0
    teacher_steps: int = 20
    scheduler: str = "normal"
    timestep_sampling: str = JITTERED
    target: str = SECANT
    guidance_error_weight: float = 4.0
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

    def __post_init__(self):
        check(asdict(self), _LEGAL)
        if self.method == DICE and self.guidance_min != self.guidance_max:
            raise InvalidConfig(
                f"guidance_min is {self.guidance_min}, guidance_max {self.guidance_max}; a sharpener "
                "learns one guidance: give both the same number"
            )
        if self.method != DICE and not self.guidance_min < self.guidance_max:
            raise InvalidConfig(
                f"guidance_min is {self.guidance_min}, guidance_max {self.guidance_max}; give a larger guidance_max"
            )


_LEGAL: dict[str, Rule] = {
    "guidance_min": number(lambda w: w >= 0, "a number, 0 or more"),
    "guidance_max": number(lambda w: w > 0, "a number above guidance_min"),
    "teacher_steps": whole(1),
    "scheduler": text(),
    "timestep_sampling": choice(TIMES),
    "target": choice(TARGETS),
    "guidance_error_weight": number(lambda weight: weight > 0, "a number above 0; 1 is the plain mean square"),
    "images_per_trajectory": whole(1),
    "cache_size": whole(1),
    "reuse": number(lambda times: times >= 0, "a number, 0 or more; 0 makes all trajectories before the first step"),
    "negative_share": number(lambda share: 0 <= share <= 1, "a share from 0 to 1"),
    "trainable": choice(TRAINABLE),
    "rank": whole(1),
    "initial_gain_ratio": number(lambda ratio: ratio >= 0, "a number, 0 or more; 0 takes the published gain"),
    "guidance_embedding_scale": number(lambda scale: scale > 0, "a number above 0; the published student has 1000"),
    "guidance_precision": choice(GUIDANCE_PRECISIONS),
    "method": choice(TAUGHT),
    "gradient_checkpointing": flag(),
    "run_seed": whole(0, 2**64 - 1),
}
