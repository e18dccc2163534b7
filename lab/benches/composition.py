"""What users combine a sampler with, beside the nodes of this pack: cells of tests/host/test_composition.py."""

from __future__ import annotations

from typing import Any

from ._tested import by_row, of_this_host

COLUMNS = ("student", "Z-Sampling", "W2SD, LoRA gap")
REFUSED = "refused: "


def measure() -> dict[str, Any]:
    """Return the cells on this host, beside those of hosts before."""
    return of_this_host("composition")


def reasons(result: dict[str, Any]) -> list[str]:
    """Every reason of a refusal, once, in order."""
    outcomes = [cell[2] for cells in result["hosts"].values() for cell in cells]
    return list(dict.fromkeys(o.removeprefix(REFUSED) for o in outcomes if o.startswith(REFUSED)))


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line for each thing, one cell for each host."""
    hosts, why = {host: by_row(cells) for host, cells in result["hosts"].items()}, reasons(result)
    lines = [["with", *(f"{column}, {host}" for column in COLUMNS for host in hosts)]]
    for row in dict.fromkeys(row for cells in hosts.values() for row in cells):
        outcomes = [hosts[host].get(row, {}).get(column, "not tried") for column in COLUMNS for host in hosts]
        lines.append([row, *(_short(outcome, why) for outcome in outcomes)])
    return lines


def _short(outcome: str, why: list[str]) -> str:
    if not outcome.startswith(REFUSED):
        return outcome
    return f"refused ({why.index(outcome.removeprefix(REFUSED)) + 1})"


def reason_table(result: dict[str, Any]) -> list[list[str]]:
    """Return the reasons by number."""
    return [["", "why"], *([str(n), reason] for n, reason in enumerate(reasons(result), start=1))]
