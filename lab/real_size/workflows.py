"""The shipped workflows for real weights on a real server: seconds, memory, and what the trainer says when."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from runner.client import Run, pictures, run_prompt
from runner.graph import Json
from runner.places import PACK
from runner.server import Server, make_base, running
from runner.stop import Stop, say

from lab.benches._cost import AnonymousPeak

from . import graphs
from .files import without_update

PIXELS, STEPS = 256, 2
GIB = 2**30


def measured(name: str, comfyui: Path, models: Path) -> dict[str, Any]:
    """Run one workflow on a server of its own; of workflow 07 also the student that it trains.

    Args:
        name: of the workflow, in `graphs`.
        comfyui: folder of ComfyUI.
        models: folder of models with the files that the workflow asks for.
    """
    with tempfile.TemporaryDirectory() as folder:
        base, log = make_base(Path(folder) / "base", probe=False), Path(folder) / "comfyui.log"
        for file in models.rglob("*.safetensors"):
            link = base / "models" / file.relative_to(models)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        with running(comfyui, base, log, packs=(PACK,), options=("--bf16-unet",)) as server:
            info = server.get("/object_info")
            prompt = graphs.quick(name, info, pixels=PIXELS, steps=STEPS)
            row, run = _timed(server, name, prompt)
            found: dict[str, Any] = {"row": row}
            if name == graphs.DISTILL:
                found |= {"trainer": _phases(prompt, run, base), "student": _student(server, prompt, info, base)}
        return found


def _timed(server: Server, name: str, prompt: Json) -> tuple[dict[str, Any], Run]:
    say(name)
    with AnonymousPeak(server.process.pid) as peak:
        run = run_prompt(server, prompt)
    kinds = {key: node["class_type"] for key, node in prompt.items()}
    seconds: dict[str, float] = {}
    for key, spent in run.seconds.items():
        seconds[kinds[key]] = round(seconds.get(kinds[key], 0.0) + spent, 2)
    row = {"workflow": name, "seconds": seconds, "gib": round(peak.bytes / GIB, 2)}
    if "SaveImage" in kinds.values():
        row["image_spread"] = round(float(pictures(server, run, graphs.node_of(prompt, "SaveImage")).std()), 2)
    say(str(row))
    return row, run


def _phases(prompt: Json, run: Run, base: Path) -> dict[str, Any]:
    """Return when the trainer said what, in seconds since Run; `base` is left out of the paths."""
    trainer = graphs.node_of(prompt, "DistillTrainer")
    lines = [(spent, text.replace(f"{base}/", "")) for spent, node, text in run.texts if node == trainer]
    return {"first_sign": round(lines[0][0], 2), "lines": [[round(seconds, 2), text] for seconds, text in lines]}


def _student(server: Server, distill: Json, info: Json, base: Path) -> dict[str, Any]:
    """Sample the trained student at two strengths, without its update, and on another base."""
    file, size = f"{graphs.TRAINED['name']}.safetensors", {"pixels": PIXELS, "steps": STEPS}
    (trained,) = (base / "output").rglob(file)
    zero = without_update(trained, "zero").name

    def image(w: float | None, file: str = file) -> np.ndarray:
        run = run_prompt(server, graphs.trained_student(distill, file, w, **size))
        return pictures(server, run, "save").astype(float)

    weak, strong = image(1.0), image(8.0)
    equal = np.array_equal(image(None, zero), image(None, ""))
    wrong = graphs.trained_student(distill, file, 2.0, **size)
    published = graphs.quick(graphs.PUBLISHED, info, **size)
    loader = graphs.node_of(published, "UNETLoader")
    wrong["other base"] = published[loader]
    wrong["student"]["inputs"]["model"] = ["other base", 0]
    try:
        run_prompt(server, wrong)
        refused = ""
    except Stop as stop:
        refused = str(stop)
    return {
        "difference_between_w_1_and_8": float(np.abs(weak - strong).max()),
        "equals_its_base_without_update": equal,
        "refused_on_another_base": refused,
    }
