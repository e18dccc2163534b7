"""What every tier shares: the repository on the path, one thread, fixed seeds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent

# appended, never first: our `nodes` would hide the host's module of that name
sys.path += [str(REPO), str(REPO / "tests" / "golden")]

MODELS = REPO / "models"


def demo_models(folder: Path) -> Path:
    """Return where the demo model is: the pack's own folder, or untrained stand-ins while it ships none."""
    if (MODELS / "tiny_sd3_student.safetensors").is_file():
        return MODELS
    environment = {**os.environ, "COMFYUI_PATH": os.environ.get("COMFYUI_PATH") or str(REPO / ".host" / "ComfyUI")}
    command = [sys.executable, "-m", "tiny_sd3.untrained", str(folder)]
    subprocess.run(command, cwd=REPO, env=environment, check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)
    torch.set_num_threads(1)
