"""Families of models: cells of tests/host/test_backbones.py."""

from __future__ import annotations

from typing import Any

from ._tested import by_row, of_this_host

COLUMNS = ("family", "conditioning", "trainer", "loader")


def measure() -> dict[str, Any]:
    """Return the cells on this host, beside those of hosts before."""
    return of_this_host("backbones")


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line for each model on each host."""
    lines = [["model", "ComfyUI", *COLUMNS]]
    hosts = {host: by_row(cells) for host, cells in result["hosts"].items()}
    for row in dict.fromkeys(row for cells in hosts.values() for row in cells):
        for host, cells in hosts.items():
            lines.append([row, host, *(cells.get(row, {}).get(column, "") for column in COLUMNS)])
    return lines
