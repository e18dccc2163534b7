"""A short training of a network of a published size: the seconds of its phases, and its memory beside the forecast."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[2]
    sys.path += [str(ROOT), str(ROOT / "scripts")]

from lab.benches._cost import peak_memory
from lab.benches._training_parts import TRIM
from lab.real_size.files import ALL_IN_ONE
from lab.real_size.random_model import random_model
from lab.real_size.runs import load, prompt

STEPS = 2


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        network: name of the published network, for the table.
        file: file of its weights.
        pixels, batch, gradient_checkpointing, teacher_steps, images: settings of the training.
        trainable: what is trained.
        dtype: in which the base is stored and computes.
    """

    network: str
    file: str
    pixels: int
    batch: int
    gradient_checkpointing: bool
    teacher_steps: int
    images: int
    trainable: str = "lora"
    dtype: str = "bfloat16"


MEDIUM, NEWER = "diffusion_models/teefusion_sd3_medium.safetensors", f"checkpoints/{ALL_IN_ONE}.safetensors"
CASES = (
    Case("SD3-medium", MEDIUM, 256, 1, True, teacher_steps=8, images=2),
    Case("SD3-medium", MEDIUM, 512, 1, False, teacher_steps=1, images=1),
    Case("SD3.5-medium", NEWER, 256, 2, True, teacher_steps=2, images=1),
)


def measured(case: Case, models: Path) -> dict[str, Any]:
    """Run this file for one case in a new process, with the files in a folder of models."""
    run = [sys.executable, __file__, json.dumps(asdict(replace(case, file=str(models / case.file))))]
    done = subprocess.run(run, env=os.environ | TRIM, check=True, stdout=subprocess.PIPE, text=True)
    row = asdict(case) | json.loads(done.stdout.splitlines()[-1])
    seconds = row["seconds"]
    floor = seconds["trajectory"] + seconds["step"]
    return row | {
        "until_first_step": round((seconds["check"] + seconds["forecast"] + floor) / floor, 3),
        "error": round(row["foretold"] / row["taken"] - 1, 4),
    }


def trained(model: Any, case: Case, folder: Path) -> dict[str, Any]:
    """Train a LoRA for two steps; return seconds by phase, the forecast and the bytes that the run took."""
    import comfy.samplers

    from teefusion_core.comfy_host.prompts.encoded import Prompts
    from teefusion_core.comfy_host.training.distillation import Distillation
    from teefusion_core.comfy_host.training.network import latent_shape
    from teefusion_core.comfy_host.training.run import Training
    from teefusion_core.comfy_host.training.teacher import Teacher
    from teefusion_core.training.loop_settings import TrainSettings
    from teefusion_core.training.settings import DistillSettings

    settings = DistillSettings(
        teacher_steps=case.teacher_steps, images_per_trajectory=case.images, cache_size=1, reuse=0,
        gradient_checkpointing=case.gradient_checkpointing, trainable=case.trainable,
    )  # fmt: skip
    teacher = Teacher(comfy.samplers.CFGGuider(model), comfy.samplers.sampler_object("euler"))
    prompts = Prompts([prompt(1), prompt(3)], "prompt"), Prompts([prompt(2, like=prompt(1))], "null")
    shape = latent_shape(model, case.pixels, case.pixels)
    distil = Distillation(model, teacher, *prompts, settings, latent_CHW=shape)
    loop = TrainSettings(steps=STEPS, batch_size=case.batch, learning_rate=1e-4)
    training = Training(distil, loop, root=folder, name="run", teacher="CFG")
    marks, needs, reports = [("start", time.perf_counter())], [], []

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    def run() -> None:
        distil.check_teacher()
        mark("check")
        training.run(
            on_step=lambda report: (reports.append(report), mark("step")),
            on_forecast=lambda need: (needs.append(need), mark("forecast")),
        )  # fmt: skip

    taken = peak_memory(run)
    seconds: dict[str, float] = {}
    for (_, before), (name, after) in zip(marks, marks[1:], strict=False):
        seconds.setdefault(name, round(after - before, 2))
    first, last = reports[0], reports[-1]
    seconds |= {"trajectory": round(first.data_seconds, 2), "step": round(last.seconds - last.data_seconds, 2)}
    return {"seconds": seconds, "taken": taken, "foretold": needs[0].peak}


if __name__ == "__main__":
    from lab.demo_world.host import use_comfy

    use_comfy()
    given = Case(**json.loads(sys.argv[1]))
    dtype = getattr(torch, given.dtype)
    small = replace(given, pixels=128)
    for network, setting in ((random_model(given.network, dtype, depth=2), small), (None, given)):
        # the small one comes first, so that the memory of imports and of thread pools does not count
        with tempfile.TemporaryDirectory() as runs:
            found = trained(network or load(Path(given.file), dtype), setting, Path(runs))
    print(json.dumps(found))
