"""Tensors that are no result, because they hold NaN or infinite values."""

from collections.abc import Sequence

from torch import Tensor

NAMED = 5
"""Number of rows that a message lists."""


def not_finite(rows: Tensor) -> list[int]:
    """Return which rows of a tensor [B, ...] hold NaN or infinite values, counted from 1."""
    if not rows.is_floating_point():
        return []
    broken_B = ~rows.isfinite().flatten(1).all(1) if rows.ndim > 1 else ~rows.isfinite()
    return [number + 1 for number in broken_B.nonzero().flatten().tolist()]


def numbered(what: str, numbers: Sequence[int]) -> str:
    """Return e.g. "image 2" or "images 2, 3, 5, 7, 9 and 4 more"."""
    listed = ", ".join(str(number) for number in numbers[:NAMED])
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"{what}{'s' if len(numbers) > 1 else ''} {listed}{more}"
