"""Alignment of the demo model on held-out prompts, sampled by ComfyUI itself.

Shapes: B prompts, L tokens, P pooled width, latents [B,16,8,8].
Run: python -m lab.demo_world.measure --cfg 1 2 3 4 6 --w 1 2 4
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .captions import held_out_prompts
from .host import MODELS, use_comfy
from .scenes import Scene
from .verifier import CATEGORIES, score

STEPS, SAMPLER, SCHEDULER = 20, "euler", "normal"
BATCH = 128


def encode(clip, texts: list[str]) -> list:
    """Return one stock CONDITIONING whose rows are the prompts."""
    parts = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in texts]
    context_BLD, pooled_BP = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    return [[context_BLD, {"pooled_output": pooled_BP}]]


def sample(model, positive, negative, cfg: float, noise_BCHW: Tensor, seed: int) -> Tensor:
    import comfy.sample

    run = (model, noise_BCHW, STEPS, cfg, SAMPLER, SCHEDULER, positive, negative, torch.zeros_like(noise_BCHW))
    return comfy.sample.sample(*run, seed=seed, disable_pbar=True)


@torch.inference_mode()  # as the host runs its nodes; otherwise its VAE keeps gradients
def pictures(vae, latents_BCHW: Tensor) -> np.ndarray:
    """Decode latents to uint8 images [B,64,64,3] with the stock VAE."""
    return (vae.decode(latents_BCHW).cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)


class Bench:
    """Held-out prompts with shared noise, encoded once."""

    def __init__(self, clip, vae, num: int, seed: int = 2024):
        prompts = held_out_prompts(num, seed)
        self.vae, self.seed = vae, seed
        self.claims: list[Scene] = [claim for _, claim in prompts]
        self.texts = [text for text, _ in prompts]
        self.conditionings = [encode(clip, self.texts[i : i + BATCH]) for i in range(0, num, BATCH)]
        self.null = encode(clip, [""])
        generator = torch.Generator().manual_seed(seed)
        self.noise_NCHW = torch.randn(num, 16, 8, 8, generator=generator)

    def images(self, model, cfg: float, w: float | None = None) -> np.ndarray:
        """Sample every prompt: at `cfg`, or as a student at guidance w (cfg 1)."""
        from teefusion_core.comfy_host.guidance.patch import apply_fusion

        parts = []
        for index, positive in enumerate(self.conditionings):
            noise = self.noise_NCHW[index * BATCH : (index + 1) * BATCH]
            fused = (model, positive) if w is None else apply_fusion(model, positive, self.null, w)
            parts.append(pictures(self.vae, sample(fused[0], fused[1], self.null, cfg, noise, self.seed)))
        return np.concatenate(parts)

    def row(self, name: str, model, cfg: float, w: float | None = None) -> dict:
        return {"method": name, "cfg": cfg, "w": w, **self.judged(partial(self.images, model, cfg, w))}

    def judged(self, sample_all: Callable[[], np.ndarray]) -> dict:
        """Return shares of right images, clipping and seconds of a function that samples every prompt."""
        start = time.perf_counter()
        images = sample_all()
        seconds = time.perf_counter() - start
        clipped = float(((images == 0) | (images == 255)).mean())
        return {**score(images, self.claims), "clipped": clipped, "seconds": seconds}


def predictions(model, positive, negative, where: list[tuple[Tensor, Tensor]], noise_BCHW: Tensor) -> list[Tensor]:
    """Return the denoised predictions of a model at given states, at cfg 1."""
    import comfy.sample
    import comfy.samplers

    found = []

    def record(denoiser, x, sigmas, extra_args=None, **_):
        found.extend(denoiser(state, sigma.expand(len(state)), **(extra_args or {})) for state, sigma in where)
        return x

    sampler, sigmas = comfy.samplers.KSAMPLER(record), torch.stack([where[0][1], where[-1][1]])
    run = (model, noise_BCHW, 1.0, sampler, sigmas, positive, negative, torch.zeros_like(noise_BCHW))
    comfy.sample.sample_custom(*run, seed=0, disable_pbar=True)
    return found


def print_row(row: dict) -> None:
    shares = "  ".join(f"{name} {row[name]:.3f}" for name in (*CATEGORIES, "overall"))
    setting = f"{row['method']:>8} cfg {row['cfg']:<4g} w {row['w'] or '-':<4}"
    print(f"{setting} {shares}  {row['seconds']:.1f} s", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=512)
    parser.add_argument("--base", default="base", help="a variant of Load Demo Model")
    parser.add_argument("--model", help="a checkpoint instead of the shipped weights of that variant")
    parser.add_argument("--student", default="student", help="a variant of Load Demo Model, or a student file")
    parser.add_argument("--cfg", type=float, nargs="*", default=[1, 2, 3, 4, 6])
    parser.add_argument("--w", type=float, nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--grid", type=Path, help="write the first 40 pictures of the last row")
    args = parser.parse_args()
    own = Path(args.student)
    if own.suffix and not own.is_file():
        parser.error(f"{own.absolute()} does not exist; give the path of a student file")
    use_comfy()
    import comfy.sd

    from teefusion_core.comfy_host.demo_model import SD15, load_clip, load_demo, load_vae
    from teefusion_core.comfy_host.demo_sd15 import load_sd15
    from teefusion_core.comfy_host.guidance.student_loader import load_student

    clip, vae = load_clip(MODELS / "demo_sd3_text.safetensors"), load_vae(MODELS / "demo_sd3_vae.safetensors")
    load = load_sd15 if args.base == SD15 else comfy.sd.load_diffusion_model
    base = load(args.model) if args.model else load_demo(args.base)[0]
    bench, rows = Bench(clip, vae, args.num, args.seed), []
    for cfg in args.cfg:
        rows.append(bench.row("teacher", base, cfg))
        print_row(rows[-1])
    if args.w:
        student = load_student(base, own) if own.suffix else load_demo(args.student)[0]
        for w in args.w:
            rows.append(bench.row("student", student, 1.0, w))
            print_row(rows[-1])
    if args.json:
        args.json.write_text(json.dumps({"alignment": rows}, indent=1) + "\n")
    if args.grid:
        from PIL import Image

        last = (student, 1.0, args.w[-1]) if args.w else (base, args.cfg[-1])
        grid = bench.images(*last)[:40].reshape(4, 10, 64, 64, 3).swapaxes(1, 2).reshape(256, 640, 3)
        Image.fromarray(grid).resize((1280, 512), Image.Resampling.NEAREST).save(args.grid)


if __name__ == "__main__":
    main()
