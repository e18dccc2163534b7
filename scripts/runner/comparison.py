"""The demo: one shipped workflow, run once per prompt on a real ComfyUI.

Shapes: B pictures per prompt, H W picture size, 3 colour channels.
"""

import copy
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .client import Run, pictures, run_prompt
from .demo_table import table
from .graph import Json, find, to_prompt
from .places import BASE, HOST, ROOT, WORKFLOWS
from .server import Server, make_base, running
from .stop import Stop, say

WORKFLOW = WORKFLOWS / "01 Student beside teacher.json"
PICTURE = "teacher_vs_student.png"
SEED = 20250723
PROMPT_NODE = "Prompt"
STUDENT_NODE = "TeEFusionConditioning"
GRID_NODES = ("CompareGrid", "SaveImage")
INNER = 128
"""Pixels of a shown picture: two for each of the 64 that the demo model samples."""
SHOWN = 2
"""Pictures per method, of those made."""
RIGHT, WRONG = (46, 160, 67), (214, 57, 57)
LEGEND = "green frame: shows all of its prompt; red: does not"


@dataclass
class Method:
    """One column of the comparison, with what was measured of it."""

    name: str
    sampler: str
    pictures: str
    guidance: str = ""
    scale: float = 1.0
    steps: int = 0
    seconds: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)

    def label(self) -> str:
        """Return the head of the column: name and passes per step."""
        passes = _plain(statistics.mean(self.passes))
        return f"{self.name}: {passes} pass{'' if passes == '1' else 'es'} per step"


@dataclass
class Row:
    """A prompt, with each method's pictures of it, each with whether it shows all of the prompt."""

    text: str
    cells: list[list[tuple[np.ndarray, bool]]]


def methods() -> tuple[Method, ...]:
    """Return the columns, by the titles that their nodes have in the workflow."""
    return tuple(Method(name, f"{name} sampler", f"{name} images") for name in ("Unguided", "CFG", "W2SD", "Student"))


def with_pictures(prompt: Json) -> Json:
    """Return the prompt with a node for each method that saves its pictures, instead of the grid of all."""
    alone = {key: node for key, node in prompt.items() if node["class_type"] not in GRID_NODES}
    for column in methods():
        sampler = find(prompt, column.sampler)
        [decoder] = [key for key, node in prompt.items() if node["inputs"].get("samples") == [sampler, 0]]
        inputs = {"images": [decoder, 0], "filename_prefix": f"demo/{column.name}"}
        alone[column.pictures] = {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": column.pictures}}
    return alone


def compare(comfyui: Path, num_prompts: int, out: Path, *, port: int | None) -> None:
    """Run the comparison, write its image and print its table."""
    check_models(ROOT / "models")
    sys.path.append(str(ROOT))  # last: the repository has a package called nodes, as ComfyUI has a module
    from lab.demo_world.captions import held_out_prompts

    prompts = held_out_prompts(num_prompts, seed=SEED)
    workflow = read_workflow(WORKFLOW)
    started = time.monotonic()
    say("starting ComfyUI on the CPU (about 15 s)")
    with running(comfyui, make_base(BASE), HOST / "comfyui.log", port=port) as server:
        say(f"ComfyUI answers on {server.url} after {time.monotonic() - started:.0f} s")
        columns, rows = _run_all(server, with_pictures(to_prompt(workflow, server.get("/object_info"))), prompts)
        target = draw_sheet(rows, [column.label() for column in columns], out / PICTURE)
        print(f"\n{table(columns)}\n\nPrompt by prompt: {target}", flush=True)


def check_models(folder: Path) -> None:
    """Stop before anything starts when the pack came without a file of its demo model."""
    files = [f"demo_sd3_{part}.safetensors" for part in ("base", "weak", "student", "text", "vae")]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise Stop(
            f"The demo model is incomplete: models/ has no {', '.join(missing)}; "
            "get a release that has them, or train them as in lab/demo_world/README.md."
        )


def read_workflow(path: Path) -> Json:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Stop(f"The workflow {path} cannot be read ({error}); restore it with: git checkout {path}") from error


def _run_all(server: Server, prompt: Json, prompts: list[tuple[str, Any]]) -> tuple[tuple[Method, ...], list[Row]]:
    from lab.demo_world.verifier import judge

    columns, rows = methods(), []
    _show("one run to load everything", end="\n")
    run_prompt(server, fill(prompt, prompts[0][0], SEED - 1, [column.sampler for column in columns]))
    for index, (text, scene) in enumerate(prompts):
        filled = fill(prompt, text, SEED + index, [column.sampler for column in columns])
        label = f"prompt {index + 1}/{len(prompts)}"
        run = run_prompt(server, filled, partial(_show_step, label))
        passes = passes_per_step(server, run, filled, columns)
        cells = []
        for column, rate in zip(columns, passes, strict=True):
            images = pictures(server, run, find(filled, column.pictures))
            verdicts = [judge(image, scene).overall for image in images]
            sampler = find(filled, column.sampler)
            column.guidance, column.scale = guidance_of(filled, sampler)
            column.steps = _number(filled, filled[sampler]["inputs"]["steps"])
            column.seconds.append(run.seconds.get(find(filled, column.sampler), 0.0))
            column.passes.append(rate)
            cells.append(list(zip(images, verdicts, strict=True)))
        took = ", ".join(f"{column.name} {column.seconds[-1]:.1f} s" for column in columns)
        _show(f"{label}: {text} ({took})", end="\n")
        rows.append(Row(text, cells))
    return columns, rows


def draw_sheet(rows: list[Row], labels: list[str], target: Path) -> Path:
    """Write the sheet as a PNG; return where."""
    # last on the path: the repository has a package called nodes, as ComfyUI has a module
    sys.path.append(str(ROOT))
    from teefusion_core.evaluation import grid

    def cell(made: list[tuple[np.ndarray, bool]]) -> grid.Cell:
        pictures = [Image.fromarray(image_HW3) for image_HW3, _ in made[:SHOWN]]
        return grid.Cell(pictures, frames=[RIGHT if right else WRONG for _, right in made[:SHOWN]])

    drawn = [grid.Row(row.text, [cell(made) for made in row.cells]) for row in rows]
    sheet = grid.draw_grid(labels, drawn, side=INNER, legend=LEGEND)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
    return target


def fill(prompt: Json, text: str, seed: int, samplers: list[str]) -> Json:
    """Return the prompt with another text, the same noise for all methods."""
    filled = copy.deepcopy(prompt)
    filled[find(filled, PROMPT_NODE)]["inputs"]["text"] = text
    for title in samplers:
        filled[find(filled, title)]["inputs"]["seed"] = seed
    return filled


def passes_per_step(server: Server, run: Run, prompt: Json, columns: tuple[Method, ...]) -> list[float]:
    """Return how often each picture went through the network in one step, as the server counted it."""
    counted = server.get(f"/probe/passes/{run.prompt_id}")
    found = []
    for column in columns:
        sampler = find(prompt, column.sampler)
        num_pictures = len(run.outputs[find(prompt, column.pictures)]["images"])
        rows = counted.get(sampler, {}).get("rows", 0)
        found.append(rows / (num_pictures * _number(prompt, prompt[sampler]["inputs"]["steps"])))
    return found


def guidance_of(prompt: Json, sampler: str) -> tuple[str, float]:
    """Say how strongly the sampler is guided: by its own cfg, or by a w fused into its model; and its CFG scale."""
    inputs = prompt[sampler]["inputs"]
    above = inputs.get("model")
    while isinstance(above, list):
        node = prompt[above[0]]
        if node["class_type"] == STUDENT_NODE:
            w = _number(prompt, node["inputs"]["guidance"])
            return f"w {_plain(w)} (as cfg {_plain(w + 1)})", 1 + w
        above = node["inputs"].get("model")
    scales = [inputs[name] for name in ("strong_cfg", "weak_cfg", "final_cfg") if name in inputs] or [inputs["cfg"]]
    numbers = [_number(prompt, scale) for scale in scales]
    return f"cfg {' / '.join(map(_plain, numbers))}", numbers[-1]


def _number(prompt: Json, value: Any) -> float:
    """Return a setting, also one that is wired from a node that only holds a number."""
    return prompt[value[0]]["inputs"]["value"] if isinstance(value, list) else value


def _plain(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _show_step(label: str, title: str, step: int, steps: int) -> None:
    _show(f"{label}: {title} step {step}/{steps}", end="")


def _show(line: str, end: str) -> None:
    """Overwrite the current line of a terminal; into a pipe, print only whole lines."""
    if sys.stdout.isatty():
        print(f"\r\033[K{line}", end=end, flush=True)
    elif end:
        say(line)
