"""Pre-train a demo model from scratch, with captions.

Shapes: B batch, L tokens, D text width, P pooled width.
Text encoder and VAE are frozen. Run the same command again to resume.
Run: python -m lab.demo_world.pretrain --network sd3 --steps 12000
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from .captions import caption
from .host import MODELS, RUNS, parser_of, use_comfy
from .latents import dataset
from .networks import NETWORKS, Trained
from .scenes import Scene, claim_of, corrupt

WRONG_CAPTIONS = 0.15
"""Share of captions that pass through `corrupt`."""
NULL_SHARE = 0.1
LOG_EVERY = 50


class Captions:
    """The frozen text encoder with the word tokenizer; its outputs are tensors."""

    def __init__(self, path: Path, device: str):
        import comfy.ops
        from safetensors import safe_open
        from safetensors.torch import load_file

        from teefusion_core.comfy_host.demo_model import NUM_TOKENS, WordTextModel, WordTokenizer, text_config

        with safe_open(path, "pt") as file:
            words = json.loads(file.metadata()["words"])
        self.length, self.tokenizer = NUM_TOKENS, WordTokenizer(words)
        self.model = WordTextModel(text_config(len(words)), torch.float32, device, comfy.ops.disable_weight_init)
        self.model.load_state_dict({k: v.float() for k, v in load_file(path).items()})

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return context [B,L,D] and pooled [B,P]."""
        from .text_encoder import token_numbers

        device = self.model.text_projection.weight.device
        hidden_BLD, _, pooled_BP, _ = self.model(token_numbers(texts, self.tokenizer, self.length).to(device))
        return hidden_BLD, pooled_BP


def learning_rate(step: int, steps: int, decay: int, peak: float) -> float:
    """Warm-up, plateau, and linear decay over the last `decay` steps; the plateau does not depend on the total."""
    return peak * min(1.0, (step + 1) / 200, max(0.02, (steps - step) / decay))


class Run:
    """The network with its moving average and optimizers, stored on disk between sessions."""

    def __init__(self, network: nn.Module, kind: Trained, lr: float):
        self.network, self.step, self.seconds = network, 0, 0.0
        self.muon_from = kind.muon_from
        self.state = RUNS / kind.folder / "pretrain.safetensors"
        self.average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        self.names = {parameter: name for name, parameter in network.named_parameters()}
        found = [(name, p) for p, name in self.names.items() if p.ndim > 1 and any(map(name.__contains__, kind.blocks))]
        # Muon takes matrices alone; a kernel shares its memory with one
        self.matrices = {nn.Parameter(p.detach().flatten(1)) if p.ndim > 2 else p: p for _, p in found}
        self.names |= {matrix: self.names[p] for matrix, p in self.matrices.items()}
        self.adam = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
        self.muon = torch.optim.Muon(list(self.matrices), lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")

    def update(self, loss: Tensor, lr: float, momentum: float) -> None:
        """Take one optimizer step; the moving average decays faster in the first steps."""
        for optimizer in (self.adam, self.muon):
            optimizer.param_groups[0]["lr"] = lr
        self.network.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if self.step >= self.muon_from:
            for matrix, parameter in self.matrices.items():
                matrix.grad = parameter.grad.flatten(1)
            self.muon.step()
            for matrix, parameter in self.matrices.items():
                matrix.grad = parameter.grad = None
                self.adam.state.pop(parameter, None)
        self.adam.step()
        self.step += 1
        momentum = min(momentum, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, tensor in self.network.state_dict().items():
                self.average[name].lerp_(tensor, 1 - momentum)

    def save(self) -> None:
        """Write the state to resume from, and the moving average as a checkpoint of this step."""
        from safetensors.torch import save_file

        tensors = {f"net.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.average.items()}
        for kind, optimizer in (("adam", self.adam), ("muon", self.muon)):
            for parameter, moments in optimizer.state.items():
                name = self.names[parameter]
                tensors |= {f"{kind}.{key}.{name}": torch.as_tensor(value) for key, value in moments.items()}
        metadata = {"step": str(self.step), "seconds": str(self.seconds)}
        part = self.state.with_suffix(".part")
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, part, metadata=metadata)
        os.replace(part, self.state)
        half = {name: tensor.half().contiguous().cpu() for name, tensor in self.average.items()}
        save_file(half, self.state.with_name(f"base_{self.step:06}.safetensors"), metadata=metadata)

    def resume(self) -> None:
        from safetensors import safe_open

        if not self.state.exists():
            return
        with safe_open(self.state, "pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            self.step, self.seconds = int(file.metadata()["step"]), float(file.metadata()["seconds"])
        self.network.load_state_dict({name[4:]: t for name, t in stored.items() if name.startswith("net.")})
        for name, tensor in self.average.items():
            tensor.copy_(stored[f"ema.{name}"])
        for kind, optimizer in (("adam", self.adam), ("muon", self.muon)):
            parameters = optimizer.param_groups[0]["params"]
            moments = [_moments(stored, kind, self.names[parameter]) for parameter in parameters]
            state = {i: moment for i, moment in enumerate(moments) if moment}
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        print(f"resumed at step {self.step}", flush=True)


def _moments(stored: dict[str, Tensor], kind: str, name: str) -> dict[str, Tensor]:
    keys = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
    return {key: stored[f"{kind}.{key}.{name}"] for key in keys if f"{kind}.{key}.{name}" in stored}


def texts_of(scenes: list[Scene], rng: random.Random) -> list[str]:
    """Return one caption per scene; some are wrong, and some are empty."""
    texts = []
    for scene in scenes:
        claim = claim_of(scene, rng)
        claim = corrupt(claim, rng) if rng.random() < WRONG_CAPTIONS else claim
        texts.append("" if rng.random() < NULL_SHARE else caption(claim, rng))
    return texts


def train(args: argparse.Namespace) -> None:
    """Run the loop; (seed, step) determines all random numbers of a step, so a resumed run gives the same result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scenes, latents = dataset(args.num, args.seed)
    text = Captions(MODELS / "demo_sd3_text.safetensors", device)
    context, pooled = text([""])
    torch.manual_seed(args.seed)
    kind = NETWORKS[args.network]
    run = Run(kind.build(context.shape[-1], pooled.shape[-1]).to(device), kind, args.lr)
    run.state.parent.mkdir(parents=True, exist_ok=True)
    run.resume()
    mark, losses = time.time(), []
    while run.step < args.steps:
        rng = random.Random(f"{args.seed}.{run.step}")
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + run.step)
        rows = [rng.randrange(len(scenes)) for _ in range(args.batch)]
        texts = texts_of([scenes[row] for row in rows], rng)
        loss = kind.loss(run.network, latents[rows].float().to(device), *text(texts), generator)
        run.update(loss, learning_rate(run.step, args.steps, args.decay, args.lr), args.ema)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise SystemExit(f"the loss is {losses[-1]} at step {run.step}; lower --lr (the last checkpoint is intact)")
        if run.step % LOG_EVERY == 0:
            run.seconds, mark = run.seconds + time.time() - mark, time.time()
            row = {"step": run.step, "loss": round(sum(losses) / len(losses), 4), "seconds": round(run.seconds, 1)}
            losses.clear()
            with run.state.with_suffix(".jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
        if run.step % args.every == 0 or run.step == args.steps:
            run.save()


def main() -> None:
    sizes = {"steps": 12000, "decay": 2500, "batch": 128, "num": 40000, "every": 500}
    parser = parser_of(__doc__, **sizes, lr=8e-4, ema=0.998, seed=0)
    parser.add_argument("--network", choices=NETWORKS, default="sd3")
    use_comfy()
    train(parser.parse_args())


if __name__ == "__main__":
    main()
