"""Every comparison of the TeEFusion paper on the demo model, with error bars: methods, ablation, teachers, curves.

The prompts are held out, every method starts from the same noise, and the judge is exact. Nothing is trained: besides
the shipped student it uses those that lab.demo_world.distill_student has written, and lists missing ones with the
command that trains them.
"""

import time
from typing import Any

import numpy as np
import torch
from runner.stop import say

from teefusion_core.guidance.methods import METHODS

from . import _methods, _training_curves
from ._embedding import embeddings
from ._methods import BASE, GRID, HEADLINE, TEACHER, UNTRAINED, Arm, student_path, training_record
from ._paper_tables import table
from ._report import packed
from ._sampling import Sampled, likeness, sampled
from ._scores import groups, headline, named, values
from ._study import STEPS, Study

NUM_PROMPTS, FEW, TWICE = 128, 32, 64
"""Number of prompts: in all, with compared velocities, and with samples from a second noise."""
SECOND_NOISE = 2025
OTHER_SAMPLER = "dpmpp_2m"
__all__ = ["measure", "table"]


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return one row for each method and strength, compared velocities, curves, and the embedding of w."""
    start, evidence = time.perf_counter(), Evidence()
    found, missing = _methods.students()
    wanted = [(kind, seed) for kind in _methods.WANTED if kind.method == "teefusion" for seed in _methods.SEEDS]
    paths = [path for path in (student_path(*one) for one in wanted) if path.is_file()]
    # the untrained term is calibrated like the first student that exists
    arms = [*_methods.teachers(), *map(_methods.untrained, paths[:1]), _methods.shipped(), *found]
    embedding, curves = evidence.embedding(), _training_curves.losses()  # first, because these fail quickly
    velocities = [evidence.agreement(arm) for arm in arms if arm.method not in (BASE, TEACHER)]
    for arm in arms:
        evidence.sweep(arm)
    evidence.match()
    evidence.resample([arm for arm in arms if arm.trainable == "lora" and arm.method == "teefusion"])
    checkpoints = evidence.checkpoints([arm for arm in found if arm.method == "teefusion"])
    sizes = {"prompts": NUM_PROMPTS, "prompts_for_velocities": FEW, "prompts_sampled_twice": TWICE}
    settings = {**sizes, "steps": STEPS, "guidance": GRID, "headline": HEADLINE, "threads": torch.get_num_threads()}
    result = {"settings": settings, "rows": evidence.rows, "velocities": velocities, "curves": curves}
    result |= {"checkpoints": checkpoints, "embedding": embedding, "missing": missing}
    return {**result, "minutes": round((time.perf_counter() - start) / 60, 1)}


class Evidence(Study):
    """The measured rows, and the teachers' images that later rows are compared with."""

    def __init__(self) -> None:
        super().__init__(NUM_PROMPTS, FEW)
        generator = torch.Generator().manual_seed(SECOND_NOISE)
        self.other_BCHW = torch.randn(TWICE, *self.bench.noise_NCHW.shape[1:], generator=generator)
        self.rows: list[dict[str, Any]] = []
        self.of_teachers: dict[tuple[str, float], np.ndarray] = {}

    def sweep(self, arm: Arm) -> None:
        """Sample at every strength; measure all figures at the strength of the main tables."""
        for strength in arm.grid:
            main = strength == HEADLINE[arm.knob]
            done = sampled(self, arm, strength, other_BCHW=self.other_BCHW if main else None)
            if arm.method == TEACHER:
                self.of_teachers[arm.teacher, strength] = done.images_BHW3
            self._keep(arm, done)

    def _keep(self, arm: Arm, done: Sampled, **more: Any) -> None:
        row = done.row | more
        w = row["strength"] if arm.knob == "w" else HEADLINE["w"]
        theirs = self.of_teachers.get((arm.teacher or "W2SD", w))
        if theirs is not None and arm.method != TEACHER:
            row |= likeness(done.images_BHW3, theirs)
        self.rows.append(row)
        right = values([row]).mean()
        say(f"{named([row])}, seed {arm.seed}, {row['sampler']}, {arm.knob} {row['strength']:g}: {right:.3f}")

    def match(self) -> None:
        """Sample with CFG at the effective guidance of every group of students."""
        for group in groups(self.rows):
            if group[0]["trainable"] or group[0]["method"] == UNTRAINED:
                arm = _methods.matched(float(np.mean([row["effective"] for row in headline(group)])))
                self._keep(arm, sampled(self, arm, arm.grid[0], other_BCHW=self.other_BCHW), of=named(group))

    def resample(self, students: list[Arm]) -> None:
        cfg = [arm for arm in _methods.teachers() if arm.method == TEACHER and arm.teacher == "CFG"]
        for arm in cfg + students:
            self._keep(arm, sampled(self, arm, HEADLINE["w"], sampler=OTHER_SAMPLER))

    def agreement(self, arm: Arm) -> dict[str, Any]:
        """Return cosines with the teacher along its trajectory by noise level, of the velocity and of the guidance."""
        where, moves, cond, _ = self.trajectory(arm.teacher or "W2SD", HEADLINE["w"])
        teacher, prompt, _ = arm.prepare(self, self.first, HEADLINE[arm.knob], "euler")
        seen = self.velocities(teacher.model, prompt, where)
        whole = [float(_cosine(*at).mean()) for at in zip(seen, moves, strict=True)]
        added = zip(seen, moves, cond, strict=True)
        guidance = [float(_cosine(v - c, move - c).nanmean()) for v, move, c in added]
        return {**arm.named, "cosine": packed(whole, 4), "guidance_cosine": packed(guidance, 3)}

    def checkpoints(self, students: list[Arm]) -> list[dict[str, Any]]:
        scored = []
        for arm in students:
            for step, early in _training_curves.checkpoints(self.base, arm):
                row = {**arm.named, "step": step, "right": sampled(self, early, HEADLINE["w"]).row["right"]}
                scored.append(row)
                say(f"{named([row])}, seed {arm.seed}, step {step}: {values([row]).mean():.3f}")
        return scored

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
