"""ComfyUI with this pack, left running for a person with a browser."""

import time
from pathlib import Path

from .comparison import check_models
from .places import BASE, HOST, ROOT
from .server import USUAL_PORT, any_free_port, is_free, make_base, running
from .stop import say

PREVIEWS = ("--preview-method", "none")
"""As ComfyUI starts by itself: blurred previews would stay on the samplers and hide other nodes."""


def serve(comfyui: Path, port: int | None) -> None:
    """Start ComfyUI and wait for Ctrl-C."""
    check_models(ROOT / "models")
    if port is None:
        port = USUAL_PORT if is_free(USUAL_PORT) else any_free_port()
    log = HOST / "comfyui.log"
    say("starting ComfyUI on the CPU (about 15 s)")
    with running(comfyui, make_base(BASE), log, port=port, options=PREVIEWS) as server:
        say(
            f"\nComfyUI runs at {server.url}: open it in a browser. Ctrl-C stops it.\n"
            "Workflow 01 is in Templates, at the end of the list on the left: Extensions, ComfyUI-TeEFusion.\n"
            f"Its models, input and output are folders of {BASE}. "
            "A student that you train is written to output/loras there.\n"
            f"Its log, with warnings, is {log}."
        )
        try:
            while True:
                time.sleep(1.0)
                server.check_alive("while serving")
        except KeyboardInterrupt:
            say("\nstopping ComfyUI")
