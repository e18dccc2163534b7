"""What every tier shares: the repository on the path, one thread, fixed seeds, no deadlines, a started ComfyUI."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPO = Path(__file__).resolve().parent.parent

# public node packs are not part of the repository: `scripts/packs.py` says where they are
collect_ignore = [] if os.environ.get("TEEFUSION_PACKS") else ["host/test_packs.py", "server/test_packs.py"]

# appended, never first: our `nodes` would hide the host's module of that name
sys.path += [str(REPO), str(REPO / "scripts"), str(REPO / "tests" / "golden")]

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def comfyui():
    """Return the folder of ComfyUI."""
    return Path(os.environ.get("COMFYUI_PATH") or REPO / ".host" / "ComfyUI")


@pytest.fixture(scope="session")
def server(comfyui, tmp_path_factory):
    """Return a real ComfyUI, started as a user starts it, with a base directory of its own."""
    from runner.server import make_base, running

    folder = tmp_path_factory.mktemp("comfyui")
    frontend = os.environ.get("COMFYUI_FRONTEND")
    base = make_base(folder / "base", pack=REPO)
    with running(comfyui, base, folder / "comfyui.log", frontend=frontend) as started:
        yield started
