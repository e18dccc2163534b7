"""How far a mean would move with other prompts, by drawing them anew.

Two methods are compared on the same draws, which pairs them prompt by prompt. Where a method is a handful of students,
these are drawn anew as well, so that an interval speaks of the method rather than of its students.

Shapes: D draws, N prompts, K students.
Source: Efron, Bootstrap methods, 1979; intervals are plain percentiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidConfig

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
LEVEL = 0.95


def resamples(num: int, *, draws: int = 2000, seed: int = 0) -> Tensor:
    """Draw `num` of `num` with replacement, many times.

    Args:
        num: prompts or students, 1 or more.
        draws: D.
        seed: the same seed gives the same draws.
    Returns:
        float64 [D,num], how often each was drawn; rows sum to num.
    Raises:
        InvalidConfig: nothing to draw from.
    """
    if num < 1 or draws < 1:
        raise InvalidConfig(f"{draws} draws out of {num} were asked for; give 1 or more of both")
    generator = torch.Generator().manual_seed(seed)
    picks_DN = torch.randint(num, (draws, num), generator=generator)
    ones = torch.ones(picks_DN.shape, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, picks_DN, ones)


def resampled_means(values_KN: Tensor, prompts_DN: Tensor, students_DK: Tensor | None = None) -> Tensor:
    """Mean over prompts with students in every draw.

    Args:
        values_KN: one value for each student with each prompt; nan where a prompt has none.
        prompts_DN: from `resamples`; the same for all methods that are to be compared.
        students_DK: from `resamples`, own for each method; None weighs all students alike.
    Returns:
        float64 [D].
    """
    values_KN = values_KN.to(torch.float64)
    if students_DK is None:
        students_DK = torch.ones(len(prompts_DN), len(values_KN), dtype=torch.float64)
    known_KN = (~values_KN.isnan()).to(torch.float64)
    total_DN = students_DK @ values_KN.nan_to_num(0.0)
    return (total_DN * prompts_DN).sum(1) / ((students_DK @ known_KN) * prompts_DN).sum(1)


def interval(values_D: Tensor, level: float = LEVEL) -> tuple[float, float]:
    """Return the middle share of what the draws gave.

    Args:
        values_D: a statistic in every draw.
        level: share inside, 0.95 leaves a fortieth out at either end.
    """
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(values_D.to(torch.float64), ends).tolist()
    return low, high


def verdict(low: float, high: float, threshold: float = 0.0) -> str:
    """Say what an interval says of the claim that a quantity lies above a threshold.

    Returns:
        HOLDS where all of it lies above, FAILS where all of it lies below, else UNDECIDED.
    """
    if low > threshold:
        return HOLDS
    return FAILS if high < threshold else UNDECIDED
