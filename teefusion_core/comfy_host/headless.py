"""Set-up of ComfyUI as a library on a machine without a GPU; it would assume one otherwise."""

import comfy.cli_args
import comfy.options
import torch

KINDS = (torch.cuda, torch.backends.mps, getattr(torch, "xpu", None))
"""Of GPU that the host uses without an option."""

if not comfy.options.args_parsing and not any(kind and kind.is_available() for kind in KINDS):
    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True
