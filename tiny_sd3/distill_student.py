"""Distil the demo student from the demo base with CFG as its teacher.

Algorithm 1 of the paper, its states taken from the teacher's own walks: prompts are all the data there is.
Shapes: B batch, latents [B,16,8,8], L tokens, P pooled width.
Run: python -m tiny_sd3.distill_student
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from teefusion_core.architectures import architecture_of
from teefusion_core.distill import FusedNetwork, Velocity, calibrated_gain, cfg_teacher
from teefusion_core.fusion import EXACT
from teefusion_core.student_file import StudentInfo, write_student
from teefusion_core.trainable import Lora
from teefusion_core.trajectories import Replay, jittered_grid, replay_loss, walk

from .captions import caption
from .host import MODELS, RUNS, use_comfy
from .pretrain import Captions
from .scenes import claim_of, sample_picture

VERSION = "0.1.0"
TEACHER = "CFG at scale 1 + w, Euler, target: secant of the step, states: its own walks"
W_MIN, W_MAX = 0.5, 6.0
TERM_SHARE = 0.25
RANK = 64
ALONG = 4.0
WALK_STEPS, SHIFT = 20, 3.0
KEPT_WALKS, FIRST_WALKS, STEPS_PER_WALK = 80, 12, 60
"""A walk of 64 prompts makes 1,280 examples; 60 steps take 3,840, so each serves three times."""


def load_network(path: Path):
    """The base through the host's loader, as bare network in float32."""
    import comfy.sd

    patcher = comfy.sd.load_diffusion_model(str(path))
    return patcher, patcher.model.diffusion_model.float().requires_grad_(False)


class Distillation:
    """Teacher and student on one copy of the base: the student's weights are the base's with the update added."""

    def __init__(self, fused: FusedNetwork, lora: Lora, text: Captions, seed: int):
        self.fused, self.lora, self.text = fused, lora, text
        self.null_context_1LE, self.null_1P = text([""])
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.prompts: list[str] = []
        self.replay = Replay(KEPT_WALKS)

    def velocity(self, context_BLE, pooled_BP, *guidance) -> Velocity:
        """The network at a prompt: as teacher's base, or with null and w as student."""

        def at(x_BCHW, sigma_B):
            half, worn = torch.autocast(x_BCHW.device.type, torch.bfloat16), self.lora.worn if guidance else nullcontext
            with half, sdpa_kernel(SDPBackend.MATH), worn():
                return self.fused(x_BCHW, sigma_B, context_BLE, pooled_BP, *guidance).float()

        return at

    def walk(self, rows: int) -> None:
        """Let the teacher paint new prompts, each at a guidance of its own."""
        texts, device = captions(rows, self.rng), self.null_1P.device
        context_BLE, pooled_BP = self.text(texts)
        cond = self.velocity(context_BLE, pooled_BP)
        uncond = self.velocity(self.null_context_1LE.expand_as(context_BLE), self.null_1P.expand_as(pooled_BP))
        w_B = (W_MIN + (W_MAX - W_MIN) * torch.rand(rows, generator=self.generator)).to(device)
        noise_BCHW = torch.randn(rows, 16, 8, 8, generator=self.generator).to(device)
        sigma_SB = jittered_grid(rows, WALK_STEPS, SHIFT, self.generator).to(device)
        number_B = torch.arange(rows) + len(self.prompts)
        self.prompts += texts
        self.replay.add(walk(cfg_teacher(cond, uncond, w_B), noise_BCHW, sigma_SB), cond, w_B, number_B)

    def loss(self, rows: int) -> Tensor:
        """Algorithm 1 for rows of the walks."""
        example = self.replay.draw(rows, self.generator)
        context_BLE, pooled_BP = self.text([self.prompts[number] for number in example.prompt_B.tolist()])
        null_BP = self.null_1P.expand_as(pooled_BP)
        return replay_loss(self.velocity(context_BLE, pooled_BP, null_BP, example.w_B), example, ALONG)


def captions(num: int, rng: random.Random) -> list[str]:
    """Right captions of scenes outside the held-out part."""
    return [caption(claim_of(sample_picture(rng)[0], rng), rng) for _ in range(num)]


def prepare(args: argparse.Namespace) -> tuple[Distillation, StudentInfo]:
    """Load the base, calibrate the gain on typical prompts, describe the student to be."""
    from teefusion_core.comfy_host import base_fingerprint

    device = "cuda" if torch.cuda.is_available() else "cpu"
    patcher, network = load_network(Path(args.base))
    base, architecture = base_fingerprint(patcher), architecture_of(network)
    network = network.to(device)
    text = Captions(MODELS / "tiny_sd3_text.safetensors", device)
    pooled_BP, null_1P = text(captions(256, random.Random(args.seed)))[1], text([""])[1]
    evenly = torch.linspace(0, 1, len(pooled_BP), device=device)
    where = (pooled_BP, null_1P, W_MIN + (W_MAX - W_MIN) * evenly, evenly.flip(0))
    gain = calibrated_gain(network, architecture, *where, share=args.share)
    fused = FusedNetwork(network, architecture, gain=gain, scale=args.scale, precision=EXACT).to(device)
    lora = Lora(network, args.rank, seed=args.seed)
    if args.start_from:
        lora.load(load_file(args.start_from))
    info = StudentInfo(
        method="teefusion",
        mode="lora",
        w_min=W_MIN,
        w_max=W_MAX,
        gain=gain,
        guidance_timestep_scale=args.scale,
        w_precision=EXACT,
        teacher=TEACHER,
        base=base,
        step=0,
        pack_version=VERSION,
    )
    return Distillation(fused, lora, text, args.seed), info


def train(args: argparse.Namespace) -> None:
    """Train, average, write the student file."""
    distillation, info = prepare(args)
    lora = distillation.lora
    average = {name: tensor.clone() for name, tensor in lora.state_dict().items()}
    optimizer = torch.optim.Muon(lora.parameters(), lr=args.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    start, losses = time.time(), []
    for _ in range(FIRST_WALKS):
        distillation.walk(args.batch)
    for step in range(1, args.steps + 1):
        if step % STEPS_PER_WALK == 0:
            distillation.walk(args.batch)
        loss = distillation.loss(args.batch)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(step / 50, 1 - step / args.steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, tensor in lora.state_dict().items():
                average[name].lerp_(tensor, 1 - min(0.99, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if step % 50 == 0:
            row = {"step": step, "loss": round(sum(losses) / len(losses), 5), "seconds": round(time.time() - start, 1)}
            losses.clear()
            print(row, flush=True)
            with (RUNS / "distill.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
    lora.load_state_dict(average)
    info = dataclasses.replace(info, step=args.steps)
    write_student(Path(args.out), lora.state(), info)
    print("saved", args.out, info, flush=True)


def main() -> None:
    """Parse, then train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=str(MODELS / "tiny_sd3_base.safetensors"))
    parser.add_argument("--out", default=str(RUNS / "tiny_sd3_student.safetensors"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--start-from", help="student file to go on from")
    parser.add_argument("--scale", type=float, default=1000.0, help="guidance timestep scale")
    parser.add_argument(
        "--share", type=float, default=TERM_SHARE, help="rms of the term over that of vec, at the start"
    )
    parser.add_argument("--seed", type=int, default=1)
    use_comfy()
    RUNS.mkdir(exist_ok=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
