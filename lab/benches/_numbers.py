"""Many numbers on one line of JSON."""

from __future__ import annotations

from collections.abc import Iterable


def packed(values: Iterable[float], digits: int = 3) -> str:
    """Write numbers as one text."""
    return " ".join(f"{value:.{digits}f}" for value in values)


def unpacked(text: str) -> list[float]:
    """Read them back."""
    return [float(word) for word in text.split()]
