"""Which learning rate suits each method: the same rates for all, in short training runs on the same trajectories.

This is the search behind the comparison in docs/evidence.md; it is the same for every method. Each run follows the
recipe of a student, with fewer steps and the schedule shortened to them.
"""

import json
import statistics
from dataclasses import replace
from typing import Any

from runner.stop import say

from lab.demo_world.distill_student import LEARNING_RATE, distilled

from ._methods import WANTED
from ._scores import by_kind, named

RATES = (3e-4, 1e-3, 3e-3)
STEPS, LAST = 150, 25
"""Steps of a training run, and number of its last losses that are averaged."""
TEACHER = "W2SD"
"""The teacher of every student that is tried."""


def measure() -> dict[str, Any]:
    """Return the loss that each method ends with at each rate; finished runs are not repeated."""
    rows = []
    for wanted in (wanted for wanted in WANTED if wanted.teacher == TEACHER):
        for rate in RATES:
            recipe = replace(wanted.recipe(0), steps=STEPS, learning_rate=rate, calibration=0)
            losses = json.loads(distilled(recipe).with_suffix(".json").read_text())["losses"]
            row = {**vars(wanted), "budget": STEPS, "rate": rate, "loss": statistics.fmean(losses[-LAST:])}
            rows.append({**row, "taken": LEARNING_RATE[recipe.learned]})
            say(f"{named([row])} {rate:g}: {row['loss']:.3f}")
    return {"settings": {"steps": STEPS, "last": LAST, "rates": RATES}, "rows": rows}


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["student", *(f"rate {rate:g}" for rate in result["settings"]["rates"]), "taken"]]
    for own in by_kind(result["rows"]):
        lines.append([named(own), *(f"{row['loss']:.2f}" for row in own), f"{own[0]['taken']:g}"])
    return lines
