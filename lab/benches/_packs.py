"""Public node packs beside this one: the cells of tests/host/test_packs.py, a row per pack."""

from functools import partial
from typing import Any

from ._host_tests import cells_of_this_host

WORKS = "works"
measure = partial(cells_of_this_host, "packs")


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return a row per pack and ComfyUI: what equals its twin, what does not, and the largest relative difference."""
    rows = [["pack", "version tried", "ComfyUI", "equal to stock parts", "otherwise", "largest relative difference"]]
    for host, cells in result["hosts"].items():
        for pack, version in sorted({(cell[0], cell[1]) for cell in cells}):
            own = [cell for cell in cells if cell[0] == pack]
            equal = [cell for cell in own if cell[4].startswith(WORKS) or cell[4].startswith("nothing")]
            differences = [float(cell[5]) for cell in equal]
            worst = f"{max(differences):.0e}" if differences else ""
            rows.append([pack, version, host, _grouped(equal), _grouped([c for c in own if c not in equal]), worst])
    return rows


def _grouped(cells: list[list[str]]) -> str:
    """Return the nodes with the columns that they were tried in, and with why they do not work."""
    found: dict[str, list[str]] = {}
    for _, _, node, column, outcome, _ in cells:
        text = "" if outcome.startswith(WORKS) else f": {outcome.partition(':')[0]}"
        found.setdefault(node + text, []).append(column.partition(",")[0])
    texts = []
    for key, columns in found.items():
        node, _, outcome = key.partition(": ")
        texts.append(f"{node} ({', '.join(columns)}{'; ' + outcome if outcome else ''})")
    return "; ".join(texts)
