"""The ComfyUI whose own network classes are trained here."""

import argparse
import os
import sys
from pathlib import Path

from teefusion_core.errors import InvalidConfig
from teefusion_core.files.comfyui_location import import_from_comfyui

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
RUNS = Path(__file__).resolve().parent / "runs"


def use_comfy(comfyui: Path | None = None) -> None:
    """Put ComfyUI first on the import path, on the CPU if there is no GPU; by default that of COMFYUI_PATH."""
    if comfyui is not None:
        os.environ["COMFYUI_PATH"] = str(comfyui)
    try:
        import_from_comfyui()
    except InvalidConfig as error:
        raise SystemExit(str(error)) from error
    import torch

    if not torch.cuda.is_available():
        sys.argv, argv = sys.argv[:1] + ["--cpu", "--use-pytorch-cross-attention"], sys.argv
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.model_management

        sys.argv = argv


def parser_of(doc: str | None, **defaults: int | float | str) -> argparse.ArgumentParser:
    """Return a parser with one option for each default, of the default's type."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser
