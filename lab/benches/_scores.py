"""Scores of the rows of the tables, prompt by prompt, with intervals.

A group is a method with its teacher: the students of its seeds, or one teacher.

Shapes: K students of a group, N prompts, D draws.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ._bootstrap import UNDECIDED, interval, resampled_means, resamples, verdict

VALUE = {"1": 1.0, "0": 0.0, "-": float("nan")}
SPELLED = {"teefusion": "TeEFusion", "guidance only": "G(psi(w)) alone", "distillcfg": "DistillCFG", "dice": "DICE",
           "teefusion split": "TeEFusion, split", "guidance lora": "guidance LoRA", "lora": "LoRA",
           "everything": "full"}  # fmt: skip
DRAWS = 2000
NORMAL = 1.96
"""Half the length of a 95 % interval in standard deviations."""
KIND = ("method", "teacher", "trainable", "budget")
"""The fields that the rows of a group share."""
Row = dict[str, Any]
Group = list[Row]
"""Rows of one group at all strengths."""


def by_kind(rows: list[Row], *names: str, **wanted: Any) -> list[Group]:
    """Group the matching rows by KIND, or by the given names."""
    found: dict[tuple, Group] = {}
    for row in rows:
        if all(row[name] == value for name, value in wanted.items()):
            found.setdefault(tuple(row[name] for name in names or KIND), []).append(row)
    return list(found.values())


def groups(rows: list[Row], **wanted: Any) -> list[Group]:
    """Group the matching rows that were sampled with Euler; the seeds of a group stay together."""
    return by_kind(rows, sampler="euler", **wanted)


def named(group: Group) -> str:
    row = group[0]
    if row["method"] == "teacher":
        return f"{row['teacher']} teacher"
    if not row["trainable"]:
        return row["method"]
    method, trained = (SPELLED.get(row[name], row[name]) for name in ("method", "trainable"))
    steps = "" if row["budget"] is None else f", {row['budget']} steps"
    return f"{method} of {row['teacher']} ({trained}{steps})"


def strengths(group: Group) -> list[float]:
    return sorted({row["strength"] for row in group})


def values(rows: list[Row], category: str = "overall") -> Tensor:
    """Return what is right as numbers [K,N]; NaN if the prompt claims nothing."""
    return torch.tensor([[VALUE[sign] for sign in row["right"][category]] for row in rows], dtype=torch.float64)


def at(group: Group, strength: float) -> list[Row]:
    return [row for row in group if row["strength"] == strength]


def headline(group: Group) -> list[Row]:
    """Return the rows at the strength of the main tables."""
    return [row for row in group if "effective" in row]


def uncalibrated(group: Group) -> list[Row]:
    """Return the rows at that strength as they are without the calibration of the students; teachers have none."""
    return [{**row, "right": row.get("uncalibrated", row["right"])} for row in headline(group)]


def own_best(group: Group) -> tuple[Tensor, list[float]]:
    """Let each half of the prompts be scored at the strength that is best on the other; give [K,N], both strengths."""
    tried = strengths(group)
    by_strength = torch.stack([values(at(group, strength)) for strength in tried])
    out, chosen = torch.empty_like(by_strength[0]), []
    for half in (0, 1):
        best = int(by_strength[:, :, 1 - half :: 2].mean((1, 2)).argmax())
        out[:, half::2] = by_strength[best, :, half::2]
        chosen.append(tried[best])
    return out, chosen


@cache
def _prompt_draws(num: int) -> Tensor:
    """Return the same draws for all methods, so that they are compared prompt by prompt."""
    return resamples(num, draws=DRAWS, seed=0)


def estimate(statistic: Callable[..., Any], *parts: Tensor, threshold: float = 0.0) -> dict[str, Any]:
    """Return a statistic of the groups' means, which takes numbers or draws [D], with its interval and verdict.

    One that is undecided has the number of prompts that would decide it, see `prompts_to_decide`.
    """
    value = float(statistic(*(part.nanmean() for part in parts)))
    found = judged_interval(value, statistic(*_drawn(parts)), threshold)
    if found["verdict"] == UNDECIDED:
        found["prompts"] = prompts_to_decide(statistic, *parts, distance=abs(value - threshold))
    return found


def prompts_to_decide(statistic: Callable[..., Any], *parts: Tensor, distance: float) -> int | None:
    """Return how many prompts make half the interval as long as a distance; None if more seeds are needed first.

    The variance of a statistic is a part that falls with the number of prompts, and a part that falls with the number
    of seeds; the seeds are those of the parts [K,N].
    """
    of_prompts, of_seeds = (
        float(statistic(*_drawn(parts, **fixed)).var()) for fixed in ({"seeds": False}, {"prompts": False})
    )
    left = (distance / NORMAL) ** 2 - of_seeds
    return math.ceil(parts[0].shape[1] * of_prompts / left) if left > 0 else None


def _drawn(parts: Sequence[Tensor], *, prompts: bool = True, seeds: bool = True) -> list[Tensor]:
    """Return the mean of each part for every draw [D], of prompts and of seeds or of one of them."""
    means = []
    for part_KN in parts:
        draws_DN = _prompt_draws(part_KN.shape[1]) if prompts else torch.ones(DRAWS, part_KN.shape[1]).double()
        means.append(
            resampled_means(part_KN, draws_DN, resamples(len(part_KN), draws=DRAWS, seed=1) if seeds else None)
        )
    return means


def judged_interval(value: float, drawn_D: Tensor, threshold: float) -> dict[str, Any]:
    """Return a value with the interval of its draws, and the verdict on the claim that it exceeds the threshold."""
    low, high = interval(drawn_D)
    return {"value": value, "low": low, "high": high, "threshold": threshold, "verdict": verdict(low, high, threshold)}


def gain_text(right: Tensor, none: Tensor, best: Tensor) -> str:
    """Write the share of the gain from no guidance to `best` that is kept, with its interval."""
    return interval_text(estimate(lambda a, b, c: (a - b) / (c - b), right, none, best))


def interval_text(found: dict[str, Any], sign: str = "") -> str:
    """Write a value with its interval; "+" as sign shows it always."""
    return f"{found['value']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


def mean_text(values_KN: Tensor) -> str:
    return interval_text(estimate(lambda x: x, values_KN))
