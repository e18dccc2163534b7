"""Several strengths of guidance for one prompt and one seed, and the choice of the best one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import InvalidConfig

LINEAR, GEOMETRIC = "linear", "geometric"
SPACINGS = (LINEAR, GEOMETRIC)
MOST = 64
DECIMALS = 2
"""Of a strength, as many as the widgets have."""
CLIPPED = 0.02
"""Share of clipped colors that is worth a warning; images of the demo base with CFG have less than 0.001."""


@dataclass(frozen=True)
class Sweep:
    """Strengths in the order of the images.

    Attributes:
        name: what the strength is called: guidance, or alpha of a sharpener.
        values: the strengths.
        effective: the CFG scale that each is equivalent to, or None where nothing was measured.
    """

    name: str
    values: Sequence[float]
    effective: Sequence[float | None]

    def captions(self) -> list[str]:
        """Return the text for each image."""
        return [
            f"{self.name} {value:g}" + ("" if scale is None else f"\nas CFG {scale:.2f}")
            for value, scale in zip(self.values, self.effective, strict=True)
        ]


def strengths(low: float, high: float, count: int, spacing: str) -> list[float]:
    """Return `count` strengths from low to high, rounded to DECIMALS.

    Args:
        low, high: ends, increasing.
        count: 2 to MOST.
        spacing: LINEAR, or GEOMETRIC with equal ratios, for which low is above 0.
    Raises:
        InvalidConfig: a value is out of range.
    """
    if not 2 <= count <= MOST:
        raise InvalidConfig(f"count is {count}; choose 2 to {MOST}")
    if not (math.isfinite(low) and math.isfinite(high) and 0 <= low < high):
        raise InvalidConfig(f"the sweep goes from {low:g} to {high:g}; give two numbers, 0 or more, the smaller first")
    if spacing not in SPACINGS:
        raise InvalidConfig(f"spacing is {spacing!r}; choose one of {', '.join(SPACINGS)}")
    if spacing == GEOMETRIC and low == 0:
        raise InvalidConfig("a geometric sweep cannot start at 0; start above 0, or choose linear")
    places = [number / (count - 1) for number in range(count)]
    curve = {LINEAR: lambda place: low + (high - low) * place, GEOMETRIC: lambda place: low * (high / low) ** place}
    values = [round(curve[spacing](place), DECIMALS) for place in places]
    if len(set(values)) < count:
        raise InvalidConfig(
            f"{count} strengths from {low:g} to {high:g} are closer together than {10**-DECIMALS:g}; lower count"
        )
    return values


def scores_by_metric(texts: Sequence[str], count: int) -> dict[str, list[float]]:
    """Read scores of Score Images, as one text for all images or one for each.

    Raises:
        InvalidConfig: a text is something else, or the number of images differs.
    """
    found: dict[str, list[float]] = {}
    for text in texts:
        try:
            scores = json.loads(text)["scores"]
            for name, values in scores.items():
                found.setdefault(name, []).extend(math.nan if value is None else float(value) for value in values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidConfig("scores is no result of Score Images; connect its output scores") from error
    if wrong := [len(values) for values in found.values() if len(values) != count]:
        raise InvalidConfig(
            f"scores is for {wrong[0]} images, but the sweep has {count}; score the images of the sweep"
        )
    return found


def best_of(scores: Mapping[str, Sequence[float]]) -> int | None:
    """Return the number of the image with the best mean rank over all metrics, of equal ones the first; None without
    a score."""
    ranks: list[list[int]] = []
    for values in scores.values():
        if all(map(math.isfinite, values)):
            ranks.append([sum(other < value for other in values) for value in values])
    if not ranks:
        return None
    sums = [sum(of_image) for of_image in zip(*ranks, strict=True)]
    return sums.index(max(sums))


def verdict(sweep: Sweep, scores: Mapping[str, Sequence[float]], clipped: Sequence[float]) -> str:
    """Return what the scores and the clipped colors say, for the user."""
    captions, lines = [caption.replace("\n", " ") for caption in sweep.captions()], []
    best = best_of(scores)
    for name, values in scores.items():
        if all(map(math.isfinite, values)):
            own = max(range(len(values)), key=lambda number: values[number])
            lines.append(f"{name}: best at {captions[own]} ({values[own]:.4g}; lowest {min(values):.4g})")
    if best is not None:
        lines.insert(0, f"Best: {captions[best]}" + (", by the mean rank of all scores" if len(scores) > 1 else ""))
        lines.append(
            "One image per strength decides little: try other seeds. HPS and ImageReward also reward guidance that is "
            "too strong, so look at the images."
        )
    if high := [caption for caption, share in zip(captions, clipped, strict=True) if share > CLIPPED]:
        lines.append(f"More than {100 * CLIPPED:g} % clipped colors: {', '.join(high)}.")
    return "\n".join(lines)
