"""The ComfyUI whose own network classes are trained here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
RUNS = Path(__file__).resolve().parent / "runs"


def use_comfy() -> None:
    """Put ComfyUI first on the import path, on the CPU unless a GPU is there."""
    path = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI")
    if not (path / "comfy").is_dir():
        raise SystemExit(f"No ComfyUI in {path}. Run scripts/demo.py once, or set COMFYUI_PATH.")
    sys.path.insert(0, str(path))
    import torch

    if not torch.cuda.is_available():
        sys.argv, argv = sys.argv[:1] + ["--cpu", "--use-pytorch-cross-attention"], sys.argv
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.model_management

        sys.argv = argv
