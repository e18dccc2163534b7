"""A ComfyUI inside this process."""

from __future__ import annotations

import logging
import os
from pathlib import Path


def use_host(comfyui: Path) -> None:
    """Put the host first on the import path, this repository last (its `nodes` would hide the host's)."""
    os.environ["COMFYUI_PATH"] = str(comfyui)
    from lab.demo_world.host import use_comfy

    use_comfy()
    logging.getLogger().setLevel(logging.WARNING)
