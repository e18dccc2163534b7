"""Copy trained checkpoints to models/ in the precision that the pack ships.

Run: python -m lab.demo_world.ship --base 12000 --weak 2000
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from .host import MODELS, RUNS


def narrowed(tensors: dict[str, Tensor], matrices: torch.dtype) -> dict[str, Tensor]:
    """Cast matrices to the given dtype and the rest to float16."""
    return {name: t.to(matrices if t.ndim == 2 else torch.float16).contiguous() for name, t in tensors.items()}


def main() -> None:
    from safetensors.torch import load_file, save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=int)
    parser.add_argument("--weak", type=int)
    args = parser.parse_args()
    # float8 is good enough for the network that is meant to be the weak one
    for variant, step, matrices in (("base", args.base, torch.float16), ("weak", args.weak, torch.float8_e4m3fn)):
        if step is not None:
            source = RUNS / f"base_{step:06}.safetensors"
            target: Path = MODELS / f"demo_sd3_{variant}.safetensors"
            metadata = {"architecture": "SD3 (MMDiT), demo size", "variant": variant, "step": str(step)}
            save_file(narrowed(load_file(source), matrices), target, metadata=metadata)
            print(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
