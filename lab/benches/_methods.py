"""The methods that the tables compare: ways to sample the demo model at some strength.

Students are read from lab/demo_world/runs/students, where training writes them; a missing one is listed with the
command that trains it. To compare another method, add it to WANTED; if its strength is not w, to OTHER_STRENGTHS too.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lab.demo_world.distill_student import Recipe, ten_minutes
from lab.demo_world.host import MODELS
from teefusion_core.files.student_file import read_student
from teefusion_core.guidance.calibration import Calibration
from teefusion_core.guidance.cfg import cfg_scale_of
from teefusion_core.guidance.methods import DICE, GUIDANCE_LORA, SPLIT

from ._study import Study, load, uncalibrated

GRID = (1.0, 2.0, 3.0)
"""Values of w from which the best one is chosen for every method."""
ALPHAS = (0.5, 1.0, 1.5)
"""Strengths of a sharpener, which has no w; the same number, so that every method has the same search."""
TRAINED_SHARE = 0.25
"""Share of the untrained term in the modulation vector, in root mean square, at w 2, as at the start of training."""
HEADLINE = {"w": 2.0, "alpha": 1.0, "share": TRAINED_SHARE}
SEEDS = (0, 1, 2)
TEACHER, UNTRAINED, MATCHED, BASE = "teacher", "untrained fusion", "CFG, matched", "no guidance"
Prepared = tuple[Any, list, float]
"""Teacher to sample with, CONDITIONING, CFG scale."""
Prepare = Callable[[Study, list, float, str], Prepared]
"""(study, prompts, strength, name of the sampler) -> what to sample."""


@dataclass(frozen=True)
class Wanted:
    """A kind of student: its method, its teacher and what is trained, as in its Recipe."""

    method: str
    teacher: str
    trainable: str

    def recipe(self, seed: int) -> Recipe:
        return ten_minutes(self.teacher, self.method, seed)

    def command(self, seed: int) -> str:
        options = ["--teacher", self.teacher, "--method", self.method, "--seed", str(seed), "--ten-minutes"]
        return shlex.join(["python", "-m", "lab.demo_world.distill_student", *options])


WANTED = [Wanted("teefusion", teacher, "lora") for teacher in ("CFG", "Z-Sampling", "W2SD")]
WANTED += [Wanted(method, "W2SD", "lora") for method in ("guidance only", "distillcfg", SPLIT, GUIDANCE_LORA)]
WANTED += [Wanted(DICE, "W2SD", "sharpener")]


@dataclass(frozen=True)
class Arm:
    """One row of the tables, without its strength.

    Attributes:
        method: a method of students, or one of the names above.
        teacher: the teacher that it is or learned from; "" for the base.
        trainable: "lora", "everything", "sharpener", or "" if nothing was trained.
        seed, budget: seed and number of steps of its training.
        knob: name of its strength, a key of HEADLINE.
        grid: strengths to try.
    """

    method: str
    teacher: str
    trainable: str
    seed: int | None
    budget: int | None
    knob: str
    grid: tuple[float, ...]
    prepare: Prepare

    @property
    def named(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("grid", "prepare")}


def _one_pass(model: Any, prompt: list, sampler: str) -> Prepared:
    import comfy.samplers

    from teefusion_core.comfy_host.training.teacher import Teacher

    return Teacher(comfy.samplers.CFGGuider(model), comfy.samplers.sampler_object(sampler)), prompt, 1.0


def teachers() -> list[Arm]:
    base = Arm(BASE, "", "", None, None, "w", (HEADLINE["w"],), lambda study, p, w, s: _one_pass(study.base, p, s))
    return [base, *(_teacher(name, TEACHER, GRID) for name in ("CFG", "Z-Sampling", "W2SD"))]


def matched(cfg_scale: float) -> Arm:
    return _teacher("CFG", MATCHED, (cfg_scale - 1,))


def _teacher(name: str, method: str, grid: tuple[float, ...]) -> Arm:
    def prepare(study: Study, prompt: list, w: float, sampler: str) -> Prepared:
        import comfy.samplers

        teacher = study.teacher(name)
        if sampler != "euler":
            teacher.sampler = comfy.samplers.sampler_object(sampler)
        return teacher, prompt, cfg_scale_of(w)

    return Arm(method, name, "", None, None, "w", grid, prepare)


def untrained(path: Path) -> Arm:
    """The term of a student on the untrained base, with its gain calibrated as at the start of training."""
    info = read_student(path)[1]

    def prepare(study: Study, prompt: list, share: float, sampler: str) -> Prepared:
        from teefusion_core.comfy_host.guidance.patch import apply_fusion

        options = {"guidance_precision": info.guidance_precision, "gain": info.gain * share / TRAINED_SHARE}
        return _one_pass(*apply_fusion(study.base, prompt, study.bench.null, HEADLINE["w"], **options), sampler)

    return Arm(UNTRAINED, "", "", None, None, "share", (TRAINED_SHARE,), prepare)


def _fused(path: Path, study: Study, prompt: list, w: float, sampler: str, *, plain: bool = False) -> Prepared:
    from teefusion_core.comfy_host.guidance.patch import apply_fusion

    student, curve = load(study.base, path), Calibration.of(read_student(path)[1].calibration)
    # some students do not reach the largest w of the grid; they are sampled at the largest that they allow
    model, w = (uncalibrated(student), w) if plain or curve is None else (student, min(w, curve.wanted[-1]))
    return _one_pass(*apply_fusion(model, prompt, study.bench.null, w), sampler)


def without_calibration(arm: Arm) -> Arm:
    """Return a student without the calibration of its file."""
    return replace(arm, prepare=partial(arm.prepare, plain=True))


def _sharpened(path: Path, study: Study, prompt: list, alpha: float, sampler: str) -> Prepared:
    from teefusion_core.comfy_host.prompts.conditioning import load_sharpener, sharpen

    sharp = sharpen(prompt, load_sharpener(path, [alpha]), alpha=alpha, null=study.bench.null)
    return _one_pass(study.base, sharp, sampler)


OTHER_STRENGTHS = {DICE: ("alpha", ALPHAS, _sharpened)}
"""Method -> knob, grid and how to sample a file. All other methods use w, fused into the prompt."""


def students() -> tuple[list[Arm], list[dict[str, str]]]:
    """Return the students that exist, and the missing ones with the command that trains each."""
    found, missing = [], []
    for wanted in WANTED:
        for seed in SEEDS:
            path = student_path(wanted, seed)
            if path.is_file():
                found.append(student_arm(wanted, seed, path, training_record(path).get("steps")))
            else:
                missing.append({"student": path.name, "command": wanted.command(seed)})
    return found, missing


def student_path(wanted: Wanted, seed: int) -> Path:
    return wanted.recipe(seed).student


def training_record(path: Path) -> dict[str, Any]:
    """Read what training wrote beside the student: recipe, losses and seconds."""
    record = path.with_suffix(".json")
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def student_arm(wanted: Wanted, seed: int, path: Path, steps: int | None) -> Arm:
    knob, grid, sample = OTHER_STRENGTHS.get(wanted.method, ("w", GRID, _fused))
    return Arm(wanted.method, wanted.teacher, wanted.trainable, seed, steps, knob, grid, partial(sample, path))


def shipped() -> Arm:
    """The student in models/, which was trained for longer than those of the ablation."""
    path = MODELS / "demo_sd3_student.safetensors"
    return student_arm(Wanted("teefusion", "W2SD", "lora"), 0, path, read_student(path)[1].step)
