"""How long a starting ComfyUI waits for this pack, beyond torch and its own modules.

python lab/benches/import_time.py FOLDER_OF_COMFYUI FOLDER_OF_THE_PACK TIMES    prints what one process measured
"""

import asyncio
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TIMES = 10
TARGET_MS = 50


def measure() -> dict[str, Any]:
    """Return the median of loading the pack TIMES times into a host that has loaded its own nodes.

    The source is compiled already, as after the first start. The processor time is what counts, because the wall clock
    also includes the other work of a busy machine.
    """
    root = Path(__file__).resolve().parents[2]
    run = [sys.executable, __file__, os.environ["COMFYUI_PATH"], str(root), str(TIMES)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(run, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    wall, busy = (round(statistics.median(found.pop(name)), 1) for name in ("wall_ms", "busy_ms"))
    verdict = {"target_ms": TARGET_MS, "met": busy <= TARGET_MS}
    return {"times": TIMES, "wall_ms": wall, "busy_ms": busy, **found, **verdict}


def table(result: dict[str, Any]) -> list[list[str]]:
    head = ["times", "ms of the processor (median)", "on the wall", "modules", "of other libraries"]
    times = [f"{result[name]:.0f}" for name in ("busy_ms", "wall_ms")]
    return [head, [str(result["times"]), *times, str(result["ours"]), str(len(result["others"]))]]


def _start_comfyui(comfyui: str) -> None:
    """Import what ComfyUI imports before it loads custom nodes."""
    sys.path.insert(0, comfyui)
    sys.argv = ["main.py", "--cpu", "--disable-api-nodes"]
    import comfy.options

    comfy.options.enable_args_parsing()
    for name in ("utils.extra_config", "execution", "server", "nodes"):  # main.py's order, which matters for `utils`
        importlib.import_module(name)
    asyncio.run(sys.modules["nodes"].init_builtin_extra_nodes())


def _load_pack(folder: str) -> None:
    """Load the pack the way ComfyUI does, to the schema of every node."""
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, f"{folder}/__init__.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        node.GET_SCHEMA()


def _measured_here(comfyui: str, folder: str, times: str) -> dict[str, object]:
    """Return the wall-clock and processor milliseconds of every load, and the modules that the pack imported."""
    _start_comfyui(comfyui)
    before, ours = set(sys.modules), folder.replace(".", "_x_")
    walls, busy = [], []
    for _ in range(int(times)):
        for name in [name for name in sys.modules if name.startswith(ours)]:
            del sys.modules[name]
        start = time.perf_counter(), time.process_time()
        _load_pack(folder)
        walls.append(1000 * (time.perf_counter() - start[0]))
        busy.append(1000 * (time.process_time() - start[1]))
    new = set(sys.modules) - before
    others = sorted(name for name in new if not name.startswith(ours))
    return {"wall_ms": walls, "busy_ms": busy, "ours": len(new) - len(others), "others": others}


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules are not ComfyUI's
    print(json.dumps(_measured_here(*sys.argv[1:])))
