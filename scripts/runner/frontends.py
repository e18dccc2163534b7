"""ComfyUI frontends besides the one that the host pins, for the browser tests."""

import zipfile
from pathlib import Path

from .environment import fresh, run_pip, stamped
from .places import HOST
from .stop import say

FRONTENDS = ("1.53.6", "1.58.1")
PACKAGE = "comfyui-frontend-package"
INSIDE = Path("comfyui_frontend_package") / "static"


def make_frontend(version: str) -> Path:
    """Return the folder of a frontend, downloaded where it is missing."""
    folder = HOST / "frontends" / version
    if not stamped(folder, version):
        say(f"set-up: ComfyUI frontend {version}")
        with fresh(folder, version) as partial:
            _download(f"{PACKAGE}=={version}", partial)
    return folder / INSIDE


def _download(requirement: str, folder: Path) -> None:
    run_pip(f"Downloading {requirement}", "download", "--no-deps", "--no-cache-dir", "--dest", folder, requirement)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
