"""Set-up of ComfyUI as a library on a machine without a GPU; it would assume one otherwise."""

import comfy.cli_args
import comfy.options
import torch

if not comfy.options.args_parsing and not torch.cuda.is_available():
    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True
