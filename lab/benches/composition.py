"""What works together with the samplers of this pack: the cells of tests/host/test_composition.py."""

from pathlib import Path
from typing import Any

from ._host_tests import cells_of, cells_of_this_host, outcomes
from ._report import machine

COLUMNS = ("student", "Z-Sampling", "W2SD, LoRA gap")
REFUSED = "refused: "
DYNAMIC = "dynamic VRAM"


def measure() -> dict[str, Any]:
    """Return the cells of this ComfyUI, and those with its patcher for dynamic VRAM if it has one."""
    import comfyui_version

    result = cells_of_this_host("composition")
    host = Path(comfyui_version.__file__).parent / "comfy" / "model_patcher.py"
    if "class ModelPatcherDynamic" in host.read_text(encoding="utf-8"):
        cells = cells_of("tests/host/test_composition_dynamic.py")
        result["hosts"][f"{machine()['comfyui']}, {DYNAMIC}"] = cells
    return result


def _reasons(result: dict[str, Any]) -> list[str]:
    found = [outcome for cells in result["hosts"].values() for _, _, outcome in cells]
    return list(dict.fromkeys(o.removeprefix(REFUSED) for o in found if o.startswith(REFUSED)))


def table(result: dict[str, Any]) -> list[list[str]]:
    (rows, hosts), why = outcomes(result), _reasons(result)

    def cell(row: str, column: str, host: str) -> str:
        outcome = hosts[host].get((row, column), "not tried")
        if not outcome.startswith(REFUSED):
            return outcome
        return f"refused ({why.index(outcome.removeprefix(REFUSED)) + 1})"

    head = ["with", *(f"{column}, {host}" for column in COLUMNS for host in hosts)]
    return [head, *([row, *(cell(row, column, host) for column in COLUMNS for host in hosts)] for row in rows)]


def reason_table(result: dict[str, Any]) -> list[list[str]]:
    return [["", "why"], *([str(n), reason] for n, reason in enumerate(_reasons(result), start=1))]
