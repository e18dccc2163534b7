"""Public node packs beside this one: the cells of tests/host/test_packs.py, a row per pack."""

from functools import partial
from typing import Any

from ._host_tests import cells_of_this_host

WORKS = "works"
measure = partial(cells_of_this_host, "packs", "packs_gguf")


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return a row per pack and ComfyUI: what equals its twin, what does not, and the largest relative difference."""
    rows = [["pack", "version tried", "ComfyUI", "equal to stock parts", "otherwise", "largest relative difference"]]
    for host, cells in result["hosts"].items():
        for pack, version in sorted({(cell[0], cell[1]) for cell in cells}):
            own = [cell for cell in cells if cell[0] == pack]
            equal = [cell for cell in own if cell[4].startswith(WORKS) or cell[4].startswith("nothing")]
            differences = [float(cell[5]) for cell in equal]
            worst = f"{max(differences):.0e}" if any(differences) else "0" if differences else ""
            rows.append([pack, version, host, _grouped(equal), _grouped([c for c in own if c not in equal]), worst])
    return rows


def _grouped(cells: list[list[str]]) -> str:
    """Return the nodes behind the columns that they were tried in, and behind how they do not work."""
    tried: dict[tuple[str, str], list[str]] = {}
    for _, _, node, column, outcome, _ in cells:
        text = "" if outcome.startswith(WORKS) else outcome.partition(":")[0]
        tried.setdefault((node, text), []).append(column.partition(",")[0])
    nodes: dict[str, list[str]] = {}
    for (node, text), columns in tried.items():
        nodes.setdefault(", ".join(dict.fromkeys(columns)) + (f" ({text})" if text else ""), []).append(node)
    return "<br>".join(f"{where}: {'; '.join(found)}" for where, found in nodes.items())
