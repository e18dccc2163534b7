"""The parts of a training run on the demo model, each of which can be timed alone or measured in a new process.

python lab/benches/_training_parts.py '{"what": "ours", "batch": 32, "rank": 16}'    prints its memory as JSON
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[2]
    sys.path += [str(ROOT), str(ROOT / "scripts")]

from lab.benches._cost import now, peak_memory

PASSES = 5
"""Forward passes of a teacher's step: W2SD at 5.5 / 1 / 1 + w, except for the last step."""
LATENT, STEPS, SCHEDULER, PROMPTS = (16, 8, 8), 20, "normal", 64
TRIM = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Makes the C library return freed memory at once; otherwise its reserves would be measured as well."""


class Parts:
    """Teacher, student and optimizer on one copy of the base."""

    def __init__(self, *, batch: int, rank: int, images_per_trajectory: int = 16, **settings: Any):
        from lab.demo_world.distill_student import captions
        from lab.demo_world.measure import encode
        from teefusion_core.comfy_host.demo_model import load_demo
        from teefusion_core.comfy_host.prompts.encoded import Prompts
        from teefusion_core.comfy_host.reflection.guider import ReflectionGuider, Scales
        from teefusion_core.comfy_host.reflection.sampler import ReflectionSampler
        from teefusion_core.comfy_host.training.distillation import Distillation
        from teefusion_core.comfy_host.training.teacher import Teacher
        from teefusion_core.training.loop_settings import TrainSettings
        from teefusion_core.training.settings import DistillSettings

        self.model, clip, _ = load_demo("base")
        weak = load_demo("weak")[0]
        with torch.no_grad():
            self.prompts = [encode(clip, [text]) for text in captions(PROMPTS, 0)]
            null = encode(clip, [""])
        teacher = Teacher(ReflectionGuider(self.model, weak, scales=Scales(5.5, 1.0, 5.5)), ReflectionSampler())
        settings |= {"teacher_steps": STEPS, "scheduler": SCHEDULER, "rank": rank, "initial_gain_ratio": 0.25}
        settings = DistillSettings(images_per_trajectory=images_per_trajectory, **settings)
        prompts = Prompts(self.prompts, "prompt"), Prompts([null], "null")
        self.distil = Distillation(self.model, teacher, *prompts, settings, latent_CHW=LATENT)
        self.batch, self.rank, self.rows = batch, rank, images_per_trajectory
        self.loop = TrainSettings(steps=STEPS * self.rows // batch, batch_size=batch, learning_rate=1e-4)

    def trajectories(self, folder: Path, *, cache_size: int, reuse: float) -> Any:
        from teefusion_core.training.trajectory_cache import TrajectoryCache

        options = {"examples": STEPS * self.rows, "cache_size": cache_size, "reuse": reuse}
        return TrajectoryCache(self.distil.trajectory, folder, **options)

    def trained(self, data: Any) -> list[Any]:
        """Run the steps that one trajectory has examples for; return their reports."""
        from teefusion_core.training.loop import train

        reports: list[Any] = []
        with self.distil.in_training():
            train(self.distil.student.update, data, self.distil.loss, self.loop, on_step=reports.append)
        return reports

    def teacher_seconds(self) -> tuple[float, float]:
        """Return the seconds of ComfyUI sampling one trajectory, and of the passes without guidance along it."""
        distil, numbers = self.distil, [random.Random(0).randrange(PROMPTS) for _ in range(self.rows)]
        noise_BCHW = torch.randn(self.rows, *LATENT)
        guider, half = distil.teacher.guider, distil.grid_S[len(distil.grid_S) // 2]
        with torch.no_grad():
            guider.set_conds(distil.positives.batch(numbers), distil.nulls.batch([0] * self.rows))
            guider.set_cfg(5.5)
            run = torch.zeros_like(noise_BCHW), distil.teacher.sampler, distil.grid_S
            start = now()
            guider.sample(noise_BCHW, *run, disable_pbar=True, seed=0)
            sampled = now()
            distil.network.load()
            positive, x_BCHW = distil.positives.batch(numbers), noise_BCHW.to(distil.network.device)
            loaded = now()
            for _ in range(STEPS):
                distil.network.velocity(x_BCHW, half.to(x_BCHW).expand(self.rows), positive)
        return sampled - start, now() - loaded

    def student_seconds(self, example: Any) -> tuple[float, float]:
        """Return the seconds of a forward and a backward pass, and of the optimizer with clipping."""
        weights = list(self.distil.student.update.parameters())
        optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
        with self.distil.in_training():
            student = optimizing = 0.0
            for _ in range(self.loop.steps):
                start = now()
                self.distil.loss(example).backward()
                middle = now()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                student, optimizing = student + middle - start, optimizing + now() - middle
        return student, optimizing

    def stock(self, steps: int, batch: int) -> float:
        """Return the seconds of ComfyUI's own LoRA trainer."""
        from comfy_extras.nodes_train import TrainLoraNode

        options = {
            "model": self.model, "batch_size": batch, "steps": steps, "grad_accumulation_steps": 1,
            "learning_rate": 1e-4, "rank": self.rank, "optimizer": "AdamW", "loss_function": "MSE", "seed": 0,
            "training_dtype": "fp32", "lora_dtype": "fp32", "algorithm": "LoRA", "gradient_checkpointing": False,
            "existing_lora": "[None]",
        }  # fmt: skip
        latents = [{"samples": torch.randn(1, *LATENT)} for _ in range(PROMPTS)]
        lists = {name: [value] for name, value in options.items()}
        start = now()
        TrainLoraNode.execute(**lists, latents=latents, positive=self.prompts)
        return now() - start


def memory(**options: Any) -> dict[str, Any]:
    """Run this file for one setting; return the forecast and the measured bytes, without what was allocated before."""
    run = [sys.executable, __file__, json.dumps(options)]
    done = subprocess.run(run, env=os.environ | TRIM, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _memory_here(what: str, batch: int, rank: int, **settings: Any) -> dict[str, Any]:
    from teefusion_core.comfy_host.training.run import Training

    parts = Parts(batch=batch, rank=rank, cache_size=1, reuse=0, **settings)
    parts.stock(1, batch) if what == "stock" else parts.teacher_seconds()  # loads everything once
    if what == "stock":
        return {"taken": peak_memory(lambda: parts.stock(3, batch))}
    needs: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        loop = replace(parts.loop, steps=3)
        run = Training(parts.distil, loop, root=Path(folder), name="run", teacher="W2SD")
        return {"taken": peak_memory(lambda: run.run(on_forecast=needs.append)), "foretold": needs[0].peak}


if __name__ == "__main__":
    from lab.demo_world.host import use_comfy

    use_comfy()
    print(json.dumps(_memory_here(**json.loads(sys.argv[1]))))
