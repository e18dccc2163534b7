"""Table of image scores."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreTable:
    """A row per image, a column per metric."""

    pictures: Sequence[str]
    """Name of each image: a number or a file name."""
    prompts: Sequence[str]
    scores: Mapping[str, Sequence[float]]

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over all images."""
        return {name: sum(values) / len(values) for name, values in self.scores.items()}

    def text(self) -> str:
        """Return the table as Markdown; the last row has the means."""
        lines = [_row(["image", "prompt", *self.scores]), _row(["---"] * (2 + len(self.scores)))]
        for number, (picture, prompt) in enumerate(zip(self.pictures, self.prompts, strict=True)):
            values = (f"{values[number]:.4f}" for values in self.scores.values())
            lines.append(_row([picture, prompt.replace("|", "/"), *values]))
        lines.append(_row(["mean", "", *(f"{mean:.4f}" for mean in self.means().values())]))
        return "\n".join(lines)

    def json(self) -> str:
        """Return the table as JSON in full precision."""
        scores = {name: list(values) for name, values in self.scores.items()}
        whole = {"pictures": list(self.pictures), "prompts": list(self.prompts), "scores": scores}
        return json.dumps({**whole, "means": self.means()}, indent=1)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
