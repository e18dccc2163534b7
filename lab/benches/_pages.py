"""The tables of the pages, rendered from lab/results.

Every table function gives rows of cells, the heading first. A table stands between `<!-- table:NAME -->` with
`<!-- /table -->`; a test compares what stands there with the results.
"""

import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from . import (
    _claims,
    _embedding,
    _negative_prompts,
    _packs,
    _paper_tables,
    alignment,
    blend,
    composition,
    learning,
    negatives,
    obedience,
    real_size,
    sharpening,
    students,
    trainer,
)

Rows = list[list[str]]
Table = Callable[[dict[str, Any]], Rows]
BENCHES = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
OWN: dict[str, Table] = {name: import_module(f"{__package__}.{name}").table for name in BENCHES}
"""Tables called as their bench is."""
PAPER: dict[str, Table] = {
    "claims": _claims.table, "rivals_settings": _paper_tables.settings_table, "rivals": _paper_tables.table,
    "rivals_pictures": _paper_tables.pictures_table, "rivals_matched": _paper_tables.matched_table,
    "ablation": _paper_tables.ablation_table, "teachers": _paper_tables.teacher_table,
    "strength": _paper_tables.sweep_table, "curves": _paper_tables.curve_table,
    "rivals_diagnosis": _paper_tables.diagnosis_table,
    "rivals_velocities": _paper_tables.velocity_table, "rivals_samplers": _paper_tables.sampler_table,
    "embedding": _embedding.table, "rivals_missing": _paper_tables.missing_table,
    "rivals_power": _claims.power_table, "verdicts": _claims.verdict_table,
}  # fmt: skip
TABLES: dict[str, tuple[str, Table]] = {
    **{name: (name, table) for name, table in OWN.items()},
    **{name: ("tables", table) for name, table in PAPER.items()},
    "packs": ("packs", _packs.table), "effective_guidance": ("alignment", alignment.effective_table),
    "students_guidance": ("students", students.guidance_table), "negatives": ("students", _negative_prompts.table),
    "negatives_shipped": ("negatives", negatives.table),
    "negatives_base": ("students", _negative_prompts.base_table),
    "negatives_cause": ("students", _negative_prompts.cause_table),
    "blend_second": ("blend", blend.second_table),
    "learning_levels": ("learning", learning.level_table),
    "obedience_cost": ("obedience", obedience.cost_table),
    "composition_reasons": ("composition", composition.reason_table),
    "real_size_workflows": ("real_size", real_size.workflow_table), "real_size_gap": ("real_size", real_size.gap_table),
    "real_size_training": ("real_size", real_size.training_table),
    "trainer_stock": ("trainer", trainer.stock_table), "trainer_memory": ("trainer", trainer.memory_table),
}  # fmt: skip
PLOTS = {"sharpener_alpha.webp": ("sharpening", sharpening.plot)}
"""Picture in docs/ -> bench, and a function that draws it."""
DOCS = (
    "method",
    "reflection",
    "training",
    "performance",
    "evidence",
    "evidence_report",
    "compatibility",
    "text_arithmetic",
)
PAGES = ("README.md", "README.zh-CN.md", *(f"docs/{name}.md" for name in DOCS))
_BLOCK = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def markdown(rows: Rows) -> str:
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
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        if (new := rendered(text, results)) != text:
            (root / page).write_text(new, encoding="utf-8")
    for name, (bench, plot) in PLOTS.items():
        if (path := results / f"{bench}.json").is_file():
            plot(json.loads(path.read_text(encoding="utf-8"))).save(root / "docs" / name, lossless=True)
