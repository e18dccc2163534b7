"""The methods that the tables compare, as rows: each a way to sample the demo model at some strength.

A student is taken from lab/demo_world/runs/students where its training left it; one that is missing is named with the
command that trains it. A new method is a new row in WANTED with a painter in PAINTERS.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ._study import Study, load

GRID = (0.5, 1.0, 2.0, 3.0, 4.0)
"""Guidance w that every method may choose its best from."""
ALPHAS = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Strengths of a sharpener, which knows no w; as many, so that every method has the same search."""
SHARES = (0.02, 0.05, 0.1, 0.25, 0.5)
"""Strengths of the untrained term: its share of the modulation vector, in root mean square, at w 2."""
TRAINED_SHARE = 0.25
"""What the students of the demo model began their training with."""
HEADLINE = {"w": 2.0, "alpha": 1.0, "share": TRAINED_SHARE}
SEEDS = (0, 1, 2)
DICE, SPLIT = "dice", "teefusion split"
TEACHER, UNTRAINED, MATCHED, BASE = "teacher", "untrained fusion", "CFG, matched", "no guidance"

Prepared = tuple[Any, list, float]
"""Teacher to sample with, CONDITIONING, CFG scale."""


@dataclass(frozen=True)
class Wanted:
    """A kind of student.

    Attributes:
        method: a name in TAUGHT of teefusion_core.methods.
        teacher, trainable: as its recipe has them; a sharpener leaves the model alone.
    """

    method: str
    teacher: str
    trainable: str


WANTED = [Wanted("teefusion", teacher, "lora") for teacher in ("CFG", "Z-Sampling", "W2SD")]
WANTED += [Wanted(method, "W2SD", "lora") for method in ("guidance only", "distillcfg", SPLIT)]
WANTED += [Wanted(DICE, "W2SD", "sharpener")]
WANTED += [Wanted("teefusion", teacher, "everything") for teacher in ("CFG", "Z-Sampling", "W2SD")]
SHIPPED = Wanted("teefusion", "W2SD", "lora")
"""The student in models/, which was trained for longer than those it could be compared with in the ablation."""


@dataclass(frozen=True)
class Arm:
    """One row of the tables, without its strength.

    Attributes:
        method: a method of students, or one of the names above.
        teacher: that it is, or was taught by; "" for the base.
        trainable: "lora", "everything", "sharpener", or "" where nothing was trained.
        seed: of its training.
        budget: steps of its training.
        knob: what its strength is called, a key of HEADLINE.
        grid: strengths to try.
        prepare: (study, prompts, strength, sampler) -> what to sample.
    """

    method: str
    teacher: str
    trainable: str
    seed: int | None
    budget: int | None
    knob: str
    grid: tuple[float, ...]
    prepare: Callable[[Study, list, float, str], Prepared]

    @property
    def named(self) -> dict[str, Any]:
        """What tells it from others."""
        names = ("method", "teacher", "trainable", "seed", "budget", "knob")
        return {name: getattr(self, name) for name in names}


def one_pass(model: Any, prompt: list, sampler: str) -> Prepared:
    """Sample a model as it is, at cfg 1."""
    import comfy.samplers

    from teefusion_core.comfy_host.training.teacher import Teacher

    return Teacher(comfy.samplers.CFGGuider(model), comfy.samplers.sampler_object(sampler)), prompt, 1.0


def teachers() -> list[Arm]:
    """The base with every teacher."""
    base = Arm(BASE, "", "", None, None, "w", (HEADLINE["w"],), lambda study, p, w, s: one_pass(study.base, p, s))
    return [base, *(_teacher(name, TEACHER) for name in ("CFG", "Z-Sampling", "W2SD"))]


def matched(cfg_scale: float) -> Arm:
    """CFG at any scale."""
    return replace(_teacher("CFG", MATCHED), grid=(cfg_scale - 1,))


def _teacher(name: str, method: str) -> Arm:
    def prepare(study: Study, prompt: list, w: float, sampler: str) -> Prepared:
        import comfy.samplers

        from teefusion_core.guidance.cfg import cfg_scale_of

        teacher = study.teacher(name)
        if sampler != "euler":
            teacher.sampler = comfy.samplers.sampler_object(sampler)
        return teacher, prompt, cfg_scale_of(w)

    return Arm(method, name, "", None, None, "w", GRID, prepare)


def untrained(path: Path) -> Arm:
    """The term of a student on the base as it is, its gain calibrated as before a training."""
    from teefusion_core.files.student_file import read_student

    info = read_student(path)[1]

    def prepare(study: Study, prompt: list, share: float, sampler: str) -> Prepared:
        from teefusion_core.comfy_host.guidance.patch import apply_fusion

        gain = info.gain * share / TRAINED_SHARE
        return one_pass(
            *apply_fusion(
                study.base,
                prompt,
                study.bench.null,
                HEADLINE["w"],
                guidance_precision=info.guidance_precision,
                gain=gain,
            ),
            sampler,
        )

    return Arm(UNTRAINED, "", "", None, None, "share", SHARES, prepare)


def _fused(path: Path) -> Callable[[Study, list, float, str], Prepared]:
    def prepare(study: Study, prompt: list, w: float, sampler: str) -> Prepared:
        from teefusion_core.comfy_host.guidance.patch import apply_fusion

        return one_pass(*apply_fusion(load(study.base, path), prompt, study.bench.null, w), sampler)

    return prepare


def _sharpened(path: Path) -> Callable[[Study, list, float, str], Prepared]:
    def prepare(study: Study, prompt: list, alpha: float, sampler: str) -> Prepared:
        from teefusion_core.comfy_host.prompts.conditioning import sharpen

        return one_pass(study.base, sharpen(prompt, path, alpha=alpha, null=study.bench.null), sampler)

    return prepare


PAINTERS: dict[str, tuple[str, tuple[float, ...], Callable[[Path], Callable]]] = {
    DICE: ("alpha", ALPHAS, _sharpened),
}
"""Method -> knob, grid, how a file is sampled; methods that are not named here take w, fused into the prompt."""


def students() -> tuple[list[Arm], list[dict[str, str]]]:
    """Return students that are there, then those that are not with the command that trains each."""
    found, missing = [], []
    for wanted in WANTED:
        for seed in SEEDS:
            path = student_path(wanted, seed)
            if path.is_file():
                found.append(student_arm(wanted, seed, path, told(path).get("steps")))
            else:
                missing.append({"student": path.name, "command": _command(wanted, seed)})
    return found, missing


def recipe_of(wanted: Wanted, seed: int, **changed: Any) -> Any:
    """How such a student is trained, a Recipe of lab.demo_world.distill_student."""
    from lab.demo_world.distill_student import Recipe

    kind = {} if wanted.method == DICE else {"trainable": wanted.trainable}
    return Recipe(wanted.teacher, method=wanted.method, seed=seed, **kind, **changed)


def student_path(wanted: Wanted, seed: int) -> Path:
    """Where the training of a student leaves its file."""
    return recipe_of(wanted, seed).student


def told(path: Path) -> dict[str, Any]:
    """What a training says of itself, beside the student."""
    note = path.with_suffix(".json")
    return json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}


def student_arm(wanted: Wanted, seed: int, path: Path, steps: int | None) -> Arm:
    """A student by its file, trained for so many steps."""
    knob, grid, painter = PAINTERS.get(wanted.method, ("w", GRID, _fused))
    return Arm(wanted.method, wanted.teacher, wanted.trainable, seed, steps, knob, grid, painter(path))


def shipped() -> Arm:
    """The student that comes with the pack."""
    from lab.demo_world.host import MODELS
    from teefusion_core.files.student_file import read_student

    path = MODELS / "demo_sd3_student.safetensors"
    return student_arm(SHIPPED, 0, path, read_student(path)[1].step)


def _command(wanted: Wanted, seed: int) -> str:
    options = ["--teacher", wanted.teacher]
    options += [] if wanted.method == DICE else ["--trainable", wanted.trainable]
    options += [] if wanted.method == "teefusion" else ["--method", wanted.method]
    return shlex.join(["python", "-m", "lab.demo_world.distill_student", *options, "--seed", str(seed)])
