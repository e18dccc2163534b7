"""ComfyUI as a library: it has read no options, without which it takes a GPU for granted."""

import comfy.cli_args
import comfy.options
import torch

if not comfy.options.args_parsing and not torch.cuda.is_available():
    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True
