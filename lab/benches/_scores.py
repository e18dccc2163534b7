"""What the rows of the tables say, prompt by prompt, with intervals.

A group is a method with its teacher: the students of its seeds, or one teacher.

Shapes: K students of a group, N prompts, D draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

VALUE = {"1": 1.0, "0": 0.0, "-": float("nan")}
DRAWS = 2000
Row = dict[str, Any]
Group = list[Row]
"""Rows of one group at all strengths."""


def groups(rows: list[Row], **wanted: Any) -> list[Group]:
    """Gather rows sampled by Euler that fit; seeds of one group come together."""
    found: dict[tuple, Group] = {}
    for row in rows:
        if row["sampler"] == "euler" and all(row[name] == value for name, value in wanted.items()):
            found.setdefault((row["method"], row["teacher"], row["trainable"], row["budget"]), []).append(row)
    return list(found.values())


def named(group: Group) -> str:
    """Name a group as a reader would."""
    row = group[0]
    if row["method"] == "teacher":
        return f"{row['teacher']} teacher"
    if not row["trainable"]:
        return row["method"]
    trained = {"lora": "LoRA", "everything": "full"}.get(row["trainable"], row["trainable"])
    spelled = {"teefusion": "TeEFusion", "guidance only": "G(psi(w)) alone", "distillcfg": "DistillCFG", "dice": "DICE",
               "teefusion split": "TeEFusion, split"}  # fmt: skip
    steps = "" if row["budget"] is None else f", {row['budget']} steps"
    return f"{spelled.get(row['method'], row['method'])} of {row['teacher']} ({trained}{steps})"


def strengths(group: Group) -> list[float]:
    """Return the strengths that a group was tried at, ascending."""
    return sorted({row["strength"] for row in group})


def values(rows: list[Row], category: str = "overall") -> Tensor:
    """Return what is right as numbers [K,N]; nan where the prompt claims nothing."""
    return torch.tensor([[VALUE[sign] for sign in row["right"][category]] for row in rows], dtype=torch.float64)


def at(group: Group, strength: float) -> list[Row]:
    """Return the rows of a group at one strength."""
    return [row for row in group if row["strength"] == strength]


def headline(group: Group) -> list[Row]:
    """Return the rows at the strength that all figures are given for."""
    return [row for row in group if "effective" in row]


def own_best(group: Group) -> tuple[Tensor, list[float]]:
    """Let each half of the prompts be scored at the strength that is best on the other half.

    Returns:
        ([K,N], strengths chosen for even, for odd prompts).
    """
    tried = strengths(group)
    by_strength = torch.stack([values(at(group, strength)) for strength in tried])
    out, chosen = torch.empty_like(by_strength[0]), []
    for half in (0, 1):
        best = int(by_strength[:, :, 1 - half :: 2].mean((1, 2)).argmax())
        out[:, half::2] = by_strength[best, :, half::2]
        chosen.append(tried[best])
    return out, chosen


@cache
def _prompts(num: int) -> Tensor:
    from teefusion_core.evaluation.bootstrap import resamples

    return resamples(num, draws=DRAWS, seed=0)


def drawn(values_KN: Tensor) -> Tensor:
    """Mean in every draw [D]: the same prompts, the same seeds of training for all groups."""
    from teefusion_core.evaluation.bootstrap import resampled_means, resamples

    num_students, num_prompts = values_KN.shape
    students_DK = resamples(num_students, draws=DRAWS, seed=1)
    return resampled_means(values_KN, _prompts(num_prompts), students_DK)


def estimate(statistic: Callable[..., Any], *parts: Tensor, threshold: float = 0.0) -> dict[str, Any]:
    """Return a statistic of the groups' means with its interval and verdict.

    Args:
        statistic: takes one mean for each part, numbers or draws [D].
        parts: values [K,N].
        threshold: what it must exceed for the claim to hold.
    """
    from teefusion_core.evaluation.bootstrap import interval, verdict

    low, high = interval(statistic(*(drawn(part) for part in parts)))
    value = float(statistic(*(part.nanmean() for part in parts)))
    return {
        "value": round(value, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "threshold": threshold,
        "verdict": verdict(low, high, threshold),
    }


def mean(values_KN: Tensor) -> dict[str, Any]:
    """Return a mean with its interval."""
    found = estimate(lambda x: x, values_KN)
    return {name: found[name] for name in ("value", "low", "high")}
