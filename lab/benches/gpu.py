"""What only a large GPU shows, at 1024 pixels and in half precision, in at most 8 minutes.

Seconds per step with and without torch.compile, peak memory, the speed and the memory of the trainer, the LoRA gap, and
the check of the teacher.
"""

import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from runner.stop import Stop, say

from lab.real_size.random_model import random_model
from lab.real_size.runs import CFG, PASSES, STOCK, Runs, random_lora, relative, rounds
from lab.real_size.training import Case, trained

from ._cost import now, peak_memory, quartiles, ratio_text

NETWORK, PIXELS, ROUNDS = "SD3-medium", 1024, 5
TRAININGS = {
    "LoRA, batch 1, checkpointing": {"batch": 1, "gradient_checkpointing": True},
    "LoRA, batch 4, checkpointing": {"batch": 4, "gradient_checkpointing": True},
    "LoRA, batch 4": {"batch": 4, "gradient_checkpointing": False},
    "everything, batch 4, checkpointing": {"batch": 4, "gradient_checkpointing": True, "trainable": "everything"},
}
GIB = 2**30


def measure() -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise Stop("This benchmark needs an NVIDIA GPU with 24 GiB or more. Run it on a machine that has one.")
    result = measured(NETWORK, PIXELS, compiled=(False, True))
    return result | {"minutes": round(result.pop("seconds") / 60, 1)}


def measured(network: str, pixels: int, *, compiled: tuple[bool, ...], depth: int | None = None) -> dict[str, Any]:
    """Measure everything for a network, on whatever device the host has chosen.

    Args:
        network, depth: name in KINDS, and a depth other than the published one.
        pixels: width and height of the images.
        compiled: whether to measure the steps as they are, with torch.compile, or both.
    """
    start = time.perf_counter()
    model = random_model(network, torch.bfloat16, depth=depth)
    runs = Runs(model, random_lora(network, depth), pixels=pixels)
    result: dict[str, Any] = {"network": network, "pixels": pixels, "steps": [], "peak_tflops": _peak_speed()}
    with torch.inference_mode():
        for compile_it in compiled:
            result["steps"] += _steps(runs, compile_it)
        result["gap"] = _gap(runs)
    result["teacher_check"] = [_check(network, dtype, pixels, depth) for dtype in (torch.bfloat16, torch.float16)]
    result["training"] = [_training(model, network, pixels, name) for name in TRAININGS]
    return result | {"seconds": time.perf_counter() - start}


def _steps(runs: Runs, compile_it: bool) -> list[dict[str, Any]]:
    """Return one row per method: seconds per step in rounds of changing order, and the peak memory of a step."""
    measured = {name: lambda name=name: runs.step_seconds(name) for name in PASSES}
    with runs.compiled() if compile_it else nullcontext():
        seconds = rounds(measured, ROUNDS)
        peaks = {name: peak_memory(measure) for name, measure in measured.items()}
    rows = []
    for name, found in seconds.items():
        over = quartiles([a / b for a, b in zip(found, seconds[STOCK], strict=True)])
        row = {"method": name, "compiled": compile_it, "seconds": round(statistics.median(found), 4)}
        rows.append(row | {"over_stock": over, "gib": round(peaks[name] / GIB, 2)})
        say(str(rows[-1]))
    return rows


def _gap(runs: Runs) -> dict[str, Any]:
    """Return how far the LoRA gap is from two merged models, in the precision of the model."""
    settings = ((1.0, 1.0, CFG), 0.8, -1.5)
    one, merged = runs.gap_step(*settings), runs.merged_step(*settings)
    dynamic = type(runs.model).__name__ == "ModelPatcherDynamic"
    row = {"dynamic_vram": dynamic, "difference": relative(one, merged), "spread": float(merged.std())}
    say(str(row))
    return row


def _check(network: str, dtype: torch.dtype, pixels: int, depth: int | None) -> dict[str, Any]:
    """Return whether the teacher check accepts Euler and refuses a sampler with memory."""
    from teefusion_core.comfy_host.training.teacher import Teacher
    from teefusion_core.errors import InvalidConfig

    runs = Runs(random_model(network, dtype, depth=depth), {}, pixels=pixels)
    found: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch.")}
    for sampler in ("euler", "dpmpp_2m"):
        guider, _ = runs.cfg(runs.model, CFG)
        start = now()
        try:
            Teacher(guider, sampler_of(sampler)).check(runs.positive, runs.null, runs.noise_BCHW.cpu(), 9.0)
            found[sampler] = "accepted"
        except InvalidConfig as error:
            found[sampler] = str(error)
        found[f"{sampler}_seconds"] = round(now() - start, 2)
    runs.unload()
    say(str(found))
    return found


def _training(model: Any, network: str, pixels: int, name: str) -> dict[str, Any]:
    """Return the seconds, the forecast and the memory of a short training, and its share of the peak speed."""
    case = Case(network, "", pixels, teacher_steps=4, images=1, **TRAININGS[name])
    with tempfile.TemporaryDirectory() as folder:
        row = {"case": name} | trained(model, case, Path(folder))
    say(str(row))
    return row


def sampler_of(name: str) -> Any:
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def _peak_speed() -> float:
    """Return the TFLOP/s of a large matrix product in bfloat16 on the device of the host."""
    import comfy.model_management

    size = 8192 if torch.cuda.is_available() else 512
    a_NN = torch.randn(size, size, dtype=torch.bfloat16, device=comfy.model_management.get_torch_device())
    a_NN @ a_NN
    start = now()
    for _ in range(10):
        a_NN @ a_NN
    return round(10 * 2 * size**3 / (now() - start) / 1e12, 2)


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["method", "torch.compile", "ms per step", "time / stock", "peak memory"]]
    for row in result["steps"]:
        cells = [row["method"], "yes" if row["compiled"] else "no", f"{1000 * row['seconds']:.1f}"]
        lines.append([*cells, ratio_text(row["over_stock"]), f"{row['gib']:.1f} GiB"])
    return lines
