"""SD3-medium and SD3.5-medium as people run them: published layouts and sizes, random weights.

It writes 21 GiB of files to .cache/real_size, or to the folder that TEEFUSION_REAL_SIZE names, and keeps them there. A
run that was stopped continues with the parts that it has not measured.
"""

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from runner.places import ROOT
from runner.stop import say
from safetensors.torch import load_file

from lab.demo_world.host import use_comfy
from lab.real_size import graphs, training, workflows
from lab.real_size.files import Files
from lab.real_size.runs import PASSES, STOCK, Runs, load, relative, rounds
from teefusion_core.files.output_file import write_text

from ._cost import AnonymousPeak, quartiles, ratio_text

PIXELS, ROUNDS = 512, 5
GAP_SCALES, STRONG, WEAK = (1.0, 1.0, 5.5), 0.8, -1.5
"""CFG scales and LoRA strengths of workflow 05."""
LIMITS = {
    "student / stock": 1.02,
    "time / passes": 1.03,
    "gap in float32": 1e-5,
    "gap in bfloat16": 1.1,
    "forecast": 0.15,
}
GIB = 2**30
STEPS, TRAINING, WORKFLOWS = "steps and gap", "training", (graphs.PUBLISHED, graphs.GAP, graphs.DISTILL)
KINDS = ("stock with the LoRA", "gap", "two loaded models")
WORK = ("KSampler", "W2SDTeacherSampler", "DistillTrainer")


def files() -> Files:
    """Return the files, which are made if they are not there."""
    folder = Path(os.environ.get("TEEFUSION_REAL_SIZE") or ROOT / ".cache" / "real_size")
    made = Files(folder / "models")
    made.all()
    return made


def measure() -> dict[str, Any]:
    """Measure part by part; the parts of a run that was stopped are not measured again."""
    made = files()
    kept = made.models.parent / "measured"
    found: dict[str, Any] = {}
    for name, part in _parts(made).items():
        file = kept / f"{name}.json"
        if not file.is_file():
            say(name)
            start = time.monotonic()
            # a process of its own frees its memory at the end
            with ProcessPoolExecutor(1, get_context("spawn"), initializer=use_comfy) as alone:
                result = alone.submit(part).result()
            kept.mkdir(exist_ok=True)
            write_text(file, json.dumps(result | {"minutes": (time.monotonic() - start) / 60}))
        found[name] = json.loads(file.read_text(encoding="utf-8"))
        say(str(found[name]))
    shutil.rmtree(kept)
    minutes = sum(part["minutes"] for part in found.values())
    return {"parts": found, "limits": LIMITS, "minutes": round(minutes, 1)}


def _parts(made: Files) -> dict[str, Callable[[], dict[str, Any]]]:
    comfyui = Path(os.environ["COMFYUI_PATH"])
    parts: dict[str, Callable[[], dict[str, Any]]] = {STEPS: partial(_steps_and_gap, made)}
    for number, case in enumerate(training.CASES, 1):
        parts[f"{TRAINING} {number}"] = partial(training.measured, case, made.models)
    for name in WORKFLOWS:
        parts[name] = partial(workflows.measured, name, comfyui, made.models)
    return parts


@torch.inference_mode()
def _steps_and_gap(made: Files) -> dict[str, Any]:
    lora = load_file(made.lora())
    single, exact = _float32(made.sd3_medium(), lora)
    half = _bfloat16(made.sd3_medium(), lora, exact)
    kinds = {"float32": single, "bfloat16": half}
    memory, gap = ({name: kind[key] for name, kind in kinds.items()} for key in ("memory", "gap"))
    return {"steps": single["steps"], "gap": gap, "memory": memory}


def _float32(path: Path, lora: dict[str, torch.Tensor]) -> tuple[dict[str, Any], torch.Tensor]:
    """Return step times, gap and memory in float32, and the state after a reflected step by merged models."""
    runs = Runs(load(path, torch.float32), lora, pixels=PIXELS)
    say(f"{ROUNDS} rounds at {PIXELS}x{PIXELS} in float32")
    seconds = rounds({name: lambda name=name: runs.step_seconds(name) for name in PASSES}, ROUNDS)
    rows = [_step_row(name, seconds) for name in PASSES]
    memory = {"stock with the LoRA": _peak(lambda: runs.stock_step(STRONG))}
    memory["gap"] = _peak(lambda: runs.gap_step(GAP_SCALES, STRONG, WEAK))
    one, exact = runs.gap_step(GAP_SCALES, STRONG, WEAK), runs.merged_step(GAP_SCALES, STRONG, WEAK)
    gap = {"LoRA gap": relative(one, exact)}
    say(str(rows) + str(memory) + str(gap))
    runs.unload()
    return {"steps": rows, "memory": memory, "gap": gap}, exact


def _bfloat16(path: Path, lora: dict[str, torch.Tensor], exact: torch.Tensor) -> dict[str, Any]:
    """Return gap and memory in bfloat16."""
    runs = Runs(load(path, torch.bfloat16), lora, pixels=PIXELS)
    memory = {"stock with the LoRA": _peak(lambda: runs.stock_step(STRONG))}
    memory["gap"] = _peak(lambda: runs.gap_step(GAP_SCALES, STRONG, WEAK))
    one, merged = runs.gap_step(GAP_SCALES, STRONG, WEAK), runs.merged_step(GAP_SCALES, STRONG, WEAK)
    gap = {"LoRA gap": relative(one, exact), "two models": relative(merged, exact)}
    other = runs.other(load(path, torch.bfloat16), WEAK)
    memory["two loaded models"] = _peak(lambda: runs.gap_step(GAP_SCALES, STRONG, other))
    say(str(memory) + str(gap))
    runs.unload()
    return {"memory": memory, "gap": gap}


def _step_row(name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    over = quartiles([a / b for a, b in zip(seconds[name], seconds[STOCK], strict=True)])
    row = {"method": name, "passes": PASSES[name], "seconds": round(statistics.median(seconds[name]), 2)}
    return row | {"over_stock": over, "over_passes": round(over["median"] / PASSES[name], 4)}


def _peak(work: Any) -> float:
    """Return the peak of the process's own memory in GiB."""
    with AnonymousPeak() as peak:
        work()
    return round(peak.bytes / GIB, 2)


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["method", "passes per step", "seconds per step", "time / stock", "time / passes"]]
    for row in result["parts"][STEPS]["steps"]:
        cells = [row["method"], str(row["passes"]), f"{row['seconds']:.1f}", ratio_text(row["over_stock"])]
        lines.append([*cells, f"{row['over_passes']:.3f}"])
    return lines


def gap_table(result: dict[str, Any]) -> list[list[str]]:
    lines = [[
        "weights", *(f"memory: {kind}" for kind in KINDS), "difference: gap", "difference: two models",
    ]]  # fmt: skip
    part = result["parts"][STEPS]
    for name, found in part["memory"].items():
        memory = (f"{found[kind]:.2f} GiB" if kind in found else "not loaded" for kind in KINDS)
        gap = part["gap"][name]
        far = (f"{gap[kind]:.1e}" if kind in gap else "the reference" for kind in ("LoRA gap", "two models"))
        lines.append([name, *memory, *far])
    return lines


def training_table(result: dict[str, Any]) -> list[list[str]]:
    lines = [[
        "base", "image", "batch", "checkpointing", "teacher steps x images",
        "seconds of check, forecast, trajectory, step", "until the first step", "forecast", "taken", "difference",
    ]]  # fmt: skip
    for row in (part for name, part in result["parts"].items() if name.startswith(TRAINING)):
        seconds = ", ".join(f"{row['seconds'][name]:.0f}" for name in ("check", "forecast", "trajectory", "step"))
        cells = [
            row["network"],
            f"{row['pixels']} px",
            str(row["batch"]),
            "on" if row["gradient_checkpointing"] else "off",
            f"{row['teacher_steps']} x {row['images']}",
        ]
        cells += [
            seconds,
            f"{row['until_first_step']:.2f} x",
            *(f"{row[n] / GIB:.2f} GiB" for n in ("foretold", "taken")),
        ]
        lines.append([*cells, f"{100 * row['error']:+.0f} %"])
    return lines


def workflow_table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["workflow", "loading", "text", "sampling or training", "memory"]]
    for row in (result["parts"][name]["row"] for name in WORKFLOWS if name in result["parts"]):
        seconds = row["seconds"]
        loading = sum(spent for kind, spent in seconds.items() if "Loader" in kind)
        text = seconds.get("CLIPTextEncode", 0.0)
        work = sum(seconds.get(kind, 0.0) for kind in WORK)
        lines.append([row["workflow"], *(f"{spent:.0f} s" for spent in (loading, text, work)), f"{row['gib']:.1f} GiB"])
    return lines
