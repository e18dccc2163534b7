"""Shares of right images, as `scripts/bench.py alignment` has measured them."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "alignment.json"
METHODS = {"Unguided": "CFG", "CFG": "CFG", "W2SD": "W2SD teacher", "Student": "TeEFusion student"}
"""Method of template 01 -> its name in RESULTS."""


def scored() -> tuple[int, dict[tuple[str, float], float]]:
    """Return the number of prompts, and the share by method of template 01 and CFG scale, or 1 + w for a student."""
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    shares = {(row["method"], _cfg_scale(row)): row["overall"] for row in result["rows"]}
    named = {
        (name, scale): share for name, of in METHODS.items() for (found, scale), share in shares.items() if of == found
    }
    return result["settings"]["prompts"], named


def _cfg_scale(row: dict[str, Any]) -> float:
    """Return the CFG scale of a row; a student and its teacher have a guidance w instead, which stands for 1 + w."""
    return float(row["cfg"] if row["w"] is None else 1 + row["w"])
