"""Bootstrap intervals of means over prompts.

Two methods are compared on the same draws, which pairs them by prompt. If a method has several students, these are
resampled as well, so that the interval is for the method and not for its particular students.

Shapes: D draws, N prompts, K students.
Source: Efron, Bootstrap methods, 1979; intervals are plain percentiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from teefusion_core.errors import InvalidConfig

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
LEVEL = 0.95


def resamples(num: int, *, draws: int = 2000, seed: int = 0) -> Tensor:
    """Return counts of draws of `num` out of `num` with replacement.

    Args:
        num: number of prompts or students, 1 or more.
        draws: number of draws D.
        seed: the same seed gives the same draws.
    Returns:
        float64 [D,num], how often each item was drawn; rows sum to num.
    Raises:
        InvalidConfig: num or draws is below 1.
    """
    if num < 1 or draws < 1:
        raise InvalidConfig(f"there are {draws} draws out of {num} items; use 1 or more of both")
    generator = torch.Generator().manual_seed(seed)
    picks_DN = torch.randint(num, (draws, num), generator=generator)
    ones = torch.ones(picks_DN.shape, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, picks_DN, ones)


def resampled_means(values_KN: Tensor, prompts_DN: Tensor, students_DK: Tensor | None = None) -> Tensor:
    """Return the mean over prompts and students for every draw.

    Args:
        values_KN: one value per student and prompt; NaN if a prompt has none.
        prompts_DN: from `resamples`; use the same for all methods that are compared.
        students_DK: from `resamples`, separate for each method; None gives all students the same weight.
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
    """Return the percentile interval of a statistic.

    Args:
        values_D: the statistic for every draw.
        level: share of the draws inside the interval.
    """
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(values_D.to(torch.float64), ends).tolist()
    return low, high


def verdict(low: float, high: float, threshold: float = 0.0) -> str:
    """Return the verdict of an interval on the claim that a quantity exceeds a threshold.

    Returns:
        HOLDS if the whole interval lies above, FAILS if it lies below, otherwise UNDECIDED.
    """
    if low > threshold:
        return HOLDS
    return FAILS if high < threshold else UNDECIDED
