"""One real ComfyUI, as a user starts it, shared by the tests of this tier."""

import os
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(REPO / "scripts"))

from runner.base import make_base  # noqa: E402
from runner.server import running  # noqa: E402


@pytest.fixture(scope="session")
def comfyui():
    """Return the folder of ComfyUI."""
    return Path(os.environ.get("COMFYUI_PATH") or REPO / ".host" / "ComfyUI")


@pytest.fixture(scope="session")
def server(comfyui, tmp_path_factory):
    """Return a running server with a base directory of its own."""
    folder = tmp_path_factory.mktemp("comfyui")
    with running(comfyui, make_base(folder / "base", pack=REPO), folder / "comfyui.log") as started:
        yield started
