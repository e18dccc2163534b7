"""Which learning rate suits each method: the same rates for all, short trainings from the same walks.

The search that stands behind the rivals of docs/evidence.md: no method has had another one. Each training is the
beginning of a student as its recipe has it, with its schedule over that many steps.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

from runner.stop import say

RATES = (3e-4, 1e-3, 3e-3)
STEPS, LAST = 150, 25
"""Of a training; how many of its last losses are averaged."""


@dataclass(frozen=True)
class Tried:
    """A kind of student whose rate is searched; names of a recipe in tiny_sd3.distill_student."""

    method: str
    trainable: str = "lora"


TRIED = (Tried("teefusion"), Tried("w alone"), Tried("distillcfg"), Tried("teefusion split"), Tried("dice"),
         Tried("teefusion", "everything"))  # fmt: skip


def measure() -> dict[str, Any]:
    """Return the loss that each method ends with at each rate; trainings that stand are not repeated."""
    from tiny_sd3.distill_student import LEARNING_RATE, Recipe, distilled

    rows = []
    for tried in TRIED:
        for rate in RATES:
            recipe = Recipe("W2SD", tried.trainable, tried.method, steps=STEPS, lr=rate)
            losses = json.loads(distilled(recipe).with_suffix(".json").read_text())["losses"]
            row = {**vars(tried), "rate": rate, "loss": statistics.fmean(losses[-LAST:])}
            rows.append({**row, "taken": LEARNING_RATE[recipe.learned]})
            say(f"{tried.method} {tried.trainable} {rate:g}: {row['loss']:.3f}")
    return {"settings": {"steps": STEPS, "last": LAST, "rates": RATES}, "rows": rows}


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per kind of student: loss by rate, the rate that its students are trained with."""
    rates = result["settings"]["rates"]
    lines = [["method", "trained", *(f"rate {rate:g}" for rate in rates), "taken"]]
    kinds = dict.fromkeys((row["method"], row["trainable"]) for row in result["rows"])
    for method, trainable in kinds:
        own = [row for row in result["rows"] if (row["method"], row["trainable"]) == (method, trainable)]
        trained = "sharpener" if method == "dice" else {"lora": "LoRA", "everything": "full"}[trainable]
        lines.append([method, trained, *(f"{row['loss']:.2f}" for row in own), f"{own[0]['taken']:g}"])
    return lines
