"""Bootstrap intervals of means over prompts.

Two methods are compared on the same draws, which pairs them by prompt. If a method has several students, these are
resampled as well, so that the interval is for the method and not for its particular students.

Shapes: D draws, N prompts, K students.
Source: Efron, Bootstrap methods, 1979; intervals are plain percentiles.
"""

import torch
from torch import Tensor

from teefusion_core.errors import InvalidConfig

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
LEVEL = 0.95


def resamples(num: int, *, draws: int = 2000, seed: int = 0) -> Tensor:
    """Return counts of `draws` draws of `num` out of `num` with replacement, float64 [D,num]; rows sum to num."""
    if num < 1 or draws < 1:
        raise InvalidConfig(f"there are {draws} draws out of {num} items; use 1 or more of both")
    generator = torch.Generator().manual_seed(seed)
    picks_DN = torch.randint(num, (draws, num), generator=generator)
    ones = torch.ones(picks_DN.shape, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, picks_DN, ones)


def resampled_means(values_KN: Tensor, prompts_DN: Tensor, students_DK: Tensor | None = None) -> Tensor:
    """Return the mean over prompts and students for every draw, float64 [D]; a value is NaN where its prompt has none.

    Draws are from `resamples`: those of prompts are the same for all methods that are compared, those of students
    separate for each method; None gives all students the same weight.
    """
    values_KN = values_KN.to(torch.float64)
    if students_DK is None:
        students_DK = torch.ones(len(prompts_DN), len(values_KN), dtype=torch.float64)
    known_KN = (~values_KN.isnan()).to(torch.float64)
    total_DN = students_DK @ values_KN.nan_to_num(0.0)
    return (total_DN * prompts_DN).sum(1) / ((students_DK @ known_KN) * prompts_DN).sum(1)


def interval(values_D: Tensor, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of a statistic, given for every draw; `level` is the share of draws inside."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(values_D.to(torch.float64), ends).tolist()
    return low, high


def verdict(low: float, high: float, threshold: float = 0.0) -> str:
    """Say of an interval whether the quantity exceeds a threshold: all of it above, all of it below, else UNDECIDED."""
    if low > threshold:
        return HOLDS
    return FAILS if high < threshold else UNDECIDED
