"""Distil the demo student from the demo base with CFG as its teacher, by the pack's own trainer.

Prompts are all the data there is: the teacher paints them.
Run: python -m tiny_sd3.distill_student
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch

from teefusion_core.distill_settings import DistillSettings
from teefusion_core.student_file import write_student
from teefusion_core.train import StepReport
from teefusion_core.train_settings import TrainSettings

from .captions import caption
from .host import RUNS, use_comfy
from .measure import encode
from .scenes import claim_of, sample_picture

TEACHER = "CFG at scale 1 + w, Euler"
NUM_PROMPTS = 20_000
BATCH = 128


def captions(num: int, seed: int) -> list[str]:
    """Right captions of scenes outside the held-out part."""
    rng = random.Random(seed)
    return [caption(claim_of(sample_picture(rng)[0], rng), rng) for _ in range(num)]


def training(args: argparse.Namespace):
    """Wire teacher, prompts, settings."""
    import comfy.samplers

    from teefusion_core.comfy_host import Distillation, Prompts, Teacher, Training, load_tiny

    model, clip, _ = load_tiny("base")
    teacher = Teacher(comfy.samplers.CFGGuider(model), comfy.samplers.sampler_object("euler"))
    texts = captions(NUM_PROMPTS, args.seed)
    positives = Prompts([encode(clip, texts[i : i + BATCH]) for i in range(0, NUM_PROMPTS, BATCH)], "prompt")
    settings = DistillSettings(
        w_min=0.5,
        w_max=6.0,
        walk_rows=16,
        walks=160,
        rank=args.rank,
        term_share=0.25,
        along=args.along,
        uses=args.uses,
        seed=args.seed,
    )
    distillation = Distillation(
        model, teacher, positives, Prompts([encode(clip, [""])], "null"), settings, latent_CHW=(16, 8, 8)
    )
    loop = TrainSettings(
        steps=args.steps, batch=args.batch, lr=args.lr, warmup=50, schedule="linear", save_every=200, seed=args.seed
    )
    return Training(distillation, loop, root=RUNS, name=args.name, teacher=TEACHER)


def main() -> None:
    """Parse, train, write the student file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(RUNS / "tiny_sd3_student.safetensors"))
    parser.add_argument("--name", default="student", help="of the run, which goes on where it stopped")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--along", type=float, default=4.0, help="weight of the error along the guidance")
    parser.add_argument("--uses", type=float, default=1.0, help="how often an example of the teacher serves")
    parser.add_argument("--seed", type=int, default=1)
    use_comfy()
    args, start, losses = parser.parse_args(), time.time(), []

    def told(report: StepReport) -> None:
        losses.append(report.loss)
        if report.step % 50 == 0:
            mean = sum(losses) / len(losses)
            print(f"step {report.step}/{report.steps} loss {mean:.4f} {time.time() - start:.0f} s", flush=True)
            losses.clear()

    torch.manual_seed(args.seed)
    student = training(args).run(on_step=told)
    write_student(Path(args.out), student.tensors, student.info)
    print("saved", args.out, student.info, flush=True)


if __name__ == "__main__":
    main()
