"""What the pack costs a starting ComfyUI, in a process of its own: prints one line of JSON.

python lab/benches/_import.py FOLDER_OF_COMFYUI FOLDER_OF_THE_PACK TIMES
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
import time


def start_the_host(comfyui: str) -> None:
    """Import what the host has imported before it comes to custom nodes."""
    sys.path.insert(0, comfyui)
    sys.argv = ["main.py", "--cpu", "--disable-api-nodes"]
    import comfy.options

    comfy.options.enable_args_parsing()
    for name in ("utils.extra_config", "execution", "server", "nodes"):  # main.py's order, which matters for `utils`
        importlib.import_module(name)
    asyncio.run(sys.modules["nodes"].init_builtin_extra_nodes())


def load_the_pack(folder: str) -> None:
    """Load it the way the host does, to the schema of every node."""
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, f"{folder}/__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        node.GET_SCHEMA()


def measure(comfyui: str, folder: str, times: str = "1") -> dict[str, object]:
    """Return milliseconds of the wall, of the processor for each time, with the modules that came with the pack."""
    start_the_host(comfyui)
    before, ours = set(sys.modules), folder.replace(".", "_x_")
    walls, busy = [], []
    for _ in range(int(times)):
        for name in [name for name in sys.modules if name.startswith(ours)]:
            del sys.modules[name]
        start = time.perf_counter(), time.process_time()
        load_the_pack(folder)
        walls.append(1000 * (time.perf_counter() - start[0]))
        busy.append(1000 * (time.process_time() - start[1]))
    new = set(sys.modules) - before
    others = sorted(name for name in new if not name.startswith(ours))
    return {"wall_ms": walls, "busy_ms": busy, "ours": len(new) - len(others), "others": others}


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
