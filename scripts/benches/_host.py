"""A ComfyUI inside this process."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from runner.places import ROOT


def use_host(comfyui: Path) -> None:
    """Put the host first on the import path, this repository last (its `nodes` would hide the host's)."""
    os.environ["COMFYUI_PATH"] = str(comfyui)
    sys.path.append(str(ROOT))
    from tiny_sd3.host import use_comfy

    use_comfy()
    logging.getLogger().setLevel(logging.WARNING)
