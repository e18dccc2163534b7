"""Where the scripts keep what they make."""

import os
from pathlib import Path

PACK = "ComfyUI-TeEFusion"
"""Folder name of this pack inside custom_nodes, whatever the checkout is called."""

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
VENV = ROOT / ".venv"
HOST = ROOT / ".host"
CACHE = ROOT / ".cache"
COMFYUI = HOST / "ComfyUI"
BASE = HOST / "base"
OUTPUT = ROOT / "output"
WORKFLOWS = ROOT / "workflows"
LOCK_FILE = SCRIPTS / "requirements.lock"
PROBE = SCRIPTS / "probe"
PROBE_NAME = "teefusion_probe"


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
