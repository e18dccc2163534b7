"""The folder in which a ComfyUI of ours keeps its models, pictures, settings."""

import os
from pathlib import Path

from .places import PACK, PROBE, PROBE_NAME, ROOT
from .stop import Stop

FOLDERS = ("custom_nodes", "models/loras", "input", "output", "temp", "user")


def make_base(folder: Path, *, probe: bool = True, pack: Path = ROOT) -> Path:
    """Make a base directory with this pack linked into its custom_nodes."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    _link(folder / "custom_nodes" / PACK, pack)
    if probe:
        _link(folder / "custom_nodes" / PROBE_NAME, PROBE)
    return folder


def _link(link: Path, target: Path) -> None:
    if link.is_symlink():
        if os.readlink(link) == str(target):
            return
        link.unlink()
    elif link.exists():
        raise Stop(f"{link} is in the way of a link to {target}; move it elsewhere, then run the same command again.")
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        raise Stop(
            f"Cannot link {target} into {link.parent} ({error.strerror}); allow symbolic links there."
        ) from error
