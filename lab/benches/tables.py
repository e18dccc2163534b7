"""Every comparison of the TeEFusion paper on the demo model, with error bars: methods, ablation, teachers, curves.

The prompts are held out, every method starts from the same noise, and the judge is exact. Nothing is trained: besides
the shipped student it uses those that lab.demo_world.distill_student has written, and lists missing ones with the
command that trains them. A row that is in lab/results already is not measured again.
"""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from runner.stop import say

from teefusion_core.guidance.methods import METHODS, TEEFUSION

from . import _methods, _training_curves
from ._embedding import embeddings
from ._methods import (
    BASE,
    GRID,
    HEADLINE,
    TEACHER,
    Arm,
    student_path,
    training_record,
    without_calibration,
)  # fmt: skip
from ._paper_tables import table
from ._report import Job, measured_rows, packed
from ._sampling import likeness, sampled
from ._scores import groups, headline, named, values
from ._study import STEPS, Study

NUM_PROMPTS, FEW, TWICE = 512, 32, 64
"""Number of prompts: in all, with compared velocities, and with samples from a second noise."""
SECOND_NOISE = 2025
OTHER_SAMPLER = "dpmpp_2m"
ABLATED = "W2SD"
"""The teacher of the ablation, whose students are also sampled without their calibration."""
__all__ = ["measure", "table"]


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return one row for each method and strength, compared velocities, curves, and the embedding of w."""
    evidence = Evidence()
    found, missing = _methods.students()
    wanted = [(kind, seed) for kind in _methods.WANTED if kind.method == TEEFUSION for seed in _methods.SEEDS]
    paths = [path for path in (student_path(*one) for one in wanted) if path.is_file()]
    # the untrained term is calibrated like the first student that exists
    students = [_methods.shipped(), *found]
    taught = {arm.teacher for arm in students}
    teachers = [arm for arm in _methods.teachers() if arm.method == BASE or arm.teacher in taught]
    arms = [*teachers, *map(_methods.untrained, paths[:1]), *students]
    embedding, curves = evidence.embedding(), _training_curves.losses()  # first, because these fail quickly
    velocities = [evidence.agreement(arm) for arm in arms if arm.method not in (BASE, TEACHER)]
    fused = [arm for arm in found if arm.method == TEEFUSION]
    sizes = {"prompts": NUM_PROMPTS, "prompts_for_velocities": FEW, "prompts_sampled_twice": TWICE}
    settings = {**sizes, "steps": STEPS, "guidance": list(GRID), "headline": HEADLINE}
    jobs = [job for arm in arms for job in evidence.sweep(arm)]
    swept = measured_rows("tables", settings, jobs)["rows"]
    jobs += [*evidence.match(swept), *evidence.resample([arm for arm in fused if arm.teacher == ABLATED])]
    result = measured_rows("tables", settings, jobs)
    return result | {"velocities": velocities, "curves": curves, "embedding": embedding, "missing": missing}


class Evidence(Study):
    """Measurements of arms on the same prompts and the same noise."""

    def __init__(self) -> None:
        super().__init__(NUM_PROMPTS, FEW)
        generator = torch.Generator().manual_seed(SECOND_NOISE)
        self.other_BCHW = torch.randn(TWICE, *self.bench.noise_NCHW.shape[1:], generator=generator)
        self.teacher_images: dict[str, np.ndarray] = {}

    def sweep(self, arm: Arm) -> list[Job]:
        """Sample at every strength; measure all figures at the strength of the main tables."""
        return [self._job(arm, strength, whole=strength == HEADLINE[arm.knob]) for strength in arm.grid]

    def match(self, rows: list[dict[str, Any]]) -> list[Job]:
        """Sample with CFG at the effective guidance of every group of TeEFusion students."""
        jobs = []
        for group in groups(rows):
            if group[0]["method"] == TEEFUSION:
                arm = _methods.matched(float(np.mean([row["effective"] for row in headline(group)])))
                jobs.append(self._job(arm, arm.grid[0], whole=True, of=named(group)))
        return jobs

    def resample(self, students: list[Arm]) -> list[Job]:
        cfg = [arm for arm in _methods.teachers() if arm.method == TEACHER and arm.teacher == "CFG"]
        return [self._job(arm, HEADLINE["w"], sampler=OTHER_SAMPLER) for arm in cfg + students]

    def _job(
        self, arm: Arm, strength: float, *, sampler: str = "euler", whole: bool = False, **more: Any
    ) -> Job:  # fmt: skip
        row = {**arm.named, "sampler": sampler, "strength": strength, **more}
        return row, partial(self._measured, arm, strength, sampler, whole)

    def _measured(self, arm: Arm, strength: float, sampler: str, whole: bool) -> dict[str, Any]:
        start, other_BCHW = time.perf_counter(), self.other_BCHW if whole else None
        done = sampled(self, arm, strength, sampler=sampler, other_BCHW=other_BCHW)
        row = done.row
        if whole and arm.method == TEACHER:
            self.teacher_images[arm.teacher] = done.images_BHW3
        elif whole:
            row |= likeness(done.images_BHW3, self.of_teacher(arm.teacher or ABLATED))
        if whole and arm.teacher == ABLATED and arm.trainable == "lora":
            row["uncalibrated"] = sampled(self, without_calibration(arm), strength).row["right"]
        row["seconds"] = round(time.perf_counter() - start, 1)
        say(f"{named([row])}, seed {arm.seed}, {sampler}, {arm.knob} {strength:g}: {values([row]).mean():.3f}")
        return row

    def of_teacher(self, name: str) -> np.ndarray:
        """Return the teacher's images at the headline strength; sampled here only if its row was kept."""
        if name not in self.teacher_images:
            self.teacher_images[name] = self.images(self.teacher(name), HEADLINE["w"])
        return self.teacher_images[name]

    def agreement(self, arm: Arm) -> dict[str, Any]:
        """Return cosines with the teacher along its trajectory by noise level, of the velocity and of the guidance."""
        where, moves, cond, _ = self.trajectory(arm.teacher or ABLATED, HEADLINE["w"])
        teacher, prompt, _ = arm.prepare(self, self.first, HEADLINE[arm.knob], "euler")
        seen = self.velocities(teacher.model, prompt, where)
        whole = [float(_cosine(*at).mean()) for at in zip(seen, moves, strict=True)]
        added = zip(seen, moves, cond, strict=True)
        guidance = [float(_cosine(v - c, move - c).nanmean()) for v, move, c in added]
        return {**arm.named, "cosine": packed(whole, 4), "guidance_cosine": packed(guidance, 3)}

    def embedding(self) -> list[dict[str, Any]]:
        """Embed w with the base and with the first student of each kind without additional layers."""
        fit = {}
        for wanted in _methods.WANTED:
            path = student_path(wanted, _methods.SEEDS[0])
            if path.is_file() and wanted.method in METHODS and not METHODS[wanted.method].embeds:
                fit[named([{**vars(wanted), "budget": training_record(path).get("steps")}])] = path
        return embeddings(self, fit) if fit else []


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each row; NaN if a vector is zero."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
