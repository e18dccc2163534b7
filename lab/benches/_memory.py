"""Peak memory of one training in a process of its own.

python lab/benches/_memory.py '{"what": "ours", "batch": 32, "rank": 16}'    prints one line of JSON
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

TRIM = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Has the C library give back what is freed, or its own reserves would be measured as well."""


def peaks(**options: Any) -> dict[str, Any]:
    """Run this file for one setting; return bytes foretold with bytes taken, above what was there before."""
    run = [sys.executable, __file__, json.dumps(options)]
    done = subprocess.run(run, env=os.environ | TRIM, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def taken(work: Callable[[], object]) -> int:
    """Most memory at once during some work, above what was there before.

    On a GPU that of torch's allocator, on a CPU that of the process as the kernel counts it.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def _measured(what: str, batch: int, rank: int, **settings: Any) -> dict[str, Any]:
    from lab.benches._training import Parts
    from teefusion_core.comfy_host.training.run import Training

    parts = Parts(batch=batch, rank=rank, cache_size=1, reuse=0, **settings)
    parts.stock(1, batch) if what == "stock" else parts.teacher_seconds()  # what is loaded once
    if what == "stock":
        return {"taken": taken(lambda: parts.stock(3, batch))}
    needs: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        loop = replace(parts.loop, steps=3)
        run = Training(parts.distil, loop, root=Path(folder), name="run", teacher="W2SD")
        return {"taken": taken(lambda: run.run(on_forecast=needs.append)), "foretold": needs[0].peak}


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    sys.path += [str(root), str(root / "scripts")]
    from lab.benches._host import use_host

    use_host(Path(os.environ["COMFYUI_PATH"]))
    print(json.dumps(_measured(**json.loads(sys.argv[1]))))
