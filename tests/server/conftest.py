"""One real ComfyUI, as a user starts it, shared by the tests of this tier."""

import os
import shutil
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
def pack(tmp_path_factory, request):
    """Return the pack: the repository, or a copy with stand-ins while it ships no trained model."""
    top = next(p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "demo_models"))
    models = top.demo_models(tmp_path_factory.mktemp("models"))
    if models == REPO / "models":
        return REPO
    copy = tmp_path_factory.mktemp("pack")
    for part in ("__init__.py", "nodes", "teefusion_core", "web", "workflows"):
        source = REPO / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / part)
    shutil.copytree(models, copy / "models")
    return copy


@pytest.fixture(scope="session")
def server(comfyui, pack, tmp_path_factory):
    """Return a running server with a base directory of its own."""
    folder = tmp_path_factory.mktemp("comfyui")
    with running(comfyui, make_base(folder / "base", pack=pack), folder / "comfyui.log") as started:
        yield started
