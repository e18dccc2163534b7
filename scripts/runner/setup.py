"""From a bare Python to an environment with a ComfyUI."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .comfyui import comfyui_ready, make_comfyui, users_comfyui
from .environment import environment_ready, environment_stamp, make_environment
from .places import COMFYUI, HOST, VENV, python_of
from .stop import say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def set_up() -> Path:
    """Make what is missing; return the ComfyUI to use. A second call costs milliseconds."""
    with _one_at_a_time():
        theirs = users_comfyui()
        extra = theirs / "requirements.txt" if theirs else None
        if not environment_ready(environment_stamp(extra)):
            make_environment(extra)
        if theirs is None and not comfyui_ready():
            make_comfyui()
    return theirs or COMFYUI


def enter_environment() -> None:
    """Start the calling script again inside .venv/, unless it already runs there."""
    if Path(sys.prefix).resolve() == VENV.resolve():
        return
    python = str(python_of(VENV))
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    sys.stdout.flush()
    if os.name == "nt":  # there exec returns to the shell at once, and splits arguments at spaces
        sys.exit(subprocess.call([python, *sys.argv], env=env))
    os.execve(python, [python, *sys.argv], env)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold a lock that the system drops when its holder ends, however it ends."""
    HOST.mkdir(parents=True, exist_ok=True)
    with (HOST / "setup.lock").open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another set-up is running here; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
