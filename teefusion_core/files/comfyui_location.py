"""Find ComfyUI for commands that run outside of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import InvalidConfig

PACK = Path(__file__).resolve().parents[2]
AROUND, OWN = PACK.parent.parent, PACK / ".host" / "ComfyUI"
"""Where ComfyUI may be: around the custom_nodes folder that holds this pack, or where the demo installs it."""


def import_from_comfyui() -> None:
    """Put ComfyUI first on the import path: the one in COMFYUI_PATH, or else one that is found.

    Raises:
        InvalidConfig: no ComfyUI is found.
    """
    named = os.environ.get("COMFYUI_PATH")
    places = (Path(named),) if named else (AROUND, OWN)
    found = next((path for path in places if (path / "comfy").is_dir() and (path / "main.py").is_file()), None)
    if found is None:
        raise InvalidConfig(
            f"there is no ComfyUI in {' or '.join(map(str, places))}; set COMFYUI_PATH to the folder "
            "of a ComfyUI, which contains main.py"
        )
    sys.path.insert(0, str(found))
