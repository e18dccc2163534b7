"""The memory that training takes at the published sizes, by the trainer's own forecast, without weights."""

from dataclasses import dataclass
from itertools import product
from typing import Any

from ._report import say

GIB = 2**30
MODELS: dict[str, dict[str, Any]] = {
    "SD3-medium, bf16": {"name": "SD3-medium"}, "SD3.5-medium, bf16": {"name": "SD3.5-medium"},
    "SD3.5-large, bf16": {"name": "SD3.5-large"},
    "SD3.5-large, fp8": {"name": "SD3.5-large", "dtype": "float8_e4m3fn"},
}  # fmt: skip
CARDS = (8, 12, 16, 24, 32, 48, 80)
"""Memory of graphics cards in GB, of which one is left to the system."""


@dataclass(frozen=True)
class Row:
    model: str
    checkpointing: bool
    size: int
    batch: int


ROWS = [
    *(Row(model, True, size, batch) for model, size, batch in product(MODELS, (512, 1024), (1, 4))),
    *(Row(model, False, 512, 1) for model in MODELS),
]


def measure() -> dict[str, Any]:
    from ._published_sizes import forecast, published

    rows: list[dict[str, Any]] = []
    for name, options in MODELS.items():
        model = published(**options)
        for row in (row for row in ROWS if row.model == name):
            found = forecast(model, checkpointing=row.checkpointing, size=row.size, batch=row.batch)
            rows.append({**vars(row), **found})
            say(str(rows[-1]))
    return {"rows": rows}


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["model", "gradient_checkpointing", "image", "batch_size", "weights", "training", "in all", "fits into"]]
    for row in result["rows"]:
        card = next((size for size in CARDS if row["total"] < (size - 1) * 1e9), None)
        sizes = [row["weights"], row["total"] - row["weights"], row["total"]]
        lines.append([
            row["model"], "on" if row["checkpointing"] else "off", f"{row['size']} px", str(row["batch"]),
            *(f"{size / GIB:.1f} GiB" for size in sizes), f"{card} GB" if card else "no card",
        ])  # fmt: skip
    return lines
