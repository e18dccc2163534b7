"""Distil students of the demo base from its teachers, by the pack's own trainer.

Prompts are all the data there is: the teacher paints them.
Run: python -m lab.demo_world.distill_student --teacher W2SD --trainable lora --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from teefusion_core.guidance.methods import DICE, TAUGHT, TEEFUSION
from teefusion_core.training.loop import StepReport

from .captions import caption
from .host import RUNS, use_comfy
from .scenes import BACKGROUNDS, claim_of, sample_picture

TEACHERS = {
    "CFG": {"kind": "cfg"},
    "Z-Sampling": {"kind": "z-sampling"},
    "W2SD": {"kind": "w2sd", "weak_model": "weak", "strong_cfg": 1.0},
}
"""By name, as `[teacher]` of a training file has them; every last leg is CFG at 1 + w."""
LEARNING_RATE = {"lora": 1e-3, "everything": 5e-4, DICE: 1e-3}
"""By what is trained; what others would have done is measured by scripts/bench.py rates."""
NEGATIVES = [f"on a {ground} background" for ground in BACKGROUNDS]
NUM_PROMPTS = 4000
STUDENTS = RUNS / "students"


@dataclass(frozen=True)
class Recipe:
    """What makes one student different from another.

    Attributes:
        teacher: a name in TEACHERS.
        trainable: "lora" or "everything"; a sharpener leaves the model alone.
        method: how guidance enters, a name in TAUGHT.
        seed: of prompts, walks, noise, weights.
        steps, batch, rank, walks: of the training; the teacher walks before the first step, `walks` times.
        negatives: share of walks away from a background; then prompts leave theirs open.
        w_max: the strongest guidance that is trained.
        w: the one guidance of a sharpener's teacher.
        lr: where another rate than that of LEARNING_RATE is tried.
        share: strength of the guidance term at the start, see `initial_gain_ratio` in docs/training.md.
    """

    teacher: str = "CFG"
    trainable: str = "lora"
    method: str = TEEFUSION
    seed: int = 0
    steps: int = 1000
    batch: int = 32
    rank: int = 64
    walks: int = 50
    negatives: float = 0.0
    w_max: float = 4.0
    w: float = 2.0
    lr: float | None = None
    share: float = 0.25

    @property
    def name(self) -> str:
        """Of its run with its files."""
        method = "" if self.method in (TEEFUSION, DICE) else f"-{self.method.replace(' ', '-')}"
        less = "-negatives" if self.negatives else ""
        tried = f"-{self.steps}-steps-at-{self.lr:g}" if self.lr else ""
        return f"{self.teacher}{method}-{self.learned}{less}-{self.seed}{tried}".lower()

    @property
    def learned(self) -> str:
        """What is trained, a name in LEARNING_RATE."""
        return DICE if self.method == DICE else self.trainable

    @property
    def guidance(self) -> tuple[float, float]:
        """Least with largest w."""
        return (self.w, self.w) if self.method == DICE else (0.5, self.w_max)

    @property
    def walked(self) -> Path:
        """Folder of the teacher's walks, which serve every student that is taught the same."""
        less = f"-less-{self.negatives:g}" if self.negatives else ""
        low, high = self.guidance
        w = f"{high:g}-alone" if low == high else f"{high:g}"
        return STUDENTS / "walks" / f"{self.teacher}-{self.seed}-{self.walks}-w-{w}{less}".lower()

    @property
    def student(self) -> Path:
        """Its student file; what the training took stands beside it."""
        return STUDENTS / f"{self.name}.safetensors"


def captions(num: int, seed: int, open_ground: bool = False) -> list[str]:
    """Right captions of scenes outside the held-out part; with open_ground none names its background."""
    rng = random.Random(seed)
    claims = (claim_of(sample_picture(rng)[0], rng) for _ in range(num))
    return [caption(replace(claim, background=None) if open_ground else claim, rng) for claim in claims]


def described(recipe: Recipe) -> dict[str, dict]:
    """Write the prompts; return the sections of a training file, see docs/training.md."""
    prompts, negatives = f"{recipe.name}.txt", f"{recipe.name}.negatives.txt"
    texts = {prompts: captions(NUM_PROMPTS, recipe.seed, recipe.negatives > 0), negatives: NEGATIVES}
    STUDENTS.mkdir(parents=True, exist_ok=True)
    for name, lines in texts.items():
        (STUDENTS / name).write_text("\n".join(lines) + "\n")
    data = {"prompts": prompts, "width": 64, "height": 64}
    w_min, w_max = recipe.guidance
    distil = {
        "guidance_min": w_min,
        "guidance_max": w_max,
        "images_per_trajectory": 16,
        "cache_size": recipe.walks,
        "reuse": 0,
        "rank": recipe.rank,
        "initial_gain_ratio": recipe.share,
        "trainable": recipe.trainable,
        "method": recipe.method,
        "negative_share": recipe.negatives,
        "seed": recipe.seed,
    }
    train = {
        "steps": recipe.steps,
        "batch": recipe.batch,
        "lr": recipe.lr or LEARNING_RATE[recipe.learned],
        "warmup": 30,
        "schedule": "linear",
        "save_every": 250,
        "seed": recipe.seed,
    }
    return {
        "model": {"tiny": "base"},
        "teacher": TEACHERS[recipe.teacher],
        "data": data | ({"negatives": negatives} if recipe.negatives else {}),
        "distil": distil,
        "train": train,
        "output": {"name": recipe.name},
    }


def distilled(recipe: Recipe) -> Path:
    """Train a student, unless there is one; return its file.

    Beside it stands a .json with recipe, losses, seconds: those of the teacher's walks count even where an earlier
    student took them.
    """
    if recipe.student.is_file():
        return recipe.student
    from teefusion_core.comfy_host.training.from_file import training_of

    run = training_of(described(recipe), STUDENTS)[0]
    clock = _Clock(recipe, run.folder.path)

    def told(report: StepReport) -> None:
        if report.step == 1:
            clock.walked()
        if report.step % 50 == 0:
            seconds = clock.keep()
            print(
                f"{recipe.name}: step {report.step}/{report.steps} loss {report.loss:.4f} {seconds:.0f} s", flush=True
            )

    student = run.run(on_step=told)
    took = {
        **asdict(recipe),
        "seconds": round(clock.keep(), 1),
        "threads": torch.get_num_threads(),
        "losses": [round(loss, 4) for loss in student.losses],
    }
    student.write(recipe.student)
    recipe.student.with_suffix(".json").write_text(json.dumps(took) + "\n")
    return recipe.student


class _Clock:
    """Seconds of a training over all its starts, with those of the walks that it finds made."""

    def __init__(self, recipe: Recipe, run: Path):
        self.marks, self.of_walks = run / "seconds.json", recipe.walked / "seconds.json"
        recipe.walked.mkdir(parents=True, exist_ok=True)
        run.mkdir(parents=True, exist_ok=True)
        if not (run / "walks").exists():
            (run / "walks").symlink_to(recipe.walked.resolve(), target_is_directory=True)
        self.started, self.before = time.perf_counter(), _seconds(self.marks) or _seconds(self.of_walks)

    def walked(self) -> None:
        """Note what the walks took, the first time."""
        if not self.of_walks.is_file():
            self.of_walks.write_text(json.dumps({"seconds": time.perf_counter() - self.started}))

    def keep(self) -> float:
        """Note the seconds so far, return them."""
        seconds = self.before + time.perf_counter() - self.started
        self.marks.write_text(json.dumps({"seconds": seconds}))
        return seconds


def _seconds(path: Path) -> float:
    return float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0


def main() -> None:
    """Train what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", choices=TEACHERS, default="CFG")
    parser.add_argument("--trainable", choices=[name for name in LEARNING_RATE if name != DICE], default="lora")
    parser.add_argument("--method", choices=TAUGHT, default=TEEFUSION)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("steps", "batch", "rank", "walks"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name))
    parser.add_argument("--w-max", type=float, default=Recipe.w_max, help="the strongest guidance that is trained")
    parser.add_argument("--w", type=float, default=Recipe.w, help="the one guidance of a sharpener's teacher")
    parser.add_argument("--negatives", type=float, default=0.0, help="share of walks away from a background")
    parser.add_argument("--share", type=float, default=Recipe.share, help="strength of the guidance term at the start")
    parser.add_argument("--lr", type=float, help=f"learning rate, where not {LEARNING_RATE}")
    use_comfy()
    print("saved", distilled(Recipe(**vars(parser.parse_args()))), flush=True)


if __name__ == "__main__":
    main()
