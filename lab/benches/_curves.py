"""How a student came to be: the losses that its training noted, what its checkpoints paint."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ._arms import SEEDS, WANTED, Arm, Wanted, recipe_of, student_arm, student_path, told
from ._report import packed, unpacked

POINTS = 100
"""Of a curve: a point is the mean of a hundredth of the steps."""
QUARTER, MARGIN = 0.25, 4
"""Share of the training that is called early; points to average over at each place."""
EARLY = 0.5
"""Share of the whole fall in loss that must have come by then to be called fast."""


def losses() -> list[dict[str, Any]]:
    """Return one curve for each student that is there."""
    found = []
    for wanted in WANTED:
        for seed in SEEDS:
            noted = told(student_path(wanted, seed))
            if len(noted.get("losses", ())) >= POINTS:
                curve = torch.tensor(noted["losses"]).tensor_split(POINTS)
                names = {"method": wanted.method, "teacher": wanted.teacher, "trainable": wanted.trainable}
                cost = {"budget": noted["steps"], "seconds": noted.get("seconds")}
                found.append({**names, "seed": seed, **cost, "losses": packed(part.mean() for part in curve)})
    return found


def early_share(curves: list[dict[str, Any]]) -> dict[str, Any]:
    """Tell what share of the fall in loss came in the first quarter of the steps, mean over students.

    The bootstrap draws students, then points around start, quarter, end, since a single point is noisy.
    """
    from teefusion_core.evaluation.bootstrap import interval, resamples, verdict

    curves_KP = torch.tensor([unpacked(curve["losses"]) for curve in curves], dtype=torch.float64)
    middle = int(QUARTER * POINTS)
    places = {"start": slice(0, 2), "quarter": slice(middle - MARGIN, middle), "end": slice(-MARGIN, None)}
    parts = [curves_KP[:, place] for place in places.values()]
    weights_DK = resamples(len(curves_KP), seed=1) / len(curves_KP)

    def share(start, quarter, end):
        return (start - quarter) / (start - end)

    drawn = []
    for index, part_KP in enumerate(parts):
        points_DP = resamples(part_KP.shape[1], seed=2 + index) / part_KP.shape[1]
        drawn.append(torch.einsum("dk,kp,dp->d", weights_DK, part_KP, points_DP))
    low, high = interval(share(*drawn))
    value = float(share(*(part.mean() for part in parts)))
    return {
        "value": round(value, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "threshold": EARLY,
        "verdict": verdict(low, high, EARLY),
    }


def checkpoints(base: Any, arm: Arm) -> Iterator[tuple[int, Arm]]:
    """Go through what is left of a training on the way: finished steps with an arm that samples that student.

    Only a LoRA without layers of its own can be taken out of a checkpoint.
    """
    from lab.demo_world.distill_student import STUDENTS
    from teefusion_core.files.student_file import read_student, write_student
    from teefusion_core.guidance.methods import METHODS

    wanted = Wanted(arm.method, arm.teacher, arm.trainable)
    recipe = recipe_of(wanted, arm.seed or 0)
    recipe = replace(recipe, rank=told(recipe.student).get("rank", recipe.rank))
    info = read_student(recipe.student)[1]
    if METHODS[info.method].embeds or arm.trainable != "lora":
        return
    for folder in sorted((STUDENTS / "runs" / recipe.name).glob("step-*")):
        step = int(folder.name.removeprefix("step-"))
        if not (folder / "average.safetensors").is_file() or not 0 < step < info.step:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{recipe.name}.safetensors"
            write_student(path, _tensors(base, recipe, folder), replace(info, step=step))
            yield step, student_arm(wanted, recipe.seed, path, arm.budget)


def _tensors(base: Any, recipe: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The moving average of a checkpoint as a student file has it."""
    from teefusion_core.files.state_file import read_tree
    from teefusion_core.guidance.architectures import architecture_of
    from teefusion_core.training.adapters import TRAINABLE

    network = base.model.diffusion_model
    update = TRAINABLE[recipe.trainable](network, architecture_of(network), recipe.rank, recipe.seed)
    stored = read_tree(folder / "average.safetensors")
    with torch.no_grad():
        for name, weight in update.named_parameters():
            weight.copy_(stored[name])
    return update.state()
