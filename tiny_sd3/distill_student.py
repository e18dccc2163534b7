"""Distil the demo student from the demo base with CFG as its teacher.

Shapes: B batch, latents [B,16,8,8], L tokens, P pooled width.
Run: python -m tiny_sd3.distill_student
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from teefusion_core.architectures import architecture_of
from teefusion_core.distill import Draws, FusedNetwork, Velocity, calibrated_gain, cfg_teacher, distillation_loss
from teefusion_core.fusion import EXACT
from teefusion_core.student_file import StudentInfo, write_student
from teefusion_core.trainable import Lora

from .captions import caption
from .host import MODELS, RUNS, use_comfy
from .latents import dataset
from .pretrain import Captions
from .scenes import Scene, claim_of

VERSION = "0.1.0"
TEACHER = "CFG at scale 1 + w, Euler, target: secant of the step"
W_MIN, W_MAX = 0.5, 6.0
TERM_SHARE = 0.25
RANK = 32


def load_network(path: Path):
    """The base through the host's loader, as bare network in float32."""
    import comfy.sd

    patcher = comfy.sd.load_diffusion_model(str(path))
    return patcher, patcher.model.diffusion_model.float().requires_grad_(False)


class Distillation:
    """Teacher and student on one copy of the base: the student's weights are the base's with the update added."""

    def __init__(self, fused: FusedNetwork, lora: Lora, text: Captions, draws: Draws):
        self.fused, self.lora, self.text, self.draws = fused, lora, text, draws
        self.null_context_1LE, self.null_1P = text([""])

    def velocity(self, context_BLE, pooled_BP, *guidance, weights=None) -> Velocity:
        """The network at a prompt: as teacher's base, or with null, w and swapped weights as student."""

        def at(x_BCHW, sigma_B):
            arguments = (x_BCHW, sigma_B, context_BLE, pooled_BP, *guidance)
            with torch.autocast(x_BCHW.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                out = self.fused(*arguments) if weights is None else functional_call(self.fused, weights, arguments)
            return out.float()

        return at

    def loss(self, latent_BCHW: Tensor, texts: list[str], generator: torch.Generator) -> Tensor:
        """Algorithm 1 for one batch of clean latents with their captions."""
        context_BLE, pooled_BP = self.text(texts)
        null_context_BLE, null_BP = self.null_context_1LE.expand_as(context_BLE), self.null_1P.expand_as(pooled_BP)
        draw = self.draws(latent_BCHW, generator)
        cond, uncond = self.velocity(context_BLE, pooled_BP), self.velocity(null_context_BLE, null_BP)
        weights = {f"network.{name}": weight for name, weight in self.lora.merged().items()}
        student = self.velocity(context_BLE, pooled_BP, null_BP, draw.w_B, weights=weights)
        return distillation_loss(student, cfg_teacher(cond, uncond, draw.w_B), draw)


def captions_of(scenes: list[Scene], rng: random.Random) -> list[str]:
    """One right caption per scene."""
    return [caption(claim_of(scene, rng), rng) for scene in scenes]


def prepare(args: argparse.Namespace, scenes: list[Scene], latents: Tensor) -> tuple[Distillation, StudentInfo]:
    """Load the base, calibrate the gain on typical prompts, describe the student to be."""
    from teefusion_core.comfy_host import base_fingerprint

    device = "cuda" if torch.cuda.is_available() else "cpu"
    patcher, network = load_network(Path(args.base))
    base, architecture = base_fingerprint(patcher), architecture_of(network)
    network = network.to(device)
    text, draws = Captions(MODELS / "tiny_sd3_text.safetensors", device), Draws(W_MIN, W_MAX)
    typical = draws(latents[:256].float().to(device), torch.Generator().manual_seed(args.seed))
    pooled_BP, null_1P = text(captions_of(scenes[:256], random.Random(args.seed)))[1], text([""])[1]
    where = (pooled_BP, null_1P, typical.w_B, typical.sigma_from_B)
    gain = calibrated_gain(network, architecture, *where, share=args.share)
    fused = FusedNetwork(network, architecture, gain=gain, scale=args.scale, precision=EXACT).to(device)
    lora = Lora(dict(network.named_parameters()), args.rank, seed=args.seed)
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
    return Distillation(fused, lora, text, draws), info


def train(args: argparse.Namespace) -> None:
    """Train, average, write the student file."""
    scenes, latents = dataset(args.num, args.data_seed)
    distillation, info = prepare(args, scenes, latents)
    lora, device = distillation.lora, distillation.null_1P.device
    average = {name: tensor.clone() for name, tensor in lora.state_dict().items()}
    optimizer = torch.optim.AdamW(lora.parameters(), lr=args.lr, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    generator, rng = torch.Generator().manual_seed(args.seed + 1), random.Random(args.seed)
    start, losses = time.time(), []
    for step in range(1, args.steps + 1):
        rows = [rng.randrange(len(scenes)) for _ in range(args.batch)]
        texts = captions_of([scenes[row] for row in rows], rng)
        loss = distillation.loss(latents[rows].float().to(device), texts, generator)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, step / 50, max(0.02, (args.steps - step) / (0.4 * args.steps)))
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
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--scale", type=float, default=1000.0, help="guidance timestep scale")
    parser.add_argument(
        "--share", type=float, default=TERM_SHARE, help="rms of the term over that of vec, at the start"
    )
    parser.add_argument("--num", type=int, default=40000)
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    use_comfy()
    RUNS.mkdir(exist_ok=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
