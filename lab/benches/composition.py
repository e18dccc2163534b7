"""What works together with the samplers of this pack: the cells of tests/host/test_composition.py."""

from __future__ import annotations

from functools import partial
from typing import Any

from ._host_tests import cells_of_this_host, outcomes

COLUMNS = ("student", "Z-Sampling", "W2SD, LoRA gap")
REFUSED = "refused: "
measure = partial(cells_of_this_host, "composition")


def _reasons(result: dict[str, Any]) -> list[str]:
    """Return every reason for a refusal once, in order."""
    found = [outcome for cells in result["hosts"].values() for _, _, outcome in cells]
    return list(dict.fromkeys(o.removeprefix(REFUSED) for o in found if o.startswith(REFUSED)))


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading and one line for each feature, one cell for each host."""
    (rows, hosts), why = outcomes(result), _reasons(result)

    def cell(row: str, column: str, host: str) -> str:
        outcome = hosts[host].get((row, column), "not tried")
        if not outcome.startswith(REFUSED):
            return outcome
        return f"refused ({why.index(outcome.removeprefix(REFUSED)) + 1})"

    head = ["with", *(f"{column}, {host}" for column in COLUMNS for host in hosts)]
    return [head, *([row, *(cell(row, column, host) for column in COLUMNS for host in hosts)] for row in rows)]


def reason_table(result: dict[str, Any]) -> list[list[str]]:
    """Return the reasons by number."""
    return [["", "why"], *([str(n), reason] for n, reason in enumerate(_reasons(result), start=1))]
