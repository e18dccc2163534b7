"""The host as a library: on the CPU only where there is no GPU that it can use."""

import importlib
import sys

import pytest
import torch

KINDS = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}


@pytest.mark.parametrize("present", [None, *KINDS])
def test_any_gpu_of_the_host_is_used(host, pack, monkeypatch, present):
    for name, kind in KINDS.items():
        monkeypatch.setattr(kind, "is_available", lambda name=name: name == present)
    arguments = host.comfy.cli_args.args
    for option in ("cpu", "use_pytorch_cross_attention"):
        monkeypatch.setattr(arguments, option, False)
    importlib.reload(sys.modules[f"{pack.module.__name__}.teefusion_core.comfy_host.headless"])
    assert arguments.cpu == arguments.use_pytorch_cross_attention == (present is None)
