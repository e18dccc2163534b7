"""Distil the demo student from the demo base with CFG as its teacher.

Shapes: B batch, latents [B,16,8,8], L tokens, P pooled width.
Run: python -m tiny_sd3.distill_student --minutes 12
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from .captions import caption
from .host import MODELS, RUNS, use_comfy
from .latents import dataset
from .pretrain import Captions
from .scenes import claim_of

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


def train(args: argparse.Namespace) -> None:
    """Algorithm 1 on the demo world; writes the student file."""
    from teefusion_core.architectures import architecture_of
    from teefusion_core.comfy_host import base_fingerprint
    from teefusion_core.distill import Draws, FusedNetwork, calibrated_gain, cfg_teacher, distillation_loss
    from teefusion_core.student_file import StudentInfo, write_student
    from teefusion_core.trainable import Lora

    device = "cuda" if torch.cuda.is_available() else "cpu"
    patcher, network = load_network(Path(args.base))
    base, architecture = base_fingerprint(patcher), architecture_of(network)
    network = network.to(device)
    text = Captions(MODELS / "tiny_sd3_text.safetensors", device)
    scenes, latents = dataset(args.num, args.data_seed)
    null_context_1LE, null_1P = text([""])
    draws, generator = Draws(W_MIN, W_MAX), torch.Generator().manual_seed(args.seed)
    sample_texts = [caption(claim_of(s, random.Random(i)), random.Random(i)) for i, s in enumerate(scenes[:256])]
    typical = draws(latents[:256].float().to(device), generator)
    gain = calibrated_gain(
        network, architecture, text(sample_texts)[1], null_1P, typical.w_B, typical.sigma_from_B, share=args.share
    )
    fused = FusedNetwork(network, architecture, gain=gain, scale=args.scale, precision="exact").to(device)
    lora = Lora(dict(network.named_parameters()), args.rank, seed=args.seed)
    average = {k: v.clone() for k, v in lora.state_dict().items()}
    optimizer = torch.optim.AdamW(lora.parameters(), lr=args.lr, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    rng, start, step, losses = random.Random(args.seed), time.time(), 0, []
    while (done := max(step / args.steps, (time.time() - start) / (60 * args.minutes))) < 1:
        rows = [rng.randrange(len(scenes)) for _ in range(args.batch)]
        context_BLE, pooled_BP = text([caption(claim_of(scenes[r], rng), rng) for r in rows])
        null_context_BLE, null_BP = null_context_1LE.expand_as(context_BLE), null_1P.expand_as(pooled_BP)
        draw = draws(latents[rows].float().to(device), generator)
        weights = {f"network.{name}": weight for name, weight in lora.merged().items()}

        def velocity(context, pooled, *guidance, weights=None):
            def at(x_BCHW, sigma_B):
                arguments = (x_BCHW, sigma_B, context, pooled, *guidance)
                with torch.autocast(device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                    out = fused(*arguments) if weights is None else functional_call(fused, weights, arguments)
                return out.float()

            return at

        teacher = cfg_teacher(velocity(context_BLE, pooled_BP), velocity(null_context_BLE, null_BP), draw.w_B)
        student = velocity(context_BLE, pooled_BP, null_BP, draw.w_B, weights=weights)
        loss = distillation_loss(student, teacher, draw)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 50, max(0.02, (1 - done) / 0.4))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lora.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for key, value in lora.state_dict().items():
                average[key].lerp_(value, 1 - min(0.99, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if step % 50 == 0:
            row = {"step": step, "loss": round(sum(losses) / len(losses), 5), "seconds": round(time.time() - start, 1)}
            losses.clear()
            print(row, flush=True)
            with (RUNS / "distill.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
    lora.load_state_dict(average)
    info = StudentInfo(
        method="teefusion",
        mode="lora",
        w_min=W_MIN,
        w_max=W_MAX,
        gain=gain,
        guidance_timestep_scale=args.scale,
        w_precision="exact",
        teacher=TEACHER,
        base=base,
        step=step,
        pack_version=VERSION,
    )
    write_student(Path(args.out), lora.state(), info)
    print("saved", args.out, info, flush=True)


def main() -> None:
    """Parse, then train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=str(MODELS / "tiny_sd3_base.safetensors"))
    parser.add_argument("--out", default=str(RUNS / "tiny_sd3_student.safetensors"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop earlier after this long")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--scale", type=float, default=1000.0, help="guidance timestep scale")
    parser.add_argument(
        "--share", type=float, default=TERM_SHARE, help="rms of the term over that of vec, at the start"
    )
    parser.add_argument("--num", type=int, default=20000)
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    use_comfy()
    RUNS.mkdir(exist_ok=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
