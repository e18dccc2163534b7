"""Distil students of the demo base from its teachers, with the pack's own trainer.

The only data are prompts: the teacher makes the images.
Run: python -m lab.demo_world.distill_student --teacher W2SD --trainable lora --seed 0
"""

import json
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from teefusion_core.guidance.methods import DICE, GUIDANCE_LORA, SPLIT, TAUGHT, TEEFUSION
from teefusion_core.training.loop import StepReport

from .captions import caption
from .host import RUNS, parser_of, use_comfy
from .scenes import BACKGROUNDS, claim_of, sample_picture

TEACHERS = {
    "CFG": {"kind": "cfg"},
    "Z-Sampling": {"kind": "z-sampling"},
    "W2SD": {"kind": "w2sd", "weak_model": "weak", "strong_cfg": 1.0},
}
"""Name -> `[teacher]` section of a config file; the final phase of each is CFG at 1 + w."""
LEARNING_RATE = {"lora": 1e-3, "everything": 5e-4, DICE: 3e-3}
"""What is trained -> learning rate; scripts/bench.py rates compares other rates."""
NEGATIVES = [f"on a {ground} background" for ground in BACKGROUNDS]
NUM_PROMPTS = 4000
STUDENTS = RUNS / "students"


@dataclass(frozen=True)
class Recipe:
    """What makes one student different from another.

    Attributes:
        teacher: a name in TEACHERS.
        trainable: "lora" or "everything"; a sharpener does not change the model.
        method: how guidance enters, a name in TAUGHT.
        seed: seed of prompts, trajectories, noise and weights.
        steps, batch_size, rank, trajectories: size of the training; all trajectories are made before its first step.
        negative_share: share of trajectories with a background as negative prompt; prompts then mention none.
        guidance_min, guidance_max: the range of guidance in training.
        w: the single guidance of a sharpener's teacher.
        learning_rate: a learning rate to use instead of that in LEARNING_RATE.
        initial_gain_ratio: strength of the guidance term at the start, see `initial_gain_ratio` in docs/training.md.
        base: variant of the demo model that it starts from.
        reuse: as in docs/training.md; if it is not 0, `trajectories` is the number of the latest ones that are kept.
        guidance_margin, mixed_precision, student_steps, teacher_steps, scheduler, calibration: as in docs/training.md.
    """

    teacher: str = "CFG"
    trainable: str = "lora"
    method: str = TEEFUSION
    seed: int = 0
    steps: int = 1000
    batch_size: int = 32
    rank: int = 64
    trajectories: int = 50
    negative_share: float = 0.0
    guidance_min: float = 0.5
    guidance_max: float = 4.0
    w: float = 2.0
    learning_rate: float | None = None
    initial_gain_ratio: float = 0.25
    guidance_margin: float = 0.0
    mixed_precision: bool = False
    student_steps: int = 0
    teacher_steps: int = 20
    scheduler: str = "normal"
    calibration: int = 0
    base: str = "base"
    reuse: float = 0.0

    @property
    def name(self) -> str:
        method = "" if self.method in (TEEFUSION, DICE) else f"-{self.method.replace(' ', '-')}"
        less = "-negatives" if self.negative_share else ""
        size = f"-{self.steps}-steps-of-{self.batch_size}-from-{self.trajectories}-rank-{self.rank}"
        tried = f"{size}-at-{self.learning_rate:g}" if self.learning_rate else ""
        few = f"-in-{self.student_steps}" if self.student_steps else ""
        return f"{self.prefix}{self.teacher}{method}-{self.learned}{less}-{self.seed}{tried}{few}".lower()

    @property
    def prefix(self) -> str:
        """Start of all names of a recipe that does not start from the demo SD3."""
        return "" if self.base == Recipe.base else f"{self.base}-"

    @property
    def learned(self) -> str:
        return DICE if self.method == DICE else self.trainable

    @property
    def guidance(self) -> tuple[float, float]:
        return (self.w, self.w) if self.method == DICE else (self.guidance_min, self.guidance_max)

    @property
    def cache(self) -> Path:
        """Folder of the teacher's trajectories, shared by all students that learn from the same ones."""
        less = f"-less-{self.negative_share:g}" if self.negative_share else ""
        low, high = self.guidance
        w = f"{high:g}-alone" if low == high else f"{high:g}" if low == Recipe.guidance_min else f"{low:g}-to-{high:g}"
        w += f"-margin-{self.guidance_margin:g}" if self.guidance_margin else ""
        w += f"-in-{self.student_steps}-of-{self.teacher_steps}-{self.scheduler}" if self.student_steps else ""
        prefix = self.prefix + (f"reuse-{self.reuse:g}-" if self.reuse else "")
        return STUDENTS / "trajectories" / f"{prefix}{self.teacher}-{self.seed}-{self.trajectories}-w-{w}{less}".lower()

    @property
    def student(self) -> Path:
        return STUDENTS / f"{self.name}.safetensors"


CALIBRATED: dict[str, Any] = {
    "learning_rate": 2e-3, "guidance_margin": 0.25, "mixed_precision": True, "calibration": 64,
}  # fmt: skip
"""What the recipes of students that obey have in common."""
FEW_STEPS = {4: 20, 6: 24, 8: 24, 10: 20}
"""Steps of a student -> steps of its teacher."""


def sharpening(base: str, steps: int, **others: Any) -> Recipe:
    """Return a recipe of a sharpener, which takes large batches and hardly uses an example twice, as in the paper."""
    return Recipe(
        method=DICE, base=base, steps=steps, batch_size=128, trajectories=100, reuse=2.0, learning_rate=3e-3,
        mixed_precision=True, **others,
    )  # fmt: skip


def ten_minutes(teacher: str, method: str, seed: int = 0) -> Recipe:
    """Return a recipe that is meant to take ten minutes on two cores, with trajectories and calibration."""
    if method == DICE:
        return sharpening("base", 600, teacher=teacher, seed=seed)
    return Recipe(
        teacher, method=method, seed=seed, steps=1500, trajectories=80,
        **CALIBRATED | {"calibration": 32, "guidance_margin": 0.5},
    )  # fmt: skip


def few_steps(steps: int, seed: int = 0) -> Recipe:
    """Return the recipe of a student of few steps."""
    return Recipe(
        "W2SD", seed=seed, steps=2500, trajectories=200, rank=32, student_steps=steps, teacher_steps=FEW_STEPS[steps],
        scheduler="sgm_uniform", **CALIBRATED,
    )  # fmt: skip


RECIPES = {
    "student": Recipe("W2SD", steps=4000, trajectories=160, **CALIBRATED),
    "student_8_steps": few_steps(8),
    "student_guidance_lora": Recipe(
        "CFG", method=GUIDANCE_LORA, steps=3500, trajectories=180, rank=32, **CALIBRATED
    ),
    "student_negatives": Recipe(
        "CFG", method=SPLIT, steps=3000, trajectories=150, rank=24, guidance_min=0.0, negative_share=0.5,
        initial_gain_ratio=2.0, **CALIBRATED,
    ),
    "sd15_sharpener": sharpening("sd15", 4000),
    "sharpener": sharpening("base", 4000),
    "sd15_student_guidance_lora": Recipe(
        "CFG", method=GUIDANCE_LORA, base="sd15", steps=2500, trajectories=100, rank=8, **CALIBRATED
    ),
}  # fmt: skip
"""Variant of the demo model -> how it was trained; the sharpener of the demo SD3 is not included in `models`."""


def captions(num: int, seed: int, open_ground: bool = False) -> list[str]:
    """Return correct captions of training scenes; with open_ground none mentions its background."""
    rng = random.Random(seed)
    claims = (claim_of(sample_picture(rng)[0], rng) for _ in range(num))
    return [caption(replace(claim, background=None) if open_ground else claim, rng) for claim in claims]


def described(recipe: Recipe) -> dict[str, dict]:
    """Write the prompts; return the sections of a config file, see docs/training.md."""
    from teefusion_core.comfy_host.training.config_rules import unread

    prompts, negatives = f"{recipe.name}.txt", f"{recipe.name}.negatives.txt"
    texts = {prompts: captions(NUM_PROMPTS, recipe.seed, recipe.negative_share > 0), negatives: NEGATIVES}
    STUDENTS.mkdir(parents=True, exist_ok=True)
    for name, lines in texts.items():
        (STUDENTS / name).write_text("\n".join(lines) + "\n")
    data = {"prompts": prompts, "width": 64, "height": 64}
    low, high = recipe.guidance
    distil = {"guidance_min": low, "guidance_max": high, "images_per_trajectory": 16, "reuse": recipe.reuse}
    distil |= {"cache_size": recipe.trajectories, "run_seed": recipe.seed}
    same = (
        "rank", "initial_gain_ratio", "trainable", "method", "negative_share", "guidance_margin", "mixed_precision",
        "student_steps", "teacher_steps", "scheduler",
    )  # fmt: skip
    distil |= {name: getattr(recipe, name) for name in same}
    distil = {name: value for name, value in distil.items() if name not in unread(distil)}
    train = {"steps": recipe.steps, "batch_size": recipe.batch_size, "warmup_steps": 30, "save_every": 250}
    train["learning_rate"] = recipe.learning_rate or LEARNING_RATE[recipe.learned]
    train["learning_rate_schedule"] = "linear"
    return {
        "model": {"demo_model": recipe.base}, "teacher": TEACHERS[recipe.teacher],
        "data": data | ({"negative_prompts": negatives} if recipe.negative_share else {}), "distillation": distil,
        "training": train, "output": {"name": recipe.name, "calibration": recipe.calibration},
    }  # fmt: skip


def distilled(recipe: Recipe) -> Path:
    """Train a student, unless its file exists; return the file.

    A .json beside it has recipe, losses and seconds; these include the trajectories, even if an earlier student made
    them.
    """
    if recipe.student.is_file():
        return recipe.student
    from teefusion_core.comfy_host.training.from_file import training_of

    run = training_of(described(recipe), STUDENTS)[0]
    folder, marks, of_trajectories = run.folder.path, run.folder.path / "seconds.json", recipe.cache / "seconds.json"
    for made in (recipe.cache, folder):
        made.mkdir(parents=True, exist_ok=True)
    if not (folder / "trajectories").exists():
        (folder / "trajectories").symlink_to(recipe.cache.resolve(), target_is_directory=True)
    start = time.perf_counter() - (_seconds(marks) or _seconds(of_trajectories))

    def note(path: Path) -> float:
        seconds = time.perf_counter() - start
        path.write_text(json.dumps({"seconds": seconds}))
        return seconds

    def report_step(report: StepReport) -> None:
        if report.step == 1 and not of_trajectories.is_file():
            note(of_trajectories)
        if report.step % 50 == 0:
            done = f"step {report.step}/{report.steps} loss {report.loss:.4f}"
            print(f"{recipe.name}: {done} {note(marks):.0f} s", flush=True)

    trained = run.run(on_step=report_step)
    took = {**asdict(recipe), "seconds": round(note(marks), 1), "threads": torch.get_num_threads()}
    took["losses"] = [round(loss, 4) for loss in trained.losses]
    trained.file.write(recipe.student)
    recipe.student.with_suffix(".json").write_text(json.dumps(took) + "\n")
    return recipe.student


def _seconds(path: Path) -> float:
    return float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0


def main() -> None:
    """Train the student of the command line; its options are the fields of Recipe."""
    names = (
        "steps",
        "batch_size",
        "rank",
        "trajectories",
        "seed",
        "guidance_min",
        "guidance_max",
        "w",
        "negative_share",
    )
    parser = parser_of(__doc__, **{name: getattr(Recipe, name) for name in (*names, "initial_gain_ratio")})
    parser.add_argument("--teacher", choices=TEACHERS, default="CFG")
    parser.add_argument("--trainable", choices=[name for name in LEARNING_RATE if name != DICE], default="lora")
    parser.add_argument("--method", choices=TAUGHT, default=TEEFUSION)
    parser.add_argument("--learning-rate", type=float, help=f"learning rate, if other than {LEARNING_RATE}")
    parser.add_argument("--ten-minutes", action="store_true", help="use the sizes of docs/evidence.md")
    parser.add_argument("--recipe", choices=RECIPES, help="train this one, whatever the other options are")
    given = vars(parser.parse_args())
    chosen, short = given.pop("recipe"), given.pop("ten_minutes")
    recipe = RECIPES[chosen] if chosen else Recipe(**given)
    use_comfy()
    print("saved", distilled(ten_minutes(recipe.teacher, recipe.method, recipe.seed) if short else recipe), flush=True)


if __name__ == "__main__":
    main()
