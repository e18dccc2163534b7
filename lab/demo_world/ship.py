"""Put trained checkpoints into models/ in the precision that the pack ships.

Run: python -m lab.demo_world.ship --base 12000 --weak 2000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from .host import MODELS, RUNS


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """float16 throughout; loading it back in any wider type loses nothing more."""
    return {name: t.half().contiguous() for name, t in tensors.items()}


def eighth(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """float8 matrices, the rest float16: good enough for the network that is meant to be the weak one."""
    return {
        name: t.to(torch.float8_e4m3fn).contiguous() if t.ndim == 2 else t.half().contiguous()
        for name, t in tensors.items()
    }


def main() -> None:
    """Copy the two steps."""
    from safetensors.torch import load_file, save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=int)
    parser.add_argument("--weak", type=int)
    args = parser.parse_args()
    for variant, step, narrow in (("base", args.base, half), ("weak", args.weak, eighth)):
        if step is not None:
            source = RUNS / f"base_{step:06}.safetensors"
            target: Path = MODELS / f"demo_sd3_{variant}.safetensors"
            metadata = {"architecture": "SD3 (MMDiT), demo size", "variant": variant, "step": str(step)}
            save_file(narrow(load_file(source)), target, metadata=metadata)
            print(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
