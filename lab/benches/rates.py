"""Which learning rate suits each method: the same rates for all, short trainings from the same trajectories.

The search that stands behind the rivals of docs/evidence.md: no method has had another one. Each training is the
beginning of a student as its recipe has it, with its schedule over that many steps.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from runner.stop import say

from ._arms import WANTED, recipe_of
from ._scores import named

RATES = (3e-4, 1e-3, 3e-3)
STEPS, LAST = 150, 25
"""Of a training; how many of its last losses are averaged."""
TEACHER = "W2SD"
"""Of every student that is tried; all methods are taught by it."""


def measure() -> dict[str, Any]:
    """Return the loss that each method ends with at each rate; trainings that stand are not repeated."""
    from lab.demo_world.distill_student import LEARNING_RATE, distilled

    rows = []
    for wanted in (wanted for wanted in WANTED if wanted.teacher == TEACHER):
        for rate in RATES:
            recipe = recipe_of(wanted, 0, steps=STEPS, learning_rate=rate)
            losses = json.loads(distilled(recipe).with_suffix(".json").read_text())["losses"]
            row = {**vars(wanted), "budget": STEPS, "rate": rate, "loss": statistics.fmean(losses[-LAST:])}
            rows.append({**row, "taken": LEARNING_RATE[recipe.learned]})
            say(f"{named([row])} {rate:g}: {row['loss']:.3f}")
    return {"settings": {"steps": STEPS, "last": LAST, "rates": RATES}, "rows": rows}


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per kind of student: loss by rate, the rate that its students are trained with."""
    rates = result["settings"]["rates"]
    lines = [["student", *(f"rate {rate:g}" for rate in rates), "taken"]]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        kinds.setdefault(named([row]), []).append(row)
    for name, own in kinds.items():
        lines.append([name, *(f"{row['loss']:.2f}" for row in own), f"{own[0]['taken']:g}"])
    return lines
