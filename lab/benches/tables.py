"""Every comparison of the TeEFusion paper on the demo model, with error bars: rivals, ablation, teachers, curves.

Prompts are held out, every method paints from the same noise, the judge is exact. Nothing is trained: beside the
shipped student, those are taken that lab.demo_world.distill_student has left; missing ones are named with the
command that trains them. The numbers become lab/results/tables.json, the report stands beside them; python3
scripts/bench.py --render makes it anew.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from runner.stop import say

from . import _curves
from ._arms import (
    BASE,
    DICE,
    GRID,
    HEADLINE,
    SEEDS,
    TEACHER,
    UNTRAINED,
    WANTED,
    Arm,
    matched,
    shipped,
    student_path,
    students,
    teachers,
    told,
    untrained,
)
from ._embedding import embeddings
from ._painting import Painted, likeness, painted
from ._report import packed
from ._rivals import table
from ._scores import groups, headline, named, values
from ._study import STEPS, Study

NUM_PROMPTS, FEW, TWICE = 128, 32, 64
"""Prompts; those whose velocities are looked at; those that are painted from a second noise."""
SECOND_NOISE = 2025
OTHER_SAMPLER = "dpmpp_2m"
__all__ = ["measure", "table"]


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return one row for each arm at each strength, velocities compared, curves, the embedding of w, claims."""
    start, evidence = time.perf_counter(), Evidence()
    found, missing = students()
    arms = [*teachers(), *_untrained(), shipped(), *found]
    embedding, curves = evidence.embedding(), _curves.losses()  # first, for these are quick to fail
    velocities = [evidence.agreement(arm) for arm in arms if arm.method not in (BASE, TEACHER)]
    for arm in arms:
        evidence.sweep(arm)
    evidence.match()
    evidence.resample([arm for arm in arms if arm.trainable == "lora" and arm.method == "teefusion"])
    result = {
        "settings": {
            "prompts": NUM_PROMPTS,
            "steps": STEPS,
            "guidance": GRID,
            "headline": HEADLINE,
            "prompts_for_velocities": FEW,
            "prompts_painted_twice": TWICE,
            "threads": torch.get_num_threads(),
        },
        "rows": evidence.rows,
        "velocities": velocities,
        "curves": curves,
        "checkpoints": evidence.checkpoints([arm for arm in found if arm.method == "teefusion"]),
        "embedding": embedding,
        "missing": missing,
    }
    return {**result, "minutes": round((time.perf_counter() - start) / 60, 1)}


def _untrained() -> list[Arm]:
    """The untrained term, calibrated as the first student that is there."""
    paths = [student_path(wanted, seed) for wanted in WANTED if wanted.method == "teefusion" for seed in SEEDS]
    return [untrained(path) for path in paths if path.is_file()][:1]


class Evidence(Study):
    """Rows as they are measured, pictures that later rows are compared with."""

    def __init__(self) -> None:
        super().__init__(NUM_PROMPTS, FEW)
        generator = torch.Generator().manual_seed(SECOND_NOISE)
        self.other_BCHW = torch.randn(TWICE, *self.bench.noise_NCHW.shape[1:], generator=generator)
        self.rows: list[dict[str, Any]] = []
        self.taught: dict[tuple[str, float], np.ndarray] = {}

    def sweep(self, arm: Arm) -> None:
        """Paint at every strength; all figures at that of the headline."""
        for strength in arm.grid:
            main = strength == HEADLINE[arm.knob]
            done = painted(self, arm, strength, other_BCHW=self.other_BCHW if main else None)
            if arm.method == TEACHER:
                self.taught[arm.teacher, strength] = done.images_BHW3
            self._keep(arm, done)

    def _keep(self, arm: Arm, done: Painted, **more: Any) -> None:
        row = done.row | more
        taught = self.taught.get((arm.teacher or "W2SD", row["strength"] if arm.knob == "w" else HEADLINE["w"]))
        if taught is not None and arm.method != TEACHER:
            row |= likeness(done.images_BHW3, taught)
        self.rows.append(row)
        right = values([row]).mean()
        say(f"{named([row])}, seed {arm.seed}, {row['sampler']}, {arm.knob} {row['strength']:g}: {right:.3f}")

    def match(self) -> None:
        """Paint by CFG at the effective guidance of every group of students."""
        for group in groups(self.rows):
            if group[0]["trainable"] or group[0]["method"] == UNTRAINED:
                scale = float(np.mean([row["effective"] for row in headline(group)]))
                arm = matched(scale)
                self._keep(arm, painted(self, arm, arm.grid[0], other_BCHW=self.other_BCHW), of=named(group))

    def resample(self, found: list[Arm]) -> None:
        """Paint by another sampler, CFG with the students."""
        cfg = next(arm for arm in teachers() if arm.method == TEACHER and arm.teacher == "CFG")
        for arm in (cfg, *found):
            self._keep(arm, painted(self, arm, HEADLINE["w"], sampler=OTHER_SAMPLER))

    def agreement(self, arm: Arm) -> dict[str, Any]:
        """Cosines with the teacher's velocity along its path, per noise level: the whole, what guidance adds."""
        from teefusion_core.guidance.cfg import agreement

        where, moves, cond, _ = self.trajectory(arm.teacher or "W2SD", HEADLINE["w"])
        teacher, prompt, _ = arm.prepare(self, self.first, HEADLINE[arm.knob], "euler")
        seen = self.velocities(teacher.model, prompt, where)
        whole = [float(agreement(*at).mean()) for at in zip(seen, moves, strict=True)]
        added = zip(seen, moves, cond, strict=True)
        guidance = [float(agreement(v - c, move - c).nanmean()) for v, move, c in added]
        return {**arm.named, "cosine": packed(whole, 4), "guidance_cosine": packed(guidance, 3)}

    def checkpoints(self, found: list[Arm]) -> list[dict[str, Any]]:
        """Score what is left of the trainings on the way."""
        scored = []
        for arm in found:
            for step, early in _curves.checkpoints(self.base, arm):
                row = painted(self, early, HEADLINE["w"]).row
                scored.append({**arm.named, "step": step, "right": row["right"]})
                say(f"{named([row])}, seed {arm.seed}, step {step}: {values([row]).mean():.3f}")
        return scored

    def embedding(self) -> list[dict[str, Any]]:
        """Embed w by the base, by the first student of each kind that has no layers of its own."""
        from teefusion_core.guidance.methods import METHODS

        fit = {}
        for wanted in WANTED:
            path = student_path(wanted, SEEDS[0])
            if path.is_file() and wanted.method != DICE and not METHODS[wanted.method].embeds:
                fit[named([{**vars(wanted), "budget": told(path).get("steps")}])] = path
        return embeddings(self, fit) if fit else []
