"""The tables of the pages, rendered from lab/results.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`; a test compares it with the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import (
    _claims,
    _embedding,
    _negative_prompts,
    _paper_tables,
    alignment,
    backbones,
    blend,
    composition,
    demo,
    import_time,
    overhead,
    rates,
    reflection,
    reflection_cost,
    soak,
    students,
    trainer,
)  # fmt: skip

Rows = list[list[str]]
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], Rows]]] = {
    "demo": ("demo", demo.table),
    "alignment": ("alignment", alignment.table),
    "effective_guidance": ("alignment", alignment.effective_table),
    "overhead": ("overhead", overhead.table),
    "reflection": ("reflection", reflection.table),
    "reflection_cost": ("reflection_cost", reflection_cost.table),
    "students": ("students", students.table),
    "students_guidance": ("students", students.guidance_table),
    "negatives": ("students", _negative_prompts.table),
    "negatives_base": ("students", _negative_prompts.base_table),
    "negatives_cause": ("students", _negative_prompts.cause_table),
    "rates": ("rates", rates.table),
    "claims": ("tables", _claims.table),
    "rivals_settings": ("tables", _paper_tables.settings_table),
    "rivals": ("tables", _paper_tables.table),
    "rivals_pictures": ("tables", _paper_tables.pictures_table),
    "rivals_matched": ("tables", _paper_tables.matched_table),
    "ablation": ("tables", _paper_tables.ablation_table),
    "teachers": ("tables", _paper_tables.teacher_table),
    "strength": ("tables", _paper_tables.sweep_table),
    "curves": ("tables", _paper_tables.curve_table),
    "checkpoints": ("tables", _paper_tables.checkpoint_table),
    "rivals_diagnosis": ("tables", _paper_tables.diagnosis_table),
    "rivals_velocities": ("tables", _paper_tables.velocity_table),
    "rivals_samplers": ("tables", _paper_tables.sampler_table),
    "embedding": ("tables", _embedding.table),
    "rivals_missing": ("tables", _paper_tables.missing_table),
    "composition": ("composition", composition.table),
    "composition_reasons": ("composition", composition.reason_table),
    "backbones": ("backbones", backbones.table),
    "soak": ("soak", soak.table),
    "import_time": ("import_time", import_time.table),
    "blend": ("blend", blend.table),
    "trainer": ("trainer", trainer.table),
    "trainer_stock": ("trainer", trainer.stock_table),
    "trainer_memory": ("trainer", trainer.memory_table),
}
DOCS = ("method", "reflection", "training", "evidence", "compatibility", "text_arithmetic")
PAGES = ("README.md", "README.zh-CN.md", *(f"docs/{name}.md" for name in DOCS))
_BLOCK = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def markdown(rows: Rows) -> str:
    """Return rows as a Markdown table; the first row is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def rendered(text: str, results: Path) -> str:
    """Return the text with every table filled from the results; a table without results is not changed."""

    def fill(match: re.Match[str]) -> str:
        bench, rows = TABLES[match[2]]
        path = results / f"{bench}.json"
        if not path.is_file():
            return match[0]
        return match[1] + markdown(rows(json.loads(path.read_text(encoding="utf-8")))) + match[3]

    return _BLOCK.sub(fill, text)


def update(root: Path, results: Path) -> None:
    """Write the tables into the pages."""
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        if (new := rendered(text, results)) != text:
            (root / page).write_text(new, encoding="utf-8")
