"""The ComfyUI whose own network classes are trained here."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

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


def network_like(model: Any, dtype: Any, **unet: Any) -> Any:
    """Return a MODEL of a model's class that computes in a dtype, as on a GPU; its weights are not set.

    Loading a file in half precision is not enough: on a CPU, ComfyUI casts such weights to float32 in every pass.

    Args:
        model: MODEL whose class and settings are used.
        dtype: of the weights and of the computation.
        unet: settings of the network that differ.
    """
    import comfy.model_patcher
    import torch

    given, cpu = model.model.model_config, torch.device("cpu")
    config = type(given)({name: value for name, value in {**given.unet_config, **unet}.items() if name != "dtype"})
    config.set_inference_dtype(dtype, None)
    return comfy.model_patcher.ModelPatcher(config.get_model({}, "", device=cpu), cpu, cpu)


def computing_in(model: Any, dtype: Any) -> Any:
    """Return a copy of a MODEL with the same weights that computes in a dtype."""
    copy = network_like(model, dtype)
    copy.model.diffusion_model.load_state_dict(model.model.diffusion_model.state_dict())
    return copy
