"""Table of image scores."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreTable:
    """A row per image, a column per metric."""

    pictures: Sequence[str]
    """Name of each image: a number or a file name."""
    prompts: Sequence[str]
    scores: Mapping[str, Sequence[float]]

    notes: Sequence[str] = ()
    """What a reader must know beside the numbers."""

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over all images; NaN if an image has no score."""
        return {name: sum(values) / len(values) for name, values in self.scores.items()}

    def text(self) -> str:
        """Return the table as Markdown; the last row has the means, and notes follow."""
        lines = [_row(["image", "prompt", *self.scores]), _row(["---"] * (2 + len(self.scores)))]
        for number, (picture, prompt) in enumerate(zip(self.pictures, self.prompts, strict=True)):
            values = (_shown(values[number]) for values in self.scores.values())
            lines.append(_row([picture, prompt.replace("|", "/"), *values]))
        lines.append(_row(["mean", "", *(_shown(mean) for mean in self.means().values())]))
        notes = [*self.notes, *self._without_score()]
        return "\n".join([*lines, *([""] if notes else []), *notes])

    def json(self) -> str:
        """Return the table as JSON in full precision; a score that is NaN or infinite is null."""
        scores = {name: [_or_null(value) for value in values] for name, values in self.scores.items()}
        means = {name: _or_null(mean) for name, mean in self.means().items()}
        whole = {"pictures": list(self.pictures), "prompts": list(self.prompts), "scores": scores, "means": means}
        notes = [*self.notes, *self._without_score()]
        return json.dumps({**whole, **({"notes": notes} if notes else {})}, indent=1, allow_nan=False)

    def _without_score(self) -> list[str]:
        """Return a line per metric that is NaN or infinite for some image."""
        lines = []
        for name, values in self.scores.items():
            lost = [picture for picture, value in zip(self.pictures, values, strict=True) if not math.isfinite(value)]
            if lost:
                lines.append(f"{name} is NaN or infinite for {', '.join(lost)}, so it has no mean.")
        return lines


def _shown(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "NaN"


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
