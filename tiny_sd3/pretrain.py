"""Pre-train the demo SD3 from scratch: flow matching with captions.

Shapes: B batch, C=16 latent channels, H W latent size (8), L tokens, D width.
The network is the host's MMDiT; text encoder and codec are frozen. Resumable: run the same command again.
Run: python -m tiny_sd3.pretrain --steps 12000
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .captions import caption
from .host import MODELS, RUNS, use_comfy
from .latents import dataset
from .scenes import claim_of, corrupt

DEPTH = 4
GRID = 16
WRONG_CAPTIONS = 0.35
"""Share of captions that pass through `corrupt`; about a quarter of all then claim something wrong."""
NULL_SHARE = 0.1
LOG_SNR_MEAN, LOG_SNR_STD = 0.4, 1.2


def build_network(text_width: int, pooled_width: int) -> nn.Module:
    """The host's MMDiT in demo size with a DiT initialisation: adaLN gates and output start at zero."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT, get_2d_sincos_pos_embed_torch

    width = 64 * DEPTH
    network = MMDiT(
        input_size=None,
        patch_size=2,
        in_channels=16,
        depth=DEPTH,
        adm_in_channels=pooled_width,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": text_width, "out_features": width},
        },
        pos_embed_max_size=GRID,
        num_patches=GRID * GRID,
        qk_norm="rms",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    network.pos_embed.copy_(get_2d_sincos_pos_embed_torch(width, GRID, GRID)[None])
    for name, parameter in network.named_parameters():
        if name.startswith("final_layer.linear") or "adaLN_modulation" in name or parameter.ndim == 1:
            nn.init.constant_(parameter, 1.0 if ".ln_" in name else 0.0)
        elif name.startswith(("t_embedder", "y_embedder")):
            nn.init.normal_(parameter, std=0.05)
        else:
            nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1))
    return network


class Captions:
    """Frozen text encoder over the word tokenizer, as tensors."""

    def __init__(self, path: Path, device: str):
        import comfy.ops
        from safetensors import safe_open
        from safetensors.torch import load_file

        from teefusion_core.comfy_host.tiny import NUM_TOKENS, WordTextModel, WordTokenizer, text_config

        with safe_open(path, "pt") as file:
            words = json.loads(file.metadata()["words"])
        self.length, self.tokenizer = NUM_TOKENS, WordTokenizer(words)
        self.model = WordTextModel(text_config(len(words)), torch.float32, device, comfy.ops.disable_weight_init)
        self.model.load_state_dict({k: v.float() for k, v in load_file(path).items()})

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Context [B,L,D] with pooled [B,P]."""
        from .text_encoder import token_numbers

        device = self.model.text_projection.weight.device
        hidden_BLD, _, pooled_BP, _ = self.model(token_numbers(texts, self.tokenizer, self.length).to(device))
        return hidden_BLD, pooled_BP


def velocity_loss(network: nn.Module, latent_BCHW: Tensor, context_BLD: Tensor, pooled_BP: Tensor, generator) -> Tensor:
    """Flow matching: the network predicts noise - latent at x = (1 - sigma) latent + sigma noise."""
    device = latent_BCHW.device
    sigma_B = torch.sigmoid(LOG_SNR_MEAN + LOG_SNR_STD * torch.randn(len(latent_BCHW), generator=generator)).to(device)
    noise_BCHW = torch.randn(latent_BCHW.shape, generator=generator).to(device)
    s = sigma_B.view(-1, 1, 1, 1)
    # 40 tokens: plain attention is faster than a fused kernel, most of all backward
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        velocity = network(torch.lerp(latent_BCHW, noise_BCHW, s), sigma_B * 1000, pooled_BP, context_BLD)
    return (velocity.float() - (noise_BCHW - latent_BCHW)).square().mean()


def learning_rate(step: int, steps: int, decay: int, peak: float) -> float:
    """Warm-up, plateau, then linear decay over the last `decay` steps: longer runs share its plateau."""
    return peak * min(1.0, (step + 1) / 200, max(0.02, (steps - step) / decay))


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write whole or not at all."""
    from safetensors.torch import save_file

    part = path.with_suffix(".part")
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, part, metadata=metadata)
    os.replace(part, path)


def train(args: argparse.Namespace) -> None:
    """The loop; everything random at a step follows from (seed, step), so a resumed run goes on as it would have."""
    from safetensors import safe_open

    device = "cuda" if torch.cuda.is_available() else "cpu"
    scenes, latents = dataset(args.num, args.seed)
    text = Captions(MODELS / "tiny_sd3_text.safetensors", device)
    context, pooled = text([""])
    torch.manual_seed(args.seed)
    network = build_network(context.shape[-1], pooled.shape[-1]).to(device)
    average = {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    state_path, log_path, step, seconds = RUNS / "pretrain.safetensors", RUNS / "pretrain.jsonl", 0, 0.0
    if state_path.exists():
        with safe_open(state_path, "pt") as file:
            stored = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  not a dict
            step, seconds = int(file.metadata()["step"]), float(file.metadata()["seconds"])
        network.load_state_dict({k[4:]: v for k, v in stored.items() if k.startswith("net.")})
        average = {k[4:]: v.to(device) for k, v in stored.items() if k.startswith("ema.")}
        names = [n for n, _ in network.named_parameters()]
        optimizer.load_state_dict(
            {
                "state": {
                    i: {key: stored[f"opt.{key}.{n}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                    for i, n in enumerate(names)
                },
                "param_groups": optimizer.state_dict()["param_groups"],
            }
        )
        print(f"resumed at step {step}", flush=True)

    def checkpoint() -> None:
        tensors = {f"net.{k}": v for k, v in network.state_dict().items()} | {f"ema.{k}": v for k, v in average.items()}
        for name, parameter in network.named_parameters():
            tensors |= {f"opt.{k}.{name}": torch.as_tensor(v) for k, v in optimizer.state[parameter].items()}
        save(state_path, tensors, {"step": str(step), "seconds": str(seconds)})
        save(RUNS / f"base_{step:06}.safetensors", {k: v.half() for k, v in average.items()}, {"step": str(step)})

    mark, losses = time.time(), []
    while step < args.steps:
        rng, generator = (
            random.Random(f"{args.seed}.{step}"),
            torch.Generator().manual_seed(args.seed * 1_000_003 + step),
        )
        rows = [rng.randrange(len(scenes)) for _ in range(args.batch)]
        texts = []
        for row in rows:
            claim = claim_of(scenes[row], rng)
            claim = corrupt(claim, rng) if rng.random() < WRONG_CAPTIONS else claim
            texts.append("" if rng.random() < NULL_SHARE else caption(claim, rng))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.decay, args.lr)
        loss = velocity_loss(network, latents[rows].float().to(device), *text(texts), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        momentum = min(args.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in network.state_dict().items():
                average[key].lerp_(value, 1 - momentum)
        losses.append(loss.item())
        if step % 50 == 0:
            seconds, mark = seconds + time.time() - mark, time.time()
            row = {"step": step, "loss": round(sum(losses) / len(losses), 4), "seconds": round(seconds, 1)}
            losses.clear()
            with log_path.open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
            if not math.isfinite(row["loss"]):
                raise SystemExit("the loss is not finite; lower --lr and remove the run folder")
        if step % args.every == 0 or step == args.steps:
            checkpoint()


def main() -> None:
    """Parse, then train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--decay", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--num", type=int, default=20000)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    use_comfy()
    RUNS.mkdir(exist_ok=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
