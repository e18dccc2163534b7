"""Copy trained checkpoints to models/ in the precision that the pack ships.

Run: python -m lab.demo_world.ship --base 12000 --weak 2000 --sd15 11000
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from .host import MODELS, RUNS
from .networks import NETWORKS

ARCHITECTURE = {"sd3": "SD3 (MMDiT), demo size", "sd15": "SD1.5 (UNet), demo size"}


def narrowed(tensors: dict[str, Tensor], matrices: torch.dtype) -> dict[str, Tensor]:
    """Cast matrices and kernels to the given dtype and the rest to float16."""
    return {name: t.to(matrices if t.ndim in (2, 4) else torch.float16).contiguous() for name, t in tensors.items()}


def main() -> None:
    from safetensors.torch import load_file, save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for variant in ("base", "weak", "sd15"):
        parser.add_argument(f"--{variant}", type=int, help="step of the checkpoint")
    args = parser.parse_args()
    # float8 saves space; it is good enough for a small model, and for one that is meant to be weak
    for variant, network, step, matrices in (
        ("base", "sd3", args.base, torch.float16),
        ("weak", "sd3", args.weak, torch.float8_e4m3fn),
        ("base", "sd15", args.sd15, torch.float8_e4m3fn),
    ):
        if step is not None:
            target: Path = MODELS / f"demo_{network}_{variant}.safetensors"
            metadata = {"architecture": ARCHITECTURE[network], "variant": variant, "step": str(step)}
            source = RUNS / NETWORKS[network].folder / f"base_{step:06}.safetensors"
            save_file(narrowed(load_file(source), matrices), target, metadata)
            print(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
