"""The training of a student: its losses and its checkpoints."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lab.demo_world.distill_student import STUDENTS, Recipe
from teefusion_core.files.state_file import read_tree
from teefusion_core.files.student_file import read_student, write_student
from teefusion_core.guidance.architectures import architecture_of
from teefusion_core.guidance.methods import METHODS
from teefusion_core.training.adapters import TRAINABLE

from . import _methods
from ._bootstrap import resamples
from ._methods import Arm, Wanted, student_arm, training_record
from ._report import packed, unpacked
from ._scores import judged_interval

POINTS = 100
"""Points of a curve: each is the mean of a hundredth of the steps."""
QUARTER, MARGIN = 0.25, 4
"""Share of the steps that counts as early, and number of points to average at each place."""
EARLY = 0.5
"""Share of the total decrease in loss that must be early for the claim to hold."""


def losses() -> list[dict[str, Any]]:
    found = []
    for wanted in _methods.WANTED:
        for seed in _methods.SEEDS:
            record = training_record(_methods.student_path(wanted, seed))
            if len(record.get("losses", ())) >= POINTS:
                curve = torch.tensor(record["losses"]).tensor_split(POINTS)
                cost = {"budget": record["steps"], "seconds": record.get("seconds")}
                found.append({**vars(wanted), "seed": seed, **cost, "losses": packed(part.mean() for part in curve)})
    return found


def early_share(curves: list[dict[str, Any]]) -> dict[str, Any]:
    """Estimate the share of the decrease in loss in the first quarter of the steps, as a mean over students.

    The bootstrap draws students, then points around start, quarter and end, because a single point is noisy.
    """
    curves_KP = torch.tensor([unpacked(curve["losses"]) for curve in curves], dtype=torch.float64)
    middle = int(QUARTER * POINTS)
    places = slice(0, 2), slice(middle - MARGIN, middle), slice(-MARGIN, None)
    parts = [curves_KP[:, place] for place in places]
    weights_DK = resamples(len(curves_KP), seed=1) / len(curves_KP)
    drawn = []
    for index, part_KP in enumerate(parts):
        points_DP = resamples(part_KP.shape[1], seed=2 + index) / part_KP.shape[1]
        drawn.append(torch.einsum("dk,kp,dp->d", weights_DK, part_KP, points_DP))

    def share(start, quarter, end):
        return (start - quarter) / (start - end)

    return judged_interval(float(share(*(part.mean() for part in parts))), share(*drawn), EARLY)


def checkpoints(base: Any, arm: Arm) -> Iterator[tuple[int, Arm]]:
    """Yield the checkpoints of a training run: finished steps, and an arm that samples that student.

    Only a LoRA without additional layers can be read from a checkpoint.
    """
    wanted = Wanted(arm.method, arm.teacher, arm.trainable)
    recipe = wanted.recipe(arm.seed or 0)
    recipe = replace(recipe, rank=training_record(recipe.student).get("rank", recipe.rank))
    info = read_student(recipe.student)[1]
    if info.method not in METHODS or METHODS[info.method].embeds or arm.trainable != "lora":
        return
    for folder in sorted((STUDENTS / "runs" / recipe.name).glob("step-*")):
        step = int(folder.name.removeprefix("step-"))
        if (folder / "average.safetensors").is_file() and 0 < step < info.step:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / f"{recipe.name}.safetensors"
                write_student(path, _averaged(base, recipe, folder), replace(info, step=step))
                yield step, student_arm(wanted, recipe.seed, path, arm.budget)


def _averaged(base: Any, recipe: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    network = base.model.diffusion_model
    update = TRAINABLE[recipe.trainable](network, architecture_of(network), recipe.rank, recipe.seed)
    stored = read_tree(folder / "average.safetensors")
    with torch.no_grad():
        for name, weight in update.named_parameters():
            weight.copy_(stored[name])
    return update.state()
