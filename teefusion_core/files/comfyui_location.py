"""Where a ComfyUI is, for what runs outside of one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import InvalidConfig

PACK = Path(__file__).resolve().parents[2]
AROUND, OWN = PACK.parent.parent, PACK / ".host" / "ComfyUI"
"""Where one may be: around custom_nodes with this pack, where the demo has made it."""


def import_from_comfyui() -> None:
    """Put the ComfyUI that COMFYUI_PATH names first on the import path, else one that is found.

    Raises:
        InvalidConfig: there is none.
    """
    named = os.environ.get("COMFYUI_PATH")
    places = (Path(named),) if named else (AROUND, OWN)
    found = next((path for path in places if (path / "comfy").is_dir() and (path / "main.py").is_file()), None)
    if found is None:
        raise InvalidConfig(
            f"there is no ComfyUI in {' or '.join(map(str, places))}; set COMFYUI_PATH to the folder of one, "
            "which has main.py in it"
        )
    sys.path.insert(0, str(found))
